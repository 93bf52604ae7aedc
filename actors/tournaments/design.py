"""Designs of comparisons: regular graphs for the first round, and the most informative additions to it."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llm_blender_ray.actors.tournaments.aggregation import Fit, contrasts
from llm_blender_ray.actors.tournaments.board import Pair


def most_informative(
    fit: Fit, pairs: Sequence[Pair], top_k: int | None, count: int, *, both_orders: bool
) -> list[Pair]:
    """`count` of the pairs, by turns the one that takes most off the expected loss of a wrong top k.

    The loss is the sum over `contrasts` of how much stronger the one below is, if so. Its expectation falls with
    the variance of a contrast, by density(lead / sd) / (2 sd) for each unit (linear loss, Chick and Inoue 2001).
    These weights stay as they are within a round, so what a pair takes off is a quadratic form of the covariance,
    which every choice updates.
    """
    noise = fit.strengths.var() if fit.noise is None else fit.noise
    leads_C, variances_C, above_C, below_C = contrasts(fit, top_k)
    squares_C = np.maximum(noise * variances_C, np.finfo(float).tiny)
    exponents_C = np.minimum(leads_C**2 / 2, 700 * squares_C) / squares_C  # without noise it would overflow
    weights_C = np.exp(-exponents_C) / np.sqrt(np.maximum(variances_C, np.finfo(float).tiny))
    open_CQ = _differences(np.column_stack([above_C, below_C]), len(fit.covariance))
    worth_QQ = open_CQ.T * weights_C @ open_CQ

    design_MQ = _differences(np.array(pairs, dtype=int).reshape(-1, 2), len(fit.covariance))
    if both_orders:
        design_MQ *= np.sqrt(2)  # two forwards whose mean is free of the bias
    else:
        design_MQ[:, -1] = 1
    covariance_QQ = fit.covariance
    left, chosen = np.ones(len(pairs), dtype=bool), []
    for _ in range(min(count, len(pairs))):
        effect_MQ = design_MQ @ covariance_QQ
        spread_M = 1 + (effect_MQ * design_MQ).sum(1)
        gain_M = (effect_MQ @ worth_QQ * effect_MQ).sum(1) / spread_M
        best = int(np.where(left, gain_M, -1).argmax())
        covariance_QQ = covariance_QQ - np.outer(effect_MQ[best], effect_MQ[best]) / spread_M[best]
        left[best] = False
        chosen.append(pairs[best])
    return chosen


def _differences(pairs_M2: np.ndarray, width: int) -> np.ndarray:
    """A row per pair: 1 for the first, -1 for the second."""
    rows_MQ = np.zeros((len(pairs_M2), width))
    rows_M = np.arange(len(pairs_M2))
    rows_MQ[rows_M, pairs_M2[:, 0]], rows_MQ[rows_M, pairs_M2[:, 1]] = 1, -1
    return rows_MQ


@lru_cache(maxsize=256)
def _offsets(n: int, degree: int) -> tuple[int, ...]:
    """Offsets of the circulant graph that meets `degree` others, each chosen to leave the least variance.

    The eigenvalues of its Laplacian are sums of 2 - 2 cos(2 pi t offset / n), and the variance of a difference of
    two strengths is on average proportional to the sum of their inverses.
    """
    values_T = np.zeros(n - 1)
    offsets: list[int] = []
    for _ in range(degree // 2):
        added = {
            offset: values_T + 2 - 2 * np.cos(2 * np.pi * offset * np.arange(1, n) / n)
            for offset in range(1, (n - 1) // 2 + 1)
            if offset not in offsets
        }
        best = min(added, key=lambda offset: (round(float((1 / np.maximum(added[offset], 1e-9)).sum()), 9), offset))
        offsets.append(best)
        values_T = added[best]
    return tuple(offsets)


def circulant(n: int, degree: int) -> list[Pair]:
    """Pairs in which each of n meets `degree` others (even, or n-1), half on the left and half on the right.

    The graph is connected; where degree is n-1 and n even, one more or one less is on the left.
    """
    if degree < n - 1:
        return [(i, (i + offset) % n) for offset in _offsets(n, degree) for i in range(n)]
    around = [(i, (i + offset) % n) for offset in range(1, (n - 1) // 2 + 1) for i in range(n)]
    across = [(i, i + n // 2) for i in range(n // 2)] if n % 2 == 0 else []
    return around + across
