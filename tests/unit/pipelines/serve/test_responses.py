"""The HTTP API from outside, of the miniature and of parts that do as they are told: answers and streams."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_parts import FakeMember, FakeRanker, fake_blender
from serving import HELLO, QUESTION, app_of, chat, chunks, demo_blender, event_loop, refused, served, text_of

from llm_blender_ray.actors.prices import PriceList, Rates, TokenPrice
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.serving import Limits, Serving
from llm_blender_ray.pipelines.online.events import BlendResult
from llm_blender_ray.pipelines.online.protocols import BlendRequest
from llm_blender_ray.pipelines.serve.ballots import Ballots

MEMBERS = ("alder", "birch", "cedar", "hazel", "maple", "rowan")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_of(serving=Serving(limits=Limits(body_bytes=10_000)))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def outcome() -> BlendResult:
    """What the blend itself makes of the question."""
    prompt = Prompt("reference", messages=({"role": "user", "content": QUESTION},))
    return asyncio.run_coroutine_threadsafe(demo_blender().outcome(BlendRequest(prompt)), event_loop()).result(60)


def test_an_answer_is_openais_and_the_blends(client: httpx2.Client, outcome: BlendResult) -> None:
    answer = chat(client, messages=[{"role": "user", "content": QUESTION}]).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "blend",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": outcome.blend.fused, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": outcome.usage.prompt_tokens,
            "completion_tokens": outcome.usage.completion_tokens,
            "total_tokens": outcome.usage.total_tokens,
        },
        "system_fingerprint": None,
    }
    assert outcome.usage.prompt_tokens > 6 * 10 and outcome.usage.calls == 6 + 1


def test_details_come_when_asked_for(client: httpx2.Client, outcome: BlendResult) -> None:
    answer = chat(client, messages=[{"role": "user", "content": QUESTION}], blend=True).json()
    told, ranking = answer["blend"], outcome.blend.ranking
    assert ranking is not None and "usage" not in told  # the candidates' tokens and the fuser's are all
    assert [candidate["text"] for candidate in told["candidates"]] == [c.text for c in outcome.blend.candidates]
    assert [candidate["model"] for candidate in told["candidates"]] == list(MEMBERS)
    assert tuple(told["ranking"]) == ranking.order
    assert told["scores"] == pytest.approx(ranking.scores, abs=1e-4)
    assert [[value is None for value in row] for row in told["logits"]] == [
        [value is None for value in row] for row in ranking.logits
    ]
    assert told["comparisons"] == ranking.comparisons
    assert told["fused_from"] == told["ranking"][:3]
    assert told["degraded"] == []
    timings = told["timings"]
    assert set(timings) == {"queue", "generate", "rank", "fuse", "total"}
    assert timings["total"] >= timings["generate"] + timings["rank"] + timings["fuse"]
    assert "blend" not in answer["choices"][0]


def test_the_best_candidate_alone_and_members_by_their_names(client: httpx2.Client, outcome: BlendResult) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    ranking = outcome.blend.ranking
    assert ranking is not None
    best = outcome.blend.candidates[ranking.order[0]]
    answer = chat(client, model="blend-best", messages=messages, blend=True).json()
    assert answer["choices"][0]["message"]["content"] == best.text
    assert answer["blend"]["fused_from"] == [ranking.order[0]]
    for candidate in outcome.blend.candidates:
        answer = chat(client, model=candidate.model, messages=messages, blend=True).json()
        assert answer["model"] == candidate.model
        assert answer["choices"][0]["message"]["content"] == candidate.text
        assert answer["usage"]["completion_tokens"] == candidate.completion_tokens
        assert answer["blend"]["ranking"] is None


@pytest.mark.parametrize("model", ["blend", "blend-best", "alder"])
def test_a_stream_has_the_same_answer_in_pieces(client: httpx2.Client, model: str) -> None:
    whole = chat(client, model=model).json()
    stream = chunks(client, model=model, stream_options={"include_usage": True})
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in stream} == {
        (stream[0]["id"], "chat.completion.chunk", model)
    }
    first, *_, ended, last = stream
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(stream) == whole["choices"][0]["message"]["content"]
    assert ended["choices"][0]["delta"] == {}
    assert ended["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in stream[:-2]] == [None] * (len(stream) - 2)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in stream[:-1])
    assert not any("usage" in chunk or "blend" in chunk for chunk in chunks(client, model=model))


def test_a_members_own_answer_streams_word_by_word(client: httpx2.Client) -> None:
    stream = chunks(client, model="alder", messages=[{"role": "user", "content": QUESTION}])
    assert sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in stream) > 3


def test_events_tell_what_happens_between_the_pieces(client: httpx2.Client) -> None:
    stream = chunks(client, blend={"events": True})
    events = [chunk["blend"] for chunk in stream if "blend" in chunk]
    assert all(chunk["choices"] == [] for chunk in stream if "blend" in chunk)
    assert all(event["choice"] == 0 for event in events)
    order = list(dict.fromkeys(event["event"] for event in events))
    assert order == ["member_piece", "answered", "ranked", "fusing", "done"]
    done = events[-1]["details"]
    for at, candidate in enumerate(done["candidates"]):
        mine = [event for event in events if event.get("candidate") == at]
        pieces = [event["text"] for event in mine if event["event"] == "member_piece"]
        (answered,) = [event for event in mine if event["event"] == "answered"]
        assert "".join(pieces) == candidate["text"]
        assert answered["answer"] == candidate and answered["seconds"] > 0
        assert {event["model"] for event in mine if event["event"] == "member_piece"} == {MEMBERS[at]}
    *_, ranked = [event for event in events if event["event"] == "ranked"]
    assert ranked["complete"]
    assert {name: ranked[name] for name in ("ranking", "scores", "logits", "comparisons")} == {
        name: done[name] for name in ("ranking", "scores", "logits", "comparisons")
    }
    (fusing,) = [event for event in events if event["event"] == "fusing"]
    assert fusing["fused_from"] == done["fused_from"] == done["ranking"][:3]
    kinds = [chunk.get("blend", {}).get("event", "piece") for chunk in stream]
    assert kinds.index("fusing") < kinds.index("piece") < kinds.index("done")


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_without_events_the_last_chunk_of_a_stream_has_the_details(
    client: httpx2.Client, options: dict[str, bool] | None
) -> None:
    *before, last = chunks(client, blend=True, stream_options=options)
    assert last["blend"]["fused_from"] == last["blend"]["ranking"][:3]
    assert not any("blend" in chunk for chunk in before)


def test_messages_and_settings_reach_the_members() -> None:
    member = FakeMember("m", "yes")
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?"}]},
        {"role": "assistant", "content": "No.", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Sure?"},
    ]
    fields = {"max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25, "stop": ["a", "b"], "seed": -1}
    fields |= {"reasoning_effort": "low"}
    with served(app_of(fake_blender(member))) as url, httpx2.Client(base_url=url) as client:
        assert chat(client, messages=messages, **fields, user="me", n=2).status_code == 200
        assert chat(client, stop="end", max_tokens=3, max_completion_tokens=3).status_code == 200
        assert chat(client).status_code == 200
    prompt, _, change = member.asked[0]
    assert prompt.messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    )
    assert change is not None and change.model_dump(exclude_none=True) == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "stop": ("a", "b"),
        "seed": 2**63 - 1,
        "reasoning_effort": "low",
    }
    assert sorted(sample for _, sample, _ in member.asked[:2]) == [0, 1]  # a choice each
    changed = [change.model_dump(exclude_none=True) for _, _, change in member.asked[2:] if change]
    assert changed == [{"stop": ("end",), "max_tokens": 3}, {}]


def test_reasoning_stands_beside_the_answer() -> None:
    """As in DeepSeek's API; the blend's own is the fuser's, or that of the candidate which is the answer."""
    members = (FakeMember("short", "one", reasoning="hm"), FakeMember("long", "one two", reasoning="so it is"))
    with served(app_of(fake_blender(*members))) as url, httpx2.Client(base_url=url) as client:
        for model, thought in (("long", "so it is"), ("blend-best", "so it is"), ("blend", None)):
            answer = chat(client, model=model, blend=True).json()
            assert answer["choices"][0]["message"].get("reasoning_content") == thought
            told = answer["blend"]["candidates"]
            assert [one["reasoning_content"] for one in told] == ["hm", "so it is"][-len(told) :]
            assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(told)}
            pieces = [chunk["choices"][0] for chunk in chunks(client, model=model)]
            deltas = [piece["delta"] for piece in pieces]
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (thought or "")
            assert (
                "".join(delta.get("content", "") for delta in deltas) == answer["choices"][0]["message"]["content"]
            )
            assert deltas[0] == {"role": "assistant", "content": ""}
        without = [chat(client, model="long", blend=True, include_reasoning=False).text]
        without += [str(chunks(client, model="long", blend={"events": True}, include_reasoning=False))]
        assert not any("so it is" in text for text in without)


