"""GPT-Rank, >= and win rates of one row, derived by hand from LLM-Blender's rules."""

import json

import pytest

from llm_blender_ray.pipelines.quality.judgements import BLEND_CONTESTANT, RANKER_CONTESTANT, read_judgements
from llm_blender_ray.pipelines.quality.rankings import (
    AT_LEAST,
    RANDOM_CHOICE,
    WINS,
    JudgedRow,
    answers_of,
    implied_judgements,
    oracle_of,
    systems_of,
)
from llm_blender_ray.pipelines.rows.schema import read_row


def judged(cmp_results, **columns):
    """A row as MixInstruct publishes them, with the models that its comparisons name, in order of the alphabet."""
    models = sorted({name for pair in cmp_results for name in pair.split(",")})
    given = {
        "instruction": "p",
        "candidates": [{"model": name, "text": name} for name in models],
        "cmp_results": json.dumps(cmp_results),
        **columns,
    }
    row = read_row(given, "test")
    chosen = row["ranking"][0] if row["ranking"] else None
    return JudgedRow(answers_of(row), read_judgements(row), chosen)


def by_name(row, values):
    return {row.names[side]: value for side, value in values.items()}


MIXED = {
    "A,B": "A is better",  # A +1, B -1
    "C,A": "B is better",  # A +1, C -1
    "A,D": "Same good",  # nothing
    "B,C": "A is better",  # B +1, C -1
    "D,B": "Same bad",  # nothing
    "C,D": "A is better",  # C +1, D -1
}


def test_same_good_and_same_bad_cancel_in_the_rank() -> None:
    """Points: A 2, B 0, C -1, D -1; the two last share the better of their ranks."""
    row = judged(MIXED)
    assert by_name(row, row.ranks()) == {"A": 1, "B": 2, "C": 3, "D": 3}


def test_ties_at_every_place() -> None:
    """Three pairs of equal answers, each pair better than the next: points 4, 4, 0, 0, -4, -4."""
    pairs = [("A", "B"), ("C", "D"), ("E", "F")]
    equal = {"A,B": "Same good", "C,D": "Same bad", "E,F": "Same bad"}
    ordered = {
        f"{low},{high}": "B is better"
        for at, better in enumerate(pairs)
        for worse in pairs[at + 1 :]
        for high in better
        for low in worse
    }
    row = judged(equal | ordered)
    assert len(row.judgements) == 15  # all pairs of six
    assert by_name(row, row.ranks()) == {"A": 1, "B": 1, "C": 3, "D": 3, "E": 5, "F": 5}


@pytest.mark.parametrize("verdict", ["Same good", "Same bad"])
def test_equal_answers_are_all_first(verdict: str) -> None:
    row = judged(dict.fromkeys(["A,B", "A,C", "B,C"], verdict))
    assert by_name(row, row.ranks()) == {"A": 1, "B": 1, "C": 1}


def test_same_good_counts_half_and_same_bad_nothing_in_at_least() -> None:
    row = judged(MIXED)
    assert by_name(row, row.shares("D", AT_LEAST)) == {"A": 0.5, "B": 0.0, "C": 1.0, "D": 0.5}
    assert by_name(row, row.shares("A", AT_LEAST)) == {"A": 0.5, "B": 0.0, "C": 0.0, "D": 0.5}


def test_a_win_rate_halves_every_tie() -> None:
    row = judged(MIXED)
    assert by_name(row, row.shares("D", WINS)) == {"A": 0.5, "B": 0.5, "C": 1.0, "D": 0.5}
    # of three comparisons each: A 1 + 1 + 1/2, B 0 + 1 + 1/2, C 0 + 0 + 1, D 1/2 + 1/2 + 0
    assert by_name(row, row.shares(None, WINS)) == pytest.approx({"A": 2.5 / 3, "B": 0.5, "C": 1 / 3, "D": 1 / 3})


def test_both_orders_of_a_pair_are_one_opinion_of_two_halves() -> None:
    """Two orders that contradict each other cancel in the rank and make half a win."""
    row = judged({"A,B": "A is better", "B,A": "A is better"})
    assert by_name(row, row.ranks()) == {"A": 1, "B": 1}
    assert by_name(row, row.shares("A", WINS)) == {"A": 0.5, "B": 0.5}


def test_systems_are_the_answers_they_would_have_given() -> None:
    row = judged(MIXED, ranking=[2, 0, 1, 3], fused="f")
    assert row.contestants() == {
        "A": [0],
        "B": [1],
        "C": [2],
        "D": [3],
        BLEND_CONTESTANT: ["fused"],
        RANKER_CONTESTANT: [2],
    }
    assert systems_of([row]) == ["A", "B", "C", "D", RANKER_CONTESTANT, BLEND_CONTESTANT]
    scored = JudgedRow(
        row.names, row.judgements, None, {"x": {0: 1.0, 1: 3.0, 3: 3.0, "fused": 9.0}, "y": {2: 0.0}}
    )
    systems = scored.systems({"x": 1, "y": -1})
    assert (systems[RANDOM_CHOICE], systems[oracle_of("x")], systems[oracle_of("y")]) == ([0, 1, 2, 3], [1, 3], [2])
    assert scored.systems({"x": -1})[oracle_of("x")] == [0]


@pytest.mark.parametrize(("sign", "ranks"), [(1, {0: 3, 1: 1, 2: 1}), (-1, {0: 1, 1: 2, 2: 2})])
def test_a_score_implies_judgements_of_all_pairs(sign: int, ranks: dict[int, int]) -> None:
    found = implied_judgements("x", {0: 1.0, 1: 2.0, 2: 2.0}, sign)
    assert [(one.judge, one.left, one.right, one.sign) for one in found] == [
        ("x", 0, 1, -sign),
        ("x", 0, 2, -sign),
        ("x", 1, 2, 0),
    ]
    assert JudgedRow(dict.fromkeys(ranks, ""), found).ranks() == ranks
