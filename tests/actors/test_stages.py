"""What stages do with failures: one row's stays its own, and a blend with an error is left alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.records import Blend, Candidate, Prompt, Ranking
from actors.stages import TakeBest, chosen, each_alone_on_failure, margin, no_candidate

PROMPT = Prompt("id", "a question")
ANSWERS = (Candidate("a", "good"), Candidate("b", error="timed out"), Candidate("c", "better"))
RANKED = Blend(PROMPT, ANSWERS, Ranking((2, 0), (0.1, None, 0.2), ((None,) * 3,) * 3, 2))


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
