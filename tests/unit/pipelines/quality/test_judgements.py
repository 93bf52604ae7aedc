"""Judgements of rows, from every column that carries them, as outcomes between contestants."""

import json

import pytest

from llm_blender_ray.pipelines.quality.judgements import (
    ARENA_WINNERS,
    CMP_RESULTS,
    DATASET_PREFERENCE,
    MIXINSTRUCT,
    PEOPLE,
    Judgement,
    Outcome,
    read_judgements,
    read_outcomes,
)
from llm_blender_ray.pipelines.rows.schema import read_row


def row(**columns):
    given = {
        "id": "r",
        "instruction": "p",
        "candidates": [{"model": name, "text": name[0]} for name in ("alder", "birch", "cedar")],
        "fused": "f",
        **columns,
    }
    return read_row(given, "test")


def outcomes(one, **options):
    return [(o.judge, o.left, o.right, o.preferred) for o in read_outcomes([one], **options)]


def test_three_columns_become_one_form() -> None:
    one = row(
        judgements=[{"judge": "j", "left": 0, "right": "fused", "preferred": "both_bad"}],
        vote={"left": 1, "right": 0, "preferred": "left", "at": "2026-11-22T12:00:00+00:00"},
        cmp_results={"cedar,alder": "Same good"},
    )
    assert outcomes(one) == [
        ("j", "alder", "blend", "both_bad"),
        (PEOPLE, "birch", "alder", "left"),
        (MIXINSTRUCT, "cedar", "alder", "both_good"),
    ]


@pytest.mark.parametrize(("verdict", "preferred"), CMP_RESULTS.items())
def test_mixinstruct_publishes_its_comparisons_as_json_text(verdict: str, preferred: str) -> None:
    one = row(
        cmp_results=json.dumps({"birch,cedar": verdict, "birch,unknown": verdict, "birch": verdict, "x,y": 1})
    )
    assert outcomes(one) == [(MIXINSTRUCT, "birch", "cedar", preferred)]


def test_a_preference_set_is_a_judgement() -> None:
    given = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_model": "alder", "rejected_model": "birch"}
    texts = [given, given | {name: [{"role": "assistant", "content": name[0]}] for name in ("chosen", "rejected")}]
    for one in texts:
        assert outcomes(read_row(one, "test")) == [(DATASET_PREFERENCE, "alder", "birch", "left")]
    ranked = given | {"candidates": [{"model": "b", "text": "r"}, {"model": "a", "text": "c"}]}
    assert outcomes(read_row(ranked, "test")) == [(DATASET_PREFERENCE, "a", "b", "left")]
    for other in ({"chosen": "another"}, {"rejected": "c"}, {"chosen": 3}, {"rejected": None}):
        assert outcomes(read_row(ranked | other, "test")) == []


@pytest.mark.parametrize(("winner", "preferred"), ARENA_WINNERS.items())
def test_a_winner_is_a_judgement_of_the_judge_beside_it(winner: str, preferred: str) -> None:
    given = {"model_a": "cedar", "model_b": "alder", "winner": winner}
    assert outcomes(row(**given, judge="expert_3")) == [("expert_3", "cedar", "alder", preferred)]
    people = [read_judgements(row(**given, judge=judge))[0].person for judge in ("expert_3", "gpt4_pair", None)]
    assert people == [True, False, True]
    for other in (
        {"winner": "cedar"},
        {"model_a": "alder"},
        {"model_b": "unknown"},
        {"model_b": None},
        {"model_a": [1]},
    ):
        assert read_judgements(row(**given | other)) == []


@pytest.mark.parametrize(
    "judgements",
    [
        "a text",
        [3],
        [{"judge": "j", "left": 0, "right": 0, "preferred": "left"}],
        [{"judge": "j", "left": 0, "right": 7, "preferred": "left"}],
        [{"judge": "j", "left": 0, "right": 1, "preferred": "A"}],
    ],
)
def test_what_is_no_judgement_is_the_users_own(judgements: object) -> None:
    assert read_judgements(row(judgements=judgements, cmp_results="no JSON")) == []


def test_the_rankers_choice_is_a_contestant_beside_the_model_that_wrote_it() -> None:
    judged = [{"judge": "j", "left": 2, "right": 0, "preferred": "right"}]
    assert outcomes(row(judgements=judged, ranking=[2, 0, 1])) == [
        ("j", "cedar", "alder", "right"),
        ("j", "ranker", "alder", "right"),
    ]


def test_rows_with_an_error_and_two_answers_of_one_model_give_no_outcome() -> None:
    judged = [{"judge": "j", "left": 0, "right": 1, "preferred": "left"}]
    assert outcomes(row(judgements=judged, error="why")) == []
    twice = [{"model": "alder", "text": "a"}, {"model": "alder", "text": "b"}]
    assert outcomes(row(judgements=judged, candidates=twice)) == []


def test_slices_texts_and_swapping() -> None:
    judged = [{"judge": "j", "left": 0, "right": 1, "preferred": "left"}]
    (one,) = read_outcomes([row(judgements=judged, category="maths", level=3)], ("category", "level", "none"))
    assert one == Outcome("r", "j", "alder", "birch", "left", "a", "b", ("maths", "3", "None"))
    assert one.swapped() == Outcome("r", "j", "birch", "alder", "right", "b", "a", ("maths", "3", "None"))
    assert one.swapped().swapped() == one
    assert (one.left_wins, one.swapped().left_wins) == (1.0, 0.0)


def test_judgements_read_from_parquet_have_sides_as_json_text() -> None:
    assert Judgement(judge="j", left="0", right="fused", preferred="tie").sides == (0, "fused")