def test_the_usage_is_of_all_that_was_called() -> None:
    """The judge's calls too, which only `blend.usage` tells from the others."""
    judge = FakeRanker(usage=TokenUsage(2, 0, 1000, 400, 70, 60))
    blender = fake_blender(FakeMember("short", "one"), FakeMember("bad", error="down"), ranker=judge)
    with served(app_of(blender)) as url, httpx2.Client(base_url=url) as client:
        answer = chat(client, blend=True).json()
        assert answer["usage"] == {
            "prompt_tokens": 10 + 1000 + 100,
            "completion_tokens": 1 + 70 + 3,
            "total_tokens": 1110 + 74,
            "prompt_tokens_details": {"cached_tokens": 400},
            "completion_tokens_details": {"reasoning_tokens": 60},
        }
        assert {name: one["total_tokens"] for name, one in answer["blend"]["usage"].items()} == {
            "short": 11,
            "ranker": 1070,
            "fuser": 103,
        }
        last = chunks(client, stream_options={"include_usage": True})[-1]
        assert last["usage"] == answer["usage"]


def test_what_an_answer_costs_is_in_its_details_where_a_price_is_known() -> None:
    judge = FakeRanker(usage=TokenUsage(2, 0, 1000, 400, 70, 60))
    blender = fake_blender(FakeMember("short", "one"), FakeMember("free", "two"), ranker=judge)
    price = TokenPrice(Rates(100.0, 10.0, 1000.0))
    known, lost = {"short": price, "ranker": price, "fuser": price}, {"short": None}
    for prices, parts, total in (
        (known, {"short": 0.002, "ranker": 0.06 + 0.004 + 0.07, "fuser": 0.017}, 0.153),
        (known | lost, {"short": None, "ranker": 0.134, "fuser": 0.017}, None),
    ):
        with served(app_of(blender, prices=PriceList(prices))) as url, httpx2.Client(base_url=url) as client:
            answer = chat(client, blend=True).json()
            told = answer["blend"]["cost_usd"]
            assert told == {"total": pytest.approx(total) if total else None, "parts": pytest.approx(parts)}
            *_, done = [chunk for chunk in chunks(client, blend={"events": True}) if "blend" in chunk]
            assert done["blend"]["details"]["cost_usd"] == told
            assert "cost_usd" not in chat(client).text  # not requested
    for none in (lost, {}):
        with served(app_of(blender, prices=PriceList(none))) as url, httpx2.Client(base_url=url) as client:
            assert "cost_usd" not in chat(client, blend=True).json()["blend"]


