"""Differences on the same prompts, and their correction."""

import math

import numpy as np
import pytest

from llm_blender_ray.pipelines.quality.bradley_terry import fit_strengths
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.outcome_table import OutcomeTable
from llm_blender_ray.pipelines.quality.paired import (
    Difference,
    correct,
    mean_difference,
    paired_differences,
    strength_differences,
)


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
    assert correct([[difference(0.6), difference(0.7)]])[0][0].p_holm == 1
    assert difference(0.0001).better is None  # not corrected


def test_the_correction_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(40) ** 3
    p[5] = p[7]
    found = [one.p_holm for one in correct([[difference(float(one)) for one in p]])[0]]
    assert found == pytest.approx(multitest.multipletests(p, method="holm")[1].tolist())


def test_few_equal_prompts_prove_nothing() -> None:
    """Three prompts, on each of which a wins two of three: no resample differs, and p is 2 / 2^3, not 0."""
    prompts, shares = np.repeat(np.arange(3), 3), np.tile([1.0, 1.0, 0.0], 3)
    zeros = np.zeros(9, dtype=int)
    outcomes = OutcomeTable(("a", "b"), prompts, zeros, zeros + 1, shares)
    (one,) = strength_differences(fit_strengths(outcomes, resamples=20))
    assert (one.value, one.p) == (pytest.approx(math.log(2), abs=1e-4), 0.25)


def test_a_mean_of_differences_is_tested_by_its_standard_error() -> None:
    """Gains of 0 and 2, twenty each: 1 +- 1.96 x .160; nine equal gains have p = 2 / 2^9, not 0."""
    one = mean_difference("a", "b", Mean.of([0.0, 2.0] * 20))
    assert one is not None
    error = math.sqrt(40 / 39 / 40)
    assert (one.value, one.low, one.high) == pytest.approx((1, 1 - 1.96 * error, 1 + 1.96 * error))
    assert one.p == pytest.approx(math.erfc(1 / error / math.sqrt(2)))
    equal = mean_difference("a", "b", Mean.of([0.5] * 9))
    assert equal is not None and equal.p == 2 / 2**9
    assert mean_difference("a", "b", Mean.of([0.5])) is None
