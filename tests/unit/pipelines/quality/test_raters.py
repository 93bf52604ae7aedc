"""Raters of rows: what each says of which answers, and what two of them have in common."""

import numpy as np
import pytest

from llm_blender_ray.pipelines.quality.agreement import estimate
from llm_blender_ray.pipelines.quality.metrics import ExactMatch
from llm_blender_ray.pipelines.quality.raters import (
    PEOPLE_TOGETHER,
    RatedPrompts,
    Rating,
    group_tables,
    paired_ratings,
    raters_of,
)
from llm_blender_ray.pipelines.quality.word_metrics import RougeL
from llm_blender_ray.pipelines.rows.schema import read_row

MODELS = ("alder", "birch", "cedar")


def row(number=0, **columns):
    candidates = [{"model": name, "text": f"{name} {number}"} for name in MODELS]
    return read_row({"id": str(number), "instruction": f"p{number}", "candidates": candidates, **columns}, "test")


def scored(number=0, *values, **columns):
    candidates = [
        {"model": name, "text": f"{name} {number}", "scores": {"quality": value}}
        for name, value in zip(MODELS, values, strict=True)
    ]
    return row(number, candidates=candidates, **columns)


def judged(judge, left, right, preferred="left", *, person=False):
    return {"judge": judge, "left": left, "right": right, "preferred": preferred, "person": person}


def rated(rows, **options):
    return next(iter(RatedPrompts(**options).add_all(rows).slices.values()))


def table_of(prompts, rater, other):
    """Number of pairs on which both agree, on which they contradict each other, on which one has a tie."""
    table = paired_ratings(prompts, rater, other).tables.sum(axis=0)
    same, opposite = table[0, 0] + table[2, 2], table[0, 2] + table[2, 0]
    return same, opposite, table.sum() - same - opposite


def test_every_kind_of_rater_is_found_in_a_fixed_order() -> None:
    one = scored(
        0,
        0.9,
        0.5,
        0.1,
        output="alder 0",
        scores=[3, 2, 1],
        ranking=[0, 1, 2],
        judgements=[judged("j", 0, 1), judged("anna", 0, 1, person=True)],
        cmp_results={"alder,birch": "A is better"},
        chosen="alder 0",
        rejected="birch 0",
        vote={"left": 0, "right": 1, "preferred": "left", "at": "2026-11-22T12:00:00+00:00"},
    )
    assert dict(raters_of(rated([one], metrics=[ExactMatch()]))) == dict.fromkeys(
        (
            "ranker",
            "judge:cmp_results",
            "judge:j",
            "score:quality",
            "metric:exact",
            "chosen",
            "person:anna",
            "person:people",
        ),
        1,
    )


def test_mixinstructs_verdicts_as_ranks() -> None:
    """`Same good` and `Same bad` are ties, so that alder has one win, cedar none, birch a loss."""
    verdicts = {"alder,birch": "A is better", "alder,cedar": "Same good", "birch,cedar": "Same bad"}
    (prompt,) = rated([row(cmp_results=verdicts)])
    assert prompt.ratings["judge:cmp_results"].ranks([0, 1, 2]) == [1, 3, 2]
    del verdicts["birch,cedar"]
    (prompt,) = rated([row(cmp_results=verdicts)])
    assert prompt.ratings["judge:cmp_results"].ranks([0, 1, 2]) is None
    assert prompt.ratings["judge:cmp_results"].ranks([0, 1]) == [1, 2]


def test_ranks_with_ties_at_every_place() -> None:
    def ranks(*values):
        return Rating(scores=dict(enumerate(values))).ranks(range(len(values)))

    assert ranks(0.5, 0.5, 0.5) == [1, 1, 1]
    assert ranks(0.9, 0.5, 0.9, 0.5) == [1, 3, 1, 3]
    assert ranks(0.1, 0.5, 0.5, 0.9) == [4, 2, 2, 1]


def test_contradicting_verdicts_of_one_judge_are_a_tie() -> None:
    both_orders = [judged("j", 0, 1), judged("j", 1, 0), judged("j", 0, 2), judged("j", 2, 0, "right")]
    (prompt,) = rated([row(judgements=both_orders)])
    assert [prompt.ratings["judge:j"].sign(pair) for pair in ((0, 1), (0, 2))] == [0, 1]


