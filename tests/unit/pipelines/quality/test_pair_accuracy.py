"""Accuracy on pairs, and an interval that knows whose pairs they are."""

import pytest

from llm_blender_ray.pipelines.quality.pair_accuracy import accuracy_gain, pair_accuracy


def test_a_tie_counts_half_and_a_size_nothing() -> None:
    result = pair_accuracy([0, 0, 1, 1], [0.1, -9.0, 0.0, 1e-9], [1, 1, 1, 1])
    assert result.accuracy == pytest.approx(2.5 / 4)
    assert (result.pairs, result.prompts) == (4, 2)


def test_pairs_of_one_prompt_are_not_more_evidence() -> None:
    """40 prompts with 25 pairs that are right or wrong together: the interval is that of 40 draws, not of 1,000."""
    outcome = [1.0 if prompt % 4 else -1.0 for prompt in range(40)]
    few = pair_accuracy(range(40), outcome, [1.0] * 40)
    many = pair_accuracy(
        [p for p in range(40) for _ in range(25)], [o for o in outcome for _ in range(25)], [1.0] * 1000
    )
    assert many.accuracy == few.accuracy == 0.75
    assert (many.low, many.high) == pytest.approx((few.low, few.high), abs=0.02)
    assert few.low == pytest.approx(0.75 - 1.96 * (0.75 * 0.25 / 40) ** 0.5, abs=0.03)


def test_a_gain_is_paired() -> None:
    """Ten more of the same 100 pairs: each accuracy has an interval of .1 to either side, the gain a narrower."""
    before = [1.0] * 50 + [-1.0] * 50
    after = [1.0] * 60 + [-1.0] * 40
    gain, low, high = accuracy_gain(range(100), before, after, [1.0] * 100)
    assert gain == pytest.approx(0.1)
    assert 0 < low < 0.1 < high < 0.2
    assert accuracy_gain(range(100), before, before, [1.0] * 100) == (0, 0, 0)
    assert accuracy_gain(range(100), after, before, [1.0] * 100)[0] == pytest.approx(-0.1)
