"""`/v1/rerank` and `/v1/compare`, over the miniature's ranker."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fake_parts import FakeRanker, fake_blender
from serving import QUESTION, app_of, demo_blender, event_loop, refused, served

from llm_blender_ray.actors.errors import RowError
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking
from llm_blender_ray.actors.stages import margin
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.serving import Limits, Serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_of(serving=Serving(limits=Limits(body_bytes=10_000)))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def ranked(texts: list[str], prompt: Prompt) -> Ranking:
    """The miniature's own ranking."""
    candidates = [Candidate(None, text) for text in texts]
    work = demo_blender().rerank(prompt, candidates)
    return asyncio.run_coroutine_threadsafe(work, event_loop()).result(60)


def test_documents_are_reranked(client: httpx2.Client) -> None:
    texts = ["1) Paris 2) Tokyo 3) Cairo", "1) Rome", "", "1) Paris 2) Rome 3) Cairo"]
    ranking = ranked(texts, Prompt("x", instruction=QUESTION))
    documents = [texts[0], {"text": texts[1], "title": "not read"}, *texts[2:]]
    answer = client.post("/v1/rerank", json={"query": QUESTION, "documents": documents}).json()
    assert [result["index"] for result in answer["results"]] == list(ranking.order)
    assert [result["document"] for result in answer["results"]] == [{"text": texts[at]} for at in ranking.order]
    for result in answer["results"]:
        score = ranking.scores[result["index"]]
        assert score is not None
        assert result["relevance_score"] == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-5)
    assert answer["usage"]["comparisons"] == ranking.comparisons == 12
    assert answer["id"] and answer["model"] == "ranker"
    body = {"model": "blend", "query": QUESTION, "documents": documents, "top_n": 2, "return_documents": False}
    answer = client.post("/v1/rerank", json=body).json()
    assert answer["results"][0]["index"] == ranking.order[0]
    assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}] * 2
    alone = client.post("/v1/rerank", json={"query": "x", "documents": ["only"], "top_n": 9}).json()
    assert [result["index"] for result in alone["results"]] == [0]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "alder"}, "model", "model_not_found"),
        ({"query": " "}, "query", "invalid_value"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": ["x"] * 65}, "documents", "invalid_value"),
        ({"documents": ["x", {"title": "y"}]}, "documents[1].text", "missing_required_parameter"),
        ({"documents": [5]}, "documents[0]", "invalid_value"),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"max_chunks_per_doc": 3}, "max_chunks_per_doc", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_with_a_rerank_is_told(
    client: httpx2.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    response = client.post("/v1/rerank", json={"query": "q", "documents": ["x"], **fields})
    refused(response, 404 if code == "model_not_found" else 400, code, param)


def test_two_answers_are_compared_in_both_orders(client: httpx2.Client) -> None:
    good, bad = "1) Paris 2) Tokyo 3) Cairo", "Well, well"
    work = demo_blender().compare(Prompt("x", instruction=QUESTION), [Candidate(None, good), Candidate(None, bad)])
    reference = asyncio.run_coroutine_threadsafe(work, event_loop()).result(60)
    answer = client.post("/v1/compare", json={"prompt": QUESTION, "candidates": [good, bad]}).json()
    assert answer["margin"] == pytest.approx(margin(reference), abs=1e-5)
    assert answer["preference"] == int(answer["margin"] < 0)
    assert answer["comparisons"] == 2
    for asked in ({"instruction": QUESTION}, {"messages": [{"role": "user", "content": QUESTION}]}):
        turned = {**asked, "candidates": [{"text": bad, "model": "x"}, {"text": good}]}
        other = client.post("/v1/compare", json=turned).json()
        assert other["margin"] == pytest.approx(-answer["margin"], abs=1e-5)
        assert other["preference"] == 1 - answer["preference"]
    same = client.post("/v1/compare", json={"prompt": QUESTION, "candidates": [good, good]}).json()
    assert (same["preference"], same["margin"]) == (None, 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"candidates": ["x"]}, "candidates"),
        ({"candidates": ["x", "y", "z"]}, "candidates"),
        ({"candidates": ["x", {"text": None}]}, "candidates[1].text"),
        ({"prompt": ""}, None),
        ({"prompt": None}, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_what_is_wrong_with_a_comparison_is_told(
    client: httpx2.Client, fields: dict[str, Any], param: str | None
) -> None:
    response = client.post("/v1/compare", json={"prompt": "p", "candidates": ["x", "y"], **fields})
    refused(response, 400, "invalid_value", param)


def test_tokens_are_those_of_a_judge() -> None:
    judge = FakeRanker(usage=TokenUsage(2, 0, 1000, 0, 70, 0))
    tokens = {"prompt_tokens": 1000, "completion_tokens": 70, "total_tokens": 1070}
    with served(app_of(fake_blender(ranker=judge))) as url, httpx2.Client(base_url=url) as client:
        found = client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b"]}).json()
        assert found["usage"] == {"comparisons": 4, **tokens}
        found = client.post("/v1/compare", json={"prompt": "q", "candidates": ["a", "b"]}).json()
        assert found["usage"] == tokens
    with served(app_of(fake_blender())) as url, httpx2.Client(base_url=url) as client:
        found = client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b"]}).json()
        assert found["usage"] == {"comparisons": 4}
        assert "usage" not in client.post("/v1/compare", json={"prompt": "q", "candidates": ["a", "b"]}).json()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("its replicas died"), 503, "no_ranking"),
        (RowError("too long"), 400, "invalid_value"),
        (TimeoutError(), 503, "no_ranking"),
    ],
)
def test_a_ranker_that_fails_is_told(error: Exception, status: int, code: str) -> None:
    blender = fake_blender(ranker=FakeRanker(error))
    with served(app_of(blender)) as url, httpx2.Client(base_url=url) as client:
        for path, body in (
            ("/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
            ("/v1/compare", {"prompt": "q", "candidates": ["a", "b"]}),
        ):
            refused(client.post(path, json=body), status, code)
