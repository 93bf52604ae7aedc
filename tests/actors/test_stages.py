"""What stages do with failures: one row's stays its own, and a blend with an error is left alone.

And how many answers an LLM is asked for; it stands behind a real HTTP server.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, completion, respond
from hypothesis import given
from hypothesis import strategies as st

from actors.records import Blend, Candidate, Prompt, Ranking
from actors.stages import Generate, TakeBest, chosen, each_alone_on_failure, margin, no_candidate
from configs.schema import EndpointModel, Sampling

PROMPT = Prompt("id", "a question")
ANSWERS = (Candidate("a", "good"), Candidate("b", error="timed out"), Candidate("c", "better"))
RANKED = Blend(PROMPT, ANSWERS, Ranking((2, 0), (0.1, None, 0.2), ((None,) * 3,) * 3, 2))


def generated(
    blends: Sequence[Blend], samples: int, *faults: Fault, seed: int | None = None, together: int = 1
) -> tuple[list[Blend], EndpointServer]:
    """The blends with the answers of an LLM "far" to which each answer is new; `together` are asked for at once."""

    async def main() -> tuple[list[Blend], EndpointServer]:
        barrier = asyncio.Barrier(together)

        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            await barrier.wait()
            return completion(f"{body['messages'][0]['content']} {body.get('seed')}")

        async with EndpointServer(faults, answer) as server:
            sampling = Sampling(temperature=0.7, seed=seed)
            settings = EndpointModel(
                name="far",
                engine="endpoint",
                model="m",
                base_url=server.url,
                max_retries=0,
                sampling=sampling,
                samples=samples,
            )
            return await Generate(settings)(blends), server

    return asyncio.run(main())


def test_an_llm_is_asked_for_all_samples_of_all_rows_at_once() -> None:
    """The server answers nobody before all six are there: fewer in flight would hang."""
    blends = [Blend(Prompt("1", "one"), ()), Blend(Prompt("2", "two"), ANSWERS)]
    (one, two), server = generated(blends, 3, seed=5, together=6)
    assert one.candidates == tuple(Candidate("far", f"one {seed}", finish_reason="stop") for seed in (5, 6, 7))
    assert two.candidates[:3] == ANSWERS
    assert [candidate.text for candidate in two.candidates[3:]] == ["two 5", "two 6", "two 7"]
    assert len(server.requests) == 6


def test_only_missing_samples_are_asked_for() -> None:
    """With the seeds they would have had; one that failed counts as there."""
    given = [(), (Candidate("far", "old"),), (Candidate("far", "old"), Candidate("far", error="timed out"))]
    blends = [Blend(PROMPT, candidates) for candidates in (*given, (Candidate("far", "old"),) * 3)]
    done, server = generated(blends, 2, seed=5)
    new = [[c.text for c in after.candidates[len(b.candidates) :]] for b, after in zip(blends, done, strict=True)]
    assert new == [["a question 5", "a question 6"], ["a question 6"], [], []]
    assert len(server.requests) == 3


def test_without_a_seed_the_llm_draws() -> None:
    _, server = generated([Blend(PROMPT, ())], 2)
    assert [request.body.get("seed") for request in server.requests] == [None, None]


def test_a_sample_that_fails_leaves_the_others() -> None:
    refused = respond(400, {"error": {"message": "refused"}})
    (blend,), _ = generated([Blend(PROMPT, ())], 3, refused)
    assert [candidate.model for candidate in blend.candidates] == ["far"] * 3
    assert sorted(candidate.error is None for candidate in blend.candidates) == [False, True, True]


def test_a_bad_row_is_not_asked() -> None:
    bad = Blend(PROMPT, (), error="bad row")
    done, server = generated([bad], 3)
    assert done == [bad] and not server.requests


@given(st.lists(st.integers(-9, 9)), st.sets(st.integers(-9, 9)))
def test_only_the_rows_that_fail_fail(rows: list[int], poison: set[int]) -> None:
    calls: list[int] = []

    def run(batch: Sequence[int]) -> list[int]:
        calls.append(len(batch))
        if poison & set(batch):
            raise ValueError("poison")
        return [row * 2 for row in batch]

    results = each_alone_on_failure(run, rows)
    assert [isinstance(result, ValueError) for result in results] == [row in poison for row in rows]
    assert [r for r in results if not isinstance(r, Exception)] == [row * 2 for row in rows if row not in poison]
    assert len(calls) == (0 if not rows else 1 if len(rows) == 1 or not poison & set(rows) else 1 + len(rows))


def test_why_nothing_can_be_ranked() -> None:
    assert no_candidate(RANKED) is None
    assert no_candidate(Blend(PROMPT, ())) == "no candidates"
    failed = (Candidate("a", error="refused"), Candidate("b", error="timed out"))
    assert no_candidate(Blend(PROMPT, failed)) == "no candidate: a: refused; b: timed out"


@pytest.mark.parametrize(("top_k", "expected"), [(1, (2,)), (2, (2, 0)), (5, (2, 0))])
def test_the_best_are_chosen(top_k: int, expected: tuple[int, ...]) -> None:
    assert chosen(RANKED, top_k).fused_from == expected


def test_without_a_ranking_the_given_order_counts() -> None:
    assert chosen(replace(RANKED, ranking=None), 3).fused_from == (0, 2)
    assert chosen(replace(RANKED, ranking=None, candidates=()), 3).error == "no candidates"


def test_nothing_is_fused_of_what_has_an_error() -> None:
    bad = replace(RANKED, error="bad row")
    assert chosen(bad, 3) is bad
    assert TakeBest()([bad, RANKED]) == [bad, replace(RANKED, fused="better", fused_from=(2,))]


def test_margin_is_free_of_position_bias() -> None:
    logits = ((None, 0.5), (0.25, None))  # the left one gains by standing left
    assert margin(Ranking((0, 1), (0.1, -0.1), logits, 2)) == 0.125
