"""Active choice of pairs: the next two contestants are those whose vote is expected to tell most about the order.

The model is Davidson's (1970), Bradley-Terry with ties: with d the difference of two strengths, a win of the first
has weight exp(d/2), one of the second exp(-d/2), a tie exp(tie). It is fitted with a normal prior, and its
posterior taken as normal (Laplace). The expected information of a vote (Lindley 1956; for paired comparisons
Glickman and Jensen 2005, Mikhailiuk et al. 2020) is that about which of each two neighbours in the present order is
the stronger: of 11 contestants it finds the order with 2.5 times fewer votes than random pairs (docs/results.md).
Information about the strengths as a whole (D-optimal) took a quarter more votes to half of the orders, and twice as
many to 80%.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

STRENGTH_PRECISION = 1.0  # of the prior: its standard deviation is 1 in logits
TIE_MEAN, TIE_PRECISION = -1.0, 1.0  # of the prior of `tie`
MAX_STEP = 2.0  # of Newton's method, which overshoots from far away
SMALLEST_VARIANCE = 1e-12
RELATIVE_TIE = 1e-9  # information that differs by less is the same, so that rounding never decides
Pairing = tuple[int, int]  # two contestants by index
_RESULTS = np.array([0.5, 0.0, -0.5])  # a win, a tie, a loss: what d is multiplied with
_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True)
class Belief:
    """What votes tell about contestants' strengths.

    Attributes:
        strengths: C, in logits.
        tie: Logarithm of a tie's weight.
        covariance: C x C, of the strengths.
    """

    strengths: np.ndarray
    tie: float
    covariance: np.ndarray

    @property
    def order(self) -> list[int]:
        """Contestants, best first."""
        return [int(one) for one in np.argsort(-self.strengths, kind="stable")]

    def chances(self, design_MC: np.ndarray) -> np.ndarray:
        """3 x M: chances of a win, a tie and a loss of the first of each pair."""
        return _chances(design_MC @ self.strengths, self.tie)


def believe(wins_CC: np.ndarray, ties_CC: np.ndarray, pending_CC: np.ndarray | None = None) -> Belief:
    """Belief by votes.

    Args:
        wins_CC: `wins_CC[i, j]`: how often i was preferred to j.
        ties_CC: How often neither was; symmetric.
        pending_CC: Votes that are being cast; symmetric. They count for the covariance, at their expected
            information, so that annotators who work at once get different pairs.
    """
    size = len(wins_CC)
    first_M, second_M = np.triu_indices(size, 1)
    wins_M, losses_M, ties_M = wins_CC[first_M, second_M], wins_CC[second_M, first_M], ties_CC[first_M, second_M]
    votes_M = wins_M + losses_M + ties_M
    design_MC = _design(list(zip(first_M, second_M, strict=True)), size)
    prior_Q = np.append(np.full(size, STRENGTH_PRECISION), TIE_PRECISION)
    mean_Q = np.append(np.zeros(size), TIE_MEAN)

    def curvature(chances_3M: np.ndarray, counts_M: np.ndarray) -> np.ndarray:
        mean_M, tie_M = _RESULTS @ chances_3M, chances_3M[1]
        with_tie_M = design_MC.T @ (-counts_M * mean_M * tie_M)
        strengths_CC = design_MC.T * (counts_M * _spread(chances_3M)) @ design_MC
        last = np.append(with_tie_M, (counts_M * tie_M * (1 - tie_M)).sum())
        return np.vstack([np.column_stack([strengths_CC, with_tie_M]), last]) + np.diag(prior_Q)

    at_Q = mean_Q.copy()
    for _ in range(100):
        chances_3M = _chances(design_MC @ at_Q[:size], at_Q[size])
        slope_C = design_MC.T @ ((wins_M - losses_M) / 2 - votes_M * (_RESULTS @ chances_3M))
        slope_Q = np.append(slope_C, (ties_M - votes_M * chances_3M[1]).sum()) - prior_Q * (at_Q - mean_Q)
        step_Q = np.linalg.solve(curvature(chances_3M, votes_M), slope_Q)
        at_Q = at_Q + step_Q * min(1.0, MAX_STEP / max(float(np.abs(step_Q).max()), SMALLEST_VARIANCE))
        if np.abs(step_Q).max() < 1e-8:
            break
    counts_M = votes_M if pending_CC is None else votes_M + pending_CC[first_M, second_M]
    chances_3M = _chances(design_MC @ at_Q[:size], at_Q[size])
    covariance_QQ = np.linalg.inv(curvature(chances_3M, counts_M))
    return Belief(at_Q[:size], float(at_Q[size]), covariance_QQ[:size, :size])


def expected_information(belief: Belief, contests: Sequence[Pairing]) -> np.ndarray:
    """Expected information of a vote on each of these pairs, in nats, about the order of neighbours in `order`."""
    size, order = len(belief.strengths), belief.order
    design_MC = _design(contests, size)
    near_KC = _design(list(pairwise(order)), size)
    leads_K = near_KC @ belief.strengths
    spread_K = _variances(near_KC, belief.covariance)
    joint_MK = design_MC @ belief.covariance @ near_KC.T
    chances_3M = belief.chances(design_MC)
    weight_M = _spread(chances_3M)
    shrunk_M = 1 + weight_M * _variances(design_MC, belief.covariance)
    after_MK = spread_K - weight_M[:, None] * joint_MK**2 / shrunk_M[:, None]
    expected_MK = np.zeros_like(joint_MK)
    for result, chance_M in zip(_RESULTS, chances_3M, strict=True):
        surprise_M = (result - _RESULTS @ chances_3M) / shrunk_M
        expected_MK += chance_M[:, None] * _uncertainty(leads_K + surprise_M[:, None] * joint_MK, after_MK)
    return (_uncertainty(leads_K, spread_K) - expected_MK).sum(1)


def most_telling(belief: Belief, contests: Sequence[Pairing]) -> list[Pairing]:
    """Those of the pairs whose vote is expected to tell most: one, or several that tell the same."""
    gains_M = expected_information(belief, contests)
    best = float(gains_M.max())
    return [
        contest for contest, gain in zip(contests, gains_M, strict=True) if gain >= best - RELATIVE_TIE * abs(best)
    ]


def _design(contests: Sequence[Pairing], size: int) -> np.ndarray:
    """A row per pair: 1 for the first, -1 for the second."""
    rows_MC = np.zeros((len(contests), size))
    for at, (first, second) in enumerate(contests):
        rows_MC[at, first], rows_MC[at, second] = 1, -1
    return rows_MC


def _chances(d_M: np.ndarray, tie: float) -> np.ndarray:
    weights_3M = np.stack([d_M / 2, np.full_like(d_M, tie), -d_M / 2])
    weights_3M = np.exp(weights_3M - weights_3M.max(0))
    return weights_3M / weights_3M.sum(0)


def _spread(chances_3M: np.ndarray) -> np.ndarray:
    """Variance of a vote's result: its Fisher information about d (an exponential family)."""
    return _RESULTS**2 @ chances_3M - (_RESULTS @ chances_3M) ** 2


def _variances(design_MC: np.ndarray, covariance_CC: np.ndarray) -> np.ndarray:
    return (design_MC @ covariance_CC * design_MC).sum(1)


def _uncertainty(leads: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Entropy of which one is the stronger, in nats."""
    below = _erfc(leads / np.sqrt(2 * np.maximum(variances, SMALLEST_VARIANCE))).astype(float) / 2
    below = np.clip(below, SMALLEST_VARIANCE, 1 - SMALLEST_VARIANCE)
    return -(below * np.log(below) + (1 - below) * np.log1p(-below))
