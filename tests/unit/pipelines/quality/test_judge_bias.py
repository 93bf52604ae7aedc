"""Biases of judges, against figures by hand, and of simulated judges with a known bias."""

import json
import math
import random
from typing import Any

import pytest

from llm_blender_ray.pipelines.quality.judge_bias import bias_table, judge_bias
from llm_blender_ray.pipelines.quality.judgements import RANKER_CONTESTANT, Outcome, Preferred

TEXTS = {"a": "a" * 8, "b": "b" * 4, "c": "c" * 2}


def outcome(left: str, right: str, preferred: Preferred, row: int = 0, judge: str = "j", **texts: str) -> Outcome:
    shown = TEXTS | texts
    return Outcome(str(row), judge, left, right, preferred, shown[left], shown[right])


def only(*outcomes: Outcome, **options: Any) -> dict[str, Any]:
    (found,) = judge_bias(outcomes, **options)
    return found


def test_a_judge_that_takes_the_left_side_is_never_consistent() -> None:
    found = only(*(outcome(*pair, "left", row) for row in range(20) for pair in (("a", "b"), ("b", "a"))))
    position = found["position"]
    assert (position["pairs"], position["left_twice"], position["right_twice"]) == (20, 20, 0)
    assert (position["consistent"]["share"], position["left"]["share"]) == (0, 1)
    low, high = position["consistent"]["interval"]
    assert low == 0 and 0.1 < high < 0.2  # Wilson's for 0 of 20
    assert found["length"]["longer"]["share"] == 0.5


def test_verdicts_of_both_orders_by_hand() -> None:
    found = only(
        outcome("a", "b", "left"),
        outcome("b", "a", "right"),  # the same
        outcome("a", "c", "both_good"),
        outcome("c", "a", "both_bad"),  # not the same
        outcome("b", "c", "right", 1),
        outcome("c", "b", "right", 1),  # the right side twice
        outcome("a", "b", "left", 1),  # in one order only
    )["position"]
    assert (found["pairs"], found["left_twice"], found["right_twice"]) == (3, 0, 1)
    assert found["consistent"]["share"] == pytest.approx(1 / 3)
    assert found["left"]["share"] == pytest.approx(1 / 4)


def test_equal_texts_and_the_rankers_second_outcome_are_left_out() -> None:
    same = outcome("a", "b", "left", b=TEXTS["a"])
    twin = Outcome("0", "j", RANKER_CONTESTANT, "b", "left", TEXTS["a"], TEXTS["b"])
    assert judge_bias([same, twin]) == []


def test_a_judge_that_prefers_its_own_answers_does_so_against_the_other_judges() -> None:
    outcomes = []
    for row in range(30):
        outcomes += [outcome("a", "b", "left", row, "a"), outcome("b", "a", "right", row, "a")]
        fair: Preferred = "left" if row % 3 == 0 else "right"
        outcomes += [outcome("a", "b", fair, row, "other"), outcome("b", "c", "left", row, "other")]
    a, other = judge_bias(outcomes)
    own = a["self_preference"]
    assert (own["contestants"], own["shared_pairs"], own["rate"]["share"]) == (["a"], 30, 1)
    assert own["others_rate"] == pytest.approx(1 / 3)
    assert own["difference"]["mean"] == pytest.approx(2 / 3)
    # of 30 independent values with variance 2/9: 1.96 * sqrt(2/9 / 29)
    half = 1.959964 * math.sqrt(2 / 9 / 29)
    assert own["difference"]["interval"] == pytest.approx([2 / 3 - half, 2 / 3 + half])
    assert other["self_preference"] is None
    family = judge_bias(outcomes, {"other": ("b",)})[1]["self_preference"]
    assert family["difference"]["mean"] == pytest.approx(2 / 3)


def test_alone_a_judge_has_a_rate_of_its_own_and_no_difference() -> None:
    own = only(outcome("j", "a", "left", j="j" * 3))["self_preference"]
    assert (own["rate"]["share"], own["shared_pairs"], own["difference"]) == (1, 0, None)


def test_more_verdicts_of_the_same_rows_do_not_narrow_an_interval() -> None:
    def bounds(copies: int) -> list[float]:
        outcomes = []
        for row in range(25):
            for copy in range(copies):
                texts = {"a": "a" * (8 + copy), "b": "b" * (3 + copy)}
                outcomes.append(outcome("a", "b", "left" if row % 2 else "right", row, **texts))
        found: list[float] = only(*outcomes)["length"]["longer"]["interval"]
        return found

    assert bounds(1) == pytest.approx(bounds(6), abs=0.005)


@pytest.mark.parametrize("slope", [0.0, 0.8])
def test_a_simulated_length_bias_is_found(slope: float) -> None:
    draw, outcomes = random.Random(1), []
    for number in range(3000):
        texts = {"a": "a" * draw.randint(20, 400), "b": "b" * draw.randint(20, 400)}
        odds = 0.4 + slope * math.log2(len(texts["a"]) / len(texts["b"]))
        preferred: Preferred = "left" if draw.random() < 1 / (1 + math.exp(-odds)) else "right"
        outcomes.append(outcome("a", "b", preferred, number // 3, **texts))
    found = only(*outcomes)["length"]
    low, high = found["slope"]["interval"]
    assert low < slope < high and high - low < 0.25
    assert (found["longer"]["interval"][0] > 0.5) == bool(slope)


def test_a_slope_needs_verdicts_that_differ() -> None:
    assert only(*(outcome("a", "b", "left", row) for row in range(50)))["length"]["slope"] is None


def test_figures_are_json_and_a_table() -> None:
    found = judge_bias(outcome(*pair, "left", row) for row in range(3) for pair in (("a", "b"), ("b", "a")))
    assert json.loads(json.dumps(found)) == found
    assert bias_table(found).row_count == 1
