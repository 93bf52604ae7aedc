"""What the HTTP API refuses, and what it says when something goes wrong."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fake_parts import FakeFuser, FakeMember, fake_blender
from serving import HELLO, app_of, chat, chunks, event_loop, logged, refused, served, text_of
from starlette.types import Message

from llm_blender_ray.configs.serving import GatewaySettings, Limits, Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.protocols import BlendRequest, Timeouts
from llm_blender_ray.pipelines.serve.access import Keys


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_of(serving=Serving(limits=Limits(body_bytes=10_000)))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("field", "nothing", "something"),
    [
        ("response_format", [{"type": "text"}], {"type": "json_object"}),
        ("tools", [[]], [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", ["none", "auto"], "required"),
        ("functions", [[]], [{"name": "f"}]),
        ("function_call", ["none"], {"name": "f"}),
        ("modalities", [["text"]], ["text", "audio"]),
        ("verbosity", ["medium"], "low"),
        ("prediction", [], {"type": "content", "content": "x"}),
        ("audio", [], {"voice": "x", "format": "mp3"}),
        ("web_search_options", [], {}),
        ("no_such_field", [], 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name_unless_it_asks_for_nothing(
    client: httpx2.Client, field: str, nothing: list[Any], something: Any
) -> None:
    for value in [None, *nothing]:
        response = chat(client, model="alder", max_tokens=1, **{field: value})
        assert response.status_code == 200, response.text
    assert field in refused(chat(client, **{field: something}), 400, "unsupported_parameter", field)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "x", "prefix": True}]},
            "messages[1].prefix",
            "unsupported_parameter",
        ),
        ({"model": 5}, "model", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 8.5}, "max_tokens", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),  # of six models: more than the limit of 64 candidates
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"blend": 1}, "blend", "invalid_value"),
        ({"blend": {"event": True}}, "blend.event", "unsupported_parameter"),
        ({"blend": {"events": True}}, "blend.events", "invalid_value"),
        ({"blend": {"deadline_s": 0}}, "blend.deadline_s", "invalid_value"),
        ({"blend": {"deadline_s": 121}}, "blend.deadline_s", "invalid_value"),
        ({"blend": {"vote": True}}, "blend.vote", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(
    client: httpx2.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    message = refused(chat(client, **fields), 400, code, param)
    assert message.startswith(param)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "flex"},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"parallel_tool_calls": True},
        {"reasoning_effort": "low"},
        {"top_p": 0, "temperature": 1},
        {"max_tokens": 8.0},
        {"max_tokens": 32_768},
        {"max_completion_tokens": 10**30, "max_tokens": None},
        {
            "messages": [
                {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}], "name": "ops"},
                {"role": "user", "content": "What is it?", "name": "Ann", "cache_control": {"type": "ephemeral"}},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "audio": None},
                {"role": "tool", "content": "21 degrees", "tool_call_id": "1"},
                {"role": "assistant", "content": "Warm.", "reasoning_content": "hm", "refusal": None},
                {"role": "assistant"},
                {"role": "user", "content": "And now?"},
            ]
        },
    ],
)
def test_what_changes_nothing_is_taken(client: httpx2.Client, fields: dict[str, Any]) -> None:
    response = chat(client, model="alder", **({"max_tokens": 1} | fields))
    assert response.status_code == 200, response.text


def test_half_a_surrogate_pair_is_no_text(client: httpx2.Client) -> None:
    body = rb'{"model": "blend", "messages": [{"role": "user", "content": "\ud800"}]}'
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    refused(response, 400, "invalid_value", "messages[0].content")


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"\xff", b"nothing", b"[" * 9_000, b'{"seed": ' + b"9" * 5000 + b"}", b"[]", b'"text"', b"null"],
)
def test_a_body_that_is_no_object_of_json_is_refused(client: httpx2.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_value", "missing_required_parameter")


def test_unknown_models_paths_and_methods(client: httpx2.Client) -> None:
    assert "alder" in refused(chat(client, model="gpt-4"), 404, "model_not_found", "model")
    refused(client.get("/v1/models/gpt-4"), 404, "model_not_found", "model")
    refused(client.get("/v1/models/"), 404, "model_not_found", "model")
    refused(client.post("/v1/embeddings", json={}), 404, "not_found")
    refused(client.get("/docs"), 404, "not_found")
    response = client.get("/v1/chat/completions")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_only_json_of_a_bounded_length_is_read(client: httpx2.Client) -> None:
    refused(client.post("/v1/chat/completions", data={"model": "blend"}), 415, "unsupported_media_type")
    refused(client.post("/v1/chat/completions", content=b"{}"), 415, "unsupported_media_type")
    fine = client.post("/v1/rerank", content=b"{}", headers={"content-type": "application/json; charset=utf-8"})
    refused(fine, 400, "missing_required_parameter", "query")
    long = [{"role": "user", "content": "x" * 10_000}]
    refused(chat(client, messages=long), 413, "too_large")
    pieces = (b" " * 1000 for _ in range(200))  # without a Content-Length
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/chat/completions", content=pieces, headers=headers), 413, "too_large")


def test_what_is_too_long_is_not_read_to_its_end() -> None:
    read = 0
    answered: list[Message] = []

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 5000),
        "query_string": b"",
    }
    app = app_of(fake_blender(), Serving(limits=Limits(body_bytes=10_000)))
    asyncio.run(app(scope, receive, send))
    assert answered[0]["status"] == 413
    assert read == 11


def test_keys_are_asked_for_where_there_are_some() -> None:
    keys = Keys.load(None, {"BLEND_API_KEYS": "ann=correct-horse-battery"})
    with served(app_of(fake_blender(), keys=keys)) as url, httpx2.Client(base_url=url) as client:
        response = chat(client)
        refused(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        wrong = {"authorization": "Bearer correct-horse-staple"}
        refused(client.get("/v1/models", headers=wrong), 401, "invalid_api_key")
        right = {"authorization": "Bearer correct-horse-battery"}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/").status_code == 200


APP = "https://app.example"
PREFLIGHT = {"origin": APP, "access-control-request-method": "POST"}
PREFLIGHT |= {"access-control-request-headers": "authorization,content-type,x-stainless-lang"}


def test_pages_of_allowed_origins_may_ask() -> None:
    keys = Keys.load(None, {"BLEND_API_KEYS": "ann=correct-horse-battery"})
    app = app_of(fake_blender(), Serving(allowed_origins=(APP,)), keys=keys)
    right = {"authorization": "Bearer correct-horse-battery"}
    with served(app) as url, httpx2.Client(base_url=url) as client:
        preflight = client.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        answers = [
            client.post(
                "/v1/chat/completions", json={"model": "blend", "messages": HELLO}, headers=right | {"origin": APP}
            ),
            client.get("/v1/models", headers={"origin": APP}),  # an error must be readable, too
        ]
        assert [answer.status_code for answer in answers] == [200, 401]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == APP
            assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        other = client.get("/v1/models", headers=right | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused_preflight = client.options("/v1/models", headers=PREFLIGHT | {"origin": "https://evil.example"})
        assert refused_preflight.status_code == 400


def test_without_keys_only_a_named_origin_may_ask() -> None:
    for allowed, status in (((APP,), 200), (("*",), 403), ((), 403)):
        app = app_of(fake_blender(), Serving(allowed_origins=allowed))
        with served(app) as url, httpx2.Client(base_url=url) as client:
            response = client.get("/v1/models", headers={"origin": APP})
            assert response.status_code == status
            if status == 403:
                assert "serve.allowed_origins" in refused(response, 403, "no_api_keys")


def test_without_keys_nobody_elses_page_is_answered(client: httpx2.Client) -> None:
    message = refused(client.get("/v1/models", headers={"host": "evil.example"}), 403, "no_api_keys")
    assert "serve.keys_file" in message


def test_who_asks_too_often_is_told_when_to_come_again() -> None:
    app = app_of(fake_blender(), Serving(requests_per_minute=2))
    with served(app) as url, httpx2.Client(base_url=url) as client:
        assert [chat(client).status_code for _ in range(2)] == [200, 200]
        response = chat(client)
    refused(response, 429, "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_service_says_so_at_once(stream: bool) -> None:
    member = FakeMember("m", "some words")
    member.hold()
    serving = Serving(gateway=GatewaySettings(max_in_flight=1, max_queued=0))
    with served(app_of(fake_blender(member), serving)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        body = {"model": "m", "messages": HELLO, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as first:
            response = chat(client, stream=stream)
            refused(response, 429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
            unread = client.post("/v1/rerank", content="no JSON", headers={"content-type": "application/json"})
            refused(unread, 429, "overloaded")
            refused(client.post("/v1/votes", json={}), 404, "not_found")  # no model works for them
            event_loop().call_soon_threadsafe(member.let_go)
            first.read()
        assert chat(client, model="m").status_code == 200


def test_when_nobody_answers_there_is_a_status() -> None:
    gone = FakeMember("gone", error="connection refused")
    long = FakeMember("small", error="the prompt has 9 tokens, the model takes 8", refused="too long")
    strict = FakeMember("strict", error="roles must alternate", refused="other")
    with served(app_of(fake_blender(gone, long, strict))) as url, httpx2.Client(base_url=url) as client:
        for stream in (False, True):
            assert "connection refused" in refused(chat(client, stream=stream), 503, "no_answer")
            message = refused(
                chat(client, model="small", stream=stream), 400, "context_length_exceeded", "messages"
            )
            assert "takes 8" in message
            message = refused(chat(client, model="strict", stream=stream), 400, "invalid_value", "messages")
            assert "alternate" in message
        assert chat(client, model="gone", n=2).status_code == 503


def test_what_an_answer_lacks_is_told_unasked() -> None:
    dead, well = FakeMember("dead", error="it is dead"), FakeMember("well", "all is well")
    blender = fake_blender(dead, well, fuser=FakeFuser(RuntimeError("no fuser")))
    with served(app_of(blender)) as url, httpx2.Client(base_url=url) as client:
        answer = chat(client).json()
        assert answer["choices"][0]["message"]["content"] == "all is well"
        lines = answer["blend"]["degraded"]
        assert set(answer["blend"]) == {"degraded"}
        assert len(lines) == 2 and "it is dead" in lines[0] and "no fuser" in lines[1]
        stream = chunks(client)
        assert text_of(stream) == "all is well"
        assert stream[-1]["blend"]["degraded"] == lines
        assert chat(client, blend={"details": False}).json()["blend"] == {"degraded": lines}
        (done,) = [
            chunk["blend"]
            for chunk in chunks(client, blend={"events": True, "details": False})
            if chunk.get("blend", {}).get("event") == "done"
        ]
        assert done["details"]["degraded"] == lines


def test_a_deadline_of_the_requests_own() -> None:
    slow, quick = FakeMember("slow", "never said"), FakeMember("quick", "at once")
    slow.hold()
    blender = fake_blender(slow, quick, timeouts=Timeouts(60.0))
    with served(app_of(blender)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        answer = chat(client, blend={"deadline_s": 0.1}).json()
    assert answer["choices"][0]["message"]["content"] == "at once"
    assert answer["blend"]["candidates"][0]["error"].startswith("no answer within")
    assert slow.cancelled.is_set()


class Broken(Blender):
    """Raises what nobody foresaw, at once or after some words."""

    words = 0

    async def events(self, ask: BlendRequest) -> Any:
        async for event in super().events(ask):
            if self.words:
                yield event
            raise ZeroDivisionError("secret details")


@pytest.fixture
def front_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    with logged("llm_blender_ray.pipelines.serve.middleware", monkeypatch) as records:
        yield records


def test_the_unforeseen_is_told_in_one_line(front_log: list[logging.LogRecord]) -> None:
    parts = fake_blender()
    broken = Broken(list(parts.members.values()), parts.ranker, parts.fuser)
    with served(app_of(broken)) as url, httpx2.Client(base_url=url) as client:
        for stream in (False, True):
            response = client.post(
                "/v1/chat/completions",
                json={"model": "blend", "messages": HELLO, "stream": stream},
                headers={"x-request-id": "abc"},
            )
            message = refused(response, 500, "internal_error")
            assert "secret" not in message and "abc" in message
    logged = [record for record in front_log if "request abc failed" in record.getMessage()]
    assert len(logged) == 2 and all(record.exc_info for record in logged)


def test_an_error_in_mid_stream_is_the_last_thing_said() -> None:
    parts = fake_blender()
    broken = Broken(list(parts.members.values()), parts.ranker, parts.fuser)
    broken.words = 1
    body = {"model": "blend", "messages": HELLO, "stream": True, "blend": {"events": True}}
    with served(app_of(broken)) as url, httpx2.Client(base_url=url) as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    *before, last = [line for line in response.text.split("\n\n") if line]
    assert before
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
