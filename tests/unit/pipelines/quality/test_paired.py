"""Differences on the same prompts, and their correction."""

import math

import numpy as np
import pytest

from llm_blender_ray.pipelines.quality.paired import Difference, correct, paired_differences


def test_the_p_value_is_the_share_of_exchanges_that_differ_as_much() -> None:
    """Four prompts with a lead of 1 each: of 16 exchanges of sides the 2 that keep all signs equal do: p = 1/8."""
    values = np.array([[1.0, 0.0]] * 4)
    (one,) = paired_differences(values, ["a", "b"])
    assert (one.first, one.second, one.value) == ("a", "b", 1.0)
    assert one.p == pytest.approx(1 / 8, abs=0.01)


def test_prompts_that_one_system_lacks_do_not_count() -> None:
    values = np.array([[1.0, 0.0, np.nan], [3.0, 1.0, np.nan], [9.0, np.nan, np.nan]])
    (one,) = paired_differences(values, ["a", "b", "c"])
    assert one.value == 1.5  # of 1 and 2
    half = 1.96 * math.sqrt(0.5 / 2)  # their variance is 1/2
    assert (one.low, one.high) == pytest.approx((1.5 - half, 1.5 + half))


def difference(p: float, value: float = 1.0) -> Difference:
    return Difference("a", "b", value, 0.0, 0.0, p)


def test_holms_correction_is_over_all_tables() -> None:
    """Sorted .01, .03, .04 times 3, 2, 1 is .03, .06, .04, and the last is no less than the one before."""
    first, second = correct([[difference(0.01), difference(0.04)], [difference(0.03, -1.0)]])
    assert [one.p_holm for one in (*first, *second)] == pytest.approx([0.03, 0.06, 0.06])
    assert [one.better for one in (*first, *second)] == ["a", None, None]
    assert correct([[difference(0.01, -1.0)]])[0][0].better == "b"
    assert correct([[]]) == [[]]
    assert difference(0.0001).better is None  # not corrected