def test_choices_are_side_by_side_and_reproducible(client: httpx2.Client) -> None:
    def texts(**fields: Any) -> list[str]:
        answer = chat(client, model="alder", n=3, temperature=1.5, seed=5, **fields).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        return [choice["message"]["content"] for choice in answer["choices"]]

    first = texts()
    assert len(set(first)) > 1
    assert texts() == first
    stream = chunks(client, model="alder", n=3, temperature=1.5, seed=5)
    assert [text_of(stream, choice) for choice in range(3)] == first


def test_every_one_of_several_choices_has_its_details(client: httpx2.Client) -> None:
    answer = chat(client, n=2, blend=True).json()
    alone = [choice["blend"] for choice in answer["choices"]]
    assert answer["blend"] == alone[0]
    assert all(len(details["candidates"]) == 6 for details in alone)
    used = sum(candidate["completion_tokens"] for details in alone for candidate in details["candidates"])
    assert answer["usage"]["completion_tokens"] > used  # the fuser's, too
    stream = chunks(client, n=2, blend=True)
    ended = [chunk["choices"][0] for chunk in stream if chunk["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in ended) == [0, 1]
    assert all(len(choice["blend"]["candidates"]) == 6 for choice in ended)
    assert stream[-1]["blend"]["candidates"] == next(c for c in ended if c["index"] == 0)["blend"]["candidates"]
    events = [chunk["blend"] for chunk in chunks(client, n=2, blend={"events": True}) if "blend" in chunk]
    assert {event["choice"] for event in events if event["event"] == "done"} == {0, 1}


def test_ids_are_the_clients_own_where_they_can_be(client: httpx2.Client) -> None:
    response = client.get("/v1/models", headers={"x-request-id": "Trace.1_2-3"})
    assert response.headers["x-request-id"] == "Trace.1_2-3"
    for bad in ("a b", "x" * 129, "ü".encode()):
        made = client.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(made) == 32
    named = client.post(
        "/v1/chat/completions",
        json={"model": "alder", "messages": HELLO, "max_tokens": 1},
        headers={"x-request-id": "mine"},
    )
    assert named.json()["id"] == "chatcmpl-mine"
    assert client.get("/nowhere").headers["x-request-id"] != client.get("/nowhere").headers["x-request-id"]


def test_models_are_listed(client: httpx2.Client) -> None:
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["blend", "blend-best", *MEMBERS]
    for model in answer["data"]:
        assert client.get(f"/v1/models/{model['id']}").json() == model
        assert (model["object"], model["owned_by"]) == ("model", "llm-blender")


def test_a_model_may_have_a_slash_in_its_name() -> None:
    with served(app_of(fake_blender(FakeMember("org/model", "yes")))) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/v1/models/org/model").json()["id"] == "org/model"
        assert client.get("/v1/models/org%2Fmodel").json()["id"] == "org/model"


def test_health_and_the_page(client: httpx2.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.head("/healthz").status_code == client.head("/").status_code == 200
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == Path("pipelines/serve/page.html").read_text(encoding="utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == page.text.count("<script>") + page.text.count("<style>")


def test_votes_are_taken_where_they_are_kept(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    with served(app_of(fake_blender(), ballots=Ballots(str(votes)))) as url, httpx2.Client(base_url=url) as client:
        asked = {"model": "blend", "messages": HELLO, "blend": {"vote": True}}
        response = client.post("/v1/chat/completions", json=asked, headers={"x-request-id": "first"})
        assert response.status_code == 200
        vote = {"id": "first", "left": 0, "right": "fused", "preferred": "right"}
        assert client.post("/v1/votes", json=vote).status_code == 201
        refused(client.post("/v1/votes", json=vote), 409, "voted_before")
        refused(client.post("/v1/votes", json={**vote, "id": "other"}), 404, "unknown_answer")
        refused(client.post("/v1/votes", json={**vote, "left": "fused"}), 400, "invalid_value")
        refused(chat(client, n=2, blend={"vote": True}), 400, "invalid_value", "blend.vote")
        refused(chat(client, model="long", blend={"vote": True}), 400, "invalid_value", "blend.vote")
    assert json.loads(votes.read_text())["vote"]["preferred"] == "right"


class Lost(Ballots):
    """Remembers nothing."""

    async def remember(self, request_id: str, blend: Any) -> None:
        raise RuntimeError("the disk is gone")


def test_an_answer_that_cannot_be_voted_on_is_still_one(tmp_path: Path) -> None:
    ballots = Lost(str(tmp_path / "votes.jsonl"))
    with served(app_of(fake_blender(), ballots=ballots)) as url, httpx2.Client(base_url=url) as client:
        answer = chat(client, blend={"vote": True}).json()
    assert answer["choices"][0]["message"]["content"]
    assert "the disk is gone" in answer["blend"]["degraded"][0]


def test_the_openapi_document_tells_what_there_is(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    operations = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    assert set(operations) == {
        "create_chat_completion",
        "list_models",
        "retrieve_model",
        "rerank",
        "compare",
        "health",
        "page",
    }
    assert "422" not in operations["rerank"]["responses"]
    error = operations["rerank"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert error == {"$ref": "#/components/schemas/ErrorAnswer"}
    request = document["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] == {"type": "null"}
    assert set(request["required"]) == {"model", "messages"}
    chat_answer = operations["create_chat_completion"]["responses"]["200"]["content"]
    assert set(chat_answer) == {"application/json", "text/event-stream"}
    assert {"Chunk", "MemberPieceEvent", "DoneEvent"} <= set(document["components"]["schemas"])
    text = json.dumps(document)
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred <= set(document["components"]["schemas"])