def test_the_ranker_against_scores() -> None:
    """The logits say more than the scores where there are some: here that cedar beats birch."""
    logits = [[None, 1, 1], [-1, None, -1], [-1, 1, None]]
    rows = [
        scored(0, 0.9, 0.5, 0.1, scores=[3, 2, 1], ranking=[0, 1, 2], logits=logits),
        scored(1, 0.1, 0.5, 0.9, scores=[3, 2, 1], ranking=[0, 1, 2]),
        scored(2, 0.5, 0.5, None, scores=[3, 2, 1], ranking=[0, 1, 2]),
        scored(3, 0.9, 0.5, 0.1, error="why"),
    ]
    prompts = rated(rows)
    assert table_of(prompts, "ranker", "score:quality") == (2, 4, 1)
    ratings = paired_ratings(prompts, "ranker", "score:quality")
    assert ratings.ranks.tolist()[:2] == [[1, 2, 3], [1, 2, 3]]
    np.testing.assert_equal(ratings.other_ranks, [[1, 2, 3], [3, 2, 1], [1, 1, np.nan]])


@pytest.mark.parametrize(
    ("margin", "preference", "found"),
    [(1.5, 0, (1, 0, 0)), (-1.5, 1, (0, 1, 0)), (0.0, None, (0, 0, 1)), (1.5, 1, None), (1.5, None, None)],
)
def test_rows_of_compare_have_a_margin(margin, preference, found) -> None:
    """A column `margin` of another origin, which `preference` contradicts, is not the ranker's."""
    given = {"instruction": "p", "chosen": "c", "rejected": "r", "margin": margin, "preference": preference}
    prompts = rated([read_row(given, "test")])
    if found:
        assert table_of(prompts, "ranker", "chosen") == found
    else:
        assert [*raters_of(prompts)] == ["chosen"]


def test_an_order_by_the_leaderboard_is_no_verdict_of_the_ranker() -> None:
    none = [[None] * 3] * 3
    assert not raters_of(rated([row(0, scores=[3, 2, 1], ranking=[0, 1, 2], logits=none)]))


def test_metrics_rate_the_blend_too_and_lower_may_be_better() -> None:
    class ErrorRate(RougeL):
        name = "error_rate"
        higher_is_better = False

    rows = [
        row(0, output="alder 0", fused="alder", judgements=[judged("j", "fused", 1), judged("j", 0, "fused")]),
        row(1),
    ]
    prompts = rated(rows, metrics=[RougeL(), ErrorRate()])
    assert table_of(prompts, "metric:rouge_l", "judge:j") == (2, 0, 0)
    assert table_of(prompts, "metric:error_rate", "judge:j") == (0, 2, 0)
    assert paired_ratings(prompts, "metric:rouge_l", "metric:error_rate").ranks.shape == (1, 4)


def test_votes_on_the_same_answers_in_different_rows_are_compared() -> None:
    """As in MT-bench, where a row is one vote; of one person only the other people's majority counts."""
    rows = [row(judgements=[judged(name, 0, 1, verdict, person=True)], id=name) for name, verdict in VOTES.items()]
    prompts = rated(rows)
    assert len(prompts) == 1
    assert table_of(prompts, "person:anna", "person:carl") == (0, 1, 0)
    assert table_of(prompts, "person:anna", PEOPLE_TOGETHER) == (
        0,
        0,
        1,
    )  # of the others one says so, one the opposite
    assert table_of(prompts, "person:carl", PEOPLE_TOGETHER) == (0, 1, 0)
    tables, coincident = group_tables(prompts, [f"person:{name}" for name in VOTES])
    assert (tables.sum(), tables[0, 0, 2] + tables[0, 2, 0]) == (3, 2)
    assert coincident.sum() == 3  # as many as there are votes


VOTES = {"anna": "left", "bert": "left", "carl": "right"}


def test_scores_of_a_ranker_in_two_rows_are_not_compared() -> None:
    """The margins within each row are; the same row twice, from two files, changes nothing."""
    first = row(0, scores=[3, 2, 1], ranking=[0, 1, 2])
    (twice,) = rated([first, first])
    assert twice.ratings["ranker"].scores == {0: 3, 1: 2, 2: 1}
    others = [{"model": name, "text": name} for name in ("alder", "birch")]
    (both,) = rated([first, row(0, candidates=others, scores=[0, 5], ranking=[1, 0])])
    assert both.ratings["ranker"].scores is None
    assert both.contestants == ["alder", "birch", "cedar", "alder #2", "birch #2"]
    assert len(both.ratings["ranker"].signs) == 3 + 1


def test_equal_texts_are_no_pair() -> None:
    same = [{"model": name, "text": "t", "scores": {"q": value}} for name, value in (("a", 1), ("b", 0))]
    prompts = rated([row(candidates=same, scores=[1, 0], ranking=[0, 1])])
    assert estimate("agreement", paired_ratings(prompts, "ranker", "score:q")).n == 0


def test_slices() -> None:
    slices = RatedPrompts(slice_by=("subset", "level")).add_all([row(0, subset="a"), row(1, subset="b", level=2)])
    assert {values: len(prompts) for values, prompts in slices.slices.items()} == {("a", "None"): 1, ("b", "2"): 1}
    assert (slices.rows, slices.errors) == (2, 0)
