"""The active choice of pairs: the belief is the model's, the choice is the expected information by brute force."""

import math
from itertools import combinations

import numpy as np
import pytest

from llm_blender_ray.pipelines.campaign.active import Belief, believe, expected_information, most_telling


def votes(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 6, (size, size)).astype(float)
    np.fill_diagonal(wins, 0)
    ties = np.triu(rng.integers(0, 3, (size, size)), 1).astype(float)
    return wins, ties + ties.T


def test_the_belief_maximises_the_posterior() -> None:
    wins, ties = votes(4, 1)

    def loss(strengths: np.ndarray, tie: float) -> float:
        total = float(strengths @ strengths) / 2 + (tie + 1) ** 2 / 2
        for i, j in combinations(range(4), 2):
            d = strengths[i] - strengths[j]
            log_sum = math.log(math.exp(d / 2) + math.exp(tie) + math.exp(-d / 2))
            total -= wins[i, j] * (d / 2 - log_sum) + wins[j, i] * (-d / 2 - log_sum)
            total -= ties[i, j] * (tie - log_sum)
        return total

    belief = believe(wins, ties)
    least = loss(belief.strengths, belief.tie)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert loss(belief.strengths + rng.normal(0, 0.01, 4), belief.tie + rng.normal(0, 0.01)) > least


def test_swapped_contestants_swap_the_belief() -> None:
    wins, ties = votes(5, 2)
    order = [3, 1, 4, 0, 2]
    one, other = believe(wins, ties), believe(wins[np.ix_(order, order)], ties[np.ix_(order, order)])
    np.testing.assert_allclose(other.strengths, one.strengths[order], atol=1e-7)
    np.testing.assert_allclose(other.covariance, one.covariance[np.ix_(order, order)], atol=1e-7)


def test_pending_votes_shrink_the_variance_and_leave_the_strengths() -> None:
    wins, ties = votes(4, 3)
    pending = np.zeros((4, 4))
    pending[0, 1] = pending[1, 0] = 3
    one, other = believe(wins, ties), believe(wins, ties, pending)
    np.testing.assert_array_equal(one.strengths, other.strengths)
    contrast = np.array([1, -1, 0, 0])
    assert contrast @ other.covariance @ contrast < contrast @ one.covariance @ contrast


def test_the_pair_that_is_in_doubt_tells_most() -> None:
    """0 and 1 are far ahead and near each other; the others are known."""
    strengths = np.array([2.0, 1.9, 0.0, -2.0])
    belief = Belief(strengths, -1.0, np.diag([0.2, 0.2, 0.02, 0.02]))
    assert most_telling(belief, list(combinations(range(4), 2))) == [(0, 1)]


def test_expected_information_is_that_of_a_vote_by_integration() -> None:
    """Of two contestants: the mutual information of a vote and the sign of d, by quadrature over d."""
    belief = Belief(np.array([0.15, -0.15]), -1.0, np.diag([0.1, 0.1]))
    (found,) = expected_information(belief, [(0, 1)])
    mean, sd = 0.3, math.sqrt(0.2)
    d = np.linspace(mean - 8 * sd, mean + 8 * sd, 20001)
    density = np.exp(-(((d - mean) / sd) ** 2) / 2)
    density /= density.sum()
    weights = np.stack([np.exp(d / 2), np.full_like(d, math.exp(-1)), np.exp(-d / 2)])
    joint = weights / weights.sum(0) * density
    signs = np.array([[row[d > 0].sum(), row[d <= 0].sum()] for row in joint])
    independent = signs.sum(1, keepdims=True) * signs.sum(0)
    assert found == pytest.approx(float((signs * np.log(signs / independent)).sum()), rel=0.1)


def test_equal_pairs_are_all_returned() -> None:
    belief = Belief(np.zeros(2), -1.0, np.eye(2))
    assert most_telling(belief, [(0, 1), (1, 0)]) == [(0, 1), (1, 0)]
