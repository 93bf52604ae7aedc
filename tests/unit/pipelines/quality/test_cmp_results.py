"""MixInstruct's comparisons: written in the order of names, and read back."""

import json
from itertools import product

import pytest

from llm_blender_ray.pipelines.quality.cmp_results import cmp_results_text, read_pairs
from llm_blender_ray.pipelines.quality.judgements import MIXINSTRUCT, read_judgements
from llm_blender_ray.pipelines.rows.schema import read_row

CANDIDATES = [{"model": name, "text": name} for name in ("vicuna", "alpaca", None, "koala")]


def written(*pairs):
    return json.loads(cmp_results_text(CANDIDATES, pairs) or "{}")


def test_pairs_are_in_the_order_of_names_and_both_orders_make_one_verdict() -> None:
    assert written((0, 1, "left"), (1, 0, "right"), (3, 1, "both_bad"), (1, 3, "both_bad")) == {
        "alpaca,vicuna": "B is better",
        "alpaca,koala": "Same bad",
    }
    assert list(written((0, 3, "left"), (3, 1, "left"), (1, 0, "left"))) == [
        "alpaca,koala",
        "alpaca,vicuna",
        "koala,vicuna",
    ]


@pytest.mark.parametrize(
    ("forth", "back", "expected"),
    [
        ("left", "tie", "B is better"),  # alpaca is A, and right here
        ("left", "left", "Same good"),
        ("both_good", "both_bad", "Same good"),
        ("tie", "both_bad", "Same bad"),
        ("tie", "tie", "Same good"),
    ],
)
def test_contradictions_are_the_same(forth, back, expected) -> None:
    assert written((0, 1, forth), (1, 0, back)) == {"alpaca,vicuna": expected}


def test_answers_without_a_name_have_no_pair() -> None:
    assert cmp_results_text(CANDIDATES, [(0, "fused", "left"), (2, 0, "left"), (0, 0, "tie")]) in (
        None,
        '{"vicuna,vicuna": "Same good"}',
    )
    assert cmp_results_text(CANDIDATES, [(0, "fused", "left"), (2, 0, "left")]) is None


def test_what_is_written_reads_back() -> None:
    for one in product(("left", "right", "both_good", "both_bad"), repeat=2):
        text = cmp_results_text(CANDIDATES, [(1, 0, one[0]), (1, 3, one[1])])
        assert {(i, j): preferred for i, j, preferred in read_pairs(text, CANDIDATES)} == {
            (1, 0): one[0],
            (1, 3): one[1],
        }


def test_a_copy_of_a_judges_verdicts_counts_once() -> None:
    judged = {"judge": "gpt", "left": 0, "right": 1, "preferred": "left", "comment": "other keys are ignored"}
    given = {
        "instruction": "p",
        "candidates": CANDIDATES,
        "cmp_results": '{"alpaca,vicuna": "B is better"}',
        "cmp_results_judge": "gpt",
    }
    row = read_row(given | {"judgements": [judged]}, "test")
    assert [one.judge for one in read_judgements(row)] == ["gpt"]
    alone = read_row(given, "test")
    assert [(one.judge, one.left, one.preferred) for one in read_judgements(alone)] == [("gpt", 1, "right")]
    published = read_row({name: given[name] for name in given if name != "cmp_results_judge"}, "test")
    assert [one.judge for one in read_judgements(published)] == [MIXINSTRUCT]
