"""Scores from any set of comparisons.

Arrays are by player (P), or by player with the position bias at the end (Q). `logits_PP[i, j]` is logit(i, j), i
on the left, NaN where not compared; `copies_P` is the number of candidates of a player. A score's scale is the
original's unless stated otherwise: the difference of two scores is an estimate of logit(i, j) - logit(j, i), twice
the margin.

Where a pair was seen in one order only, its margin is the logit less the position bias, which is estimated from all
logits by least squares; where the orders seen can't separate bias from strength, it is taken as 0.
"""

import math
from dataclasses import dataclass

import numpy as np

from llm_blender_ray.configs.strategies import Aggregation

SAME = 1e-9  # what counts as zero in sums of a few numbers of about 1
PRIOR = 1e-2  # precision of Bradley-Terry's prior: a hundredth of a comparison, so that strengths are finite


@dataclass(frozen=True)
class Fit:
    """Least-squares fit of logit(i, j) = strength_i - strength_j + bias + noise.

    Attributes:
        strengths: P, in logits, mean 0 in each connected part of the graph of comparisons.
        covariance: P+1 x P+1, of the strengths and the bias, in units of `noise`.
        noise: Variance of one forward about the fit; None if no pairs remain to estimate it.
        freedom: Remaining pairs, the noise's degrees of freedom.
        parts: Connected parts; strengths of different parts cannot be compared.
    """

    strengths: np.ndarray
    bias: float
    covariance: np.ndarray
    noise: float | None
    freedom: float
    parts: int


def aggregate(kind: Aggregation, logits_PP: np.ndarray, copies_P: np.ndarray) -> np.ndarray:
    """One score per player, higher is better."""
    match kind:
        case "max-logits":
            return max_logits(logits_PP, copies_P)
        case "max-wins":
            return max_wins(logits_PP, copies_P)
        case "borda":
            return borda(logits_PP, copies_P)
        case "least-squares":
            return 2 * least_squares(logits_PP).strengths
        case "bradley-terry":
            return 2 * bradley_terry(logits_PP)


def max_logits(logits_PP: np.ndarray, copies_P: np.ndarray) -> np.ndarray:
    """Mean of logit(i, j) - logit(j, i) over the candidates j that i has met, itself counted as 0.

    With all pairs compared it is llm-blender 0.0.2's `get_scores_from_cmps(policy="max_logits")`.
    """
    margins_PP = margins(logits_PP)
    met_PP = ~np.isnan(margins_PP)
    return np.where(met_PP, 2 * margins_PP, 0) @ copies_P / (copies_P + met_PP @ copies_P)


def max_wins(logits_PP: np.ndarray, copies_P: np.ndarray) -> np.ndarray:
    """Wins on the left, plus wins on the right as a share of all candidates.

    That uneven sum is llm-blender 0.0.2's `get_scores_from_cmps(policy="max_wins")`. Copies of a player are
    compared too where the ranker was asked for it: the diagonal of `logits_PP`.
    """
    against_PP = np.tile(copies_P, (len(copies_P), 1)) - np.eye(len(copies_P), dtype=int)
    left = ((logits_PP > 0) * against_PP).sum(1)
    right = ((logits_PP < 0).T * against_PP).sum(1)
    return left + right / copies_P.sum()


def borda(logits_PP: np.ndarray, copies_P: np.ndarray) -> np.ndarray:
    """Soft Borda count: mean chance of winning, sigmoid(margin), against those met; itself is an even game."""
    margins_PP = margins(logits_PP)
    met_PP = ~np.isnan(margins_PP)
    wins_PP = np.where(met_PP, _sigmoid(np.nan_to_num(margins_PP)), 0)
    return (copies_P / 2 + wins_PP @ copies_P) / (copies_P + met_PP @ copies_P)


def margins(logits_PP: np.ndarray) -> np.ndarray:
    """`margins_PP[i, j]`: how much better i is than j; NaN where they haven't met."""
    met_PP = ~np.isnan(logits_PP)
    one_order = (met_PP & ~met_PP.T).any()
    return _margins(logits_PP, least_squares(logits_PP).bias if one_order else 0.0)


def _margins(logits_PP: np.ndarray, bias: float) -> np.ndarray:
    met_PP = ~np.isnan(logits_PP)
    left_PP = np.where(met_PP, logits_PP - bias, 0)
    orders_PP = met_PP.astype(int) + met_PP.T
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of pairs that haven't met
        margins_PP = (left_PP - left_PP.T) / orders_PP
    np.fill_diagonal(margins_PP, np.nan)
    return margins_PP


def least_squares(logits_PP: np.ndarray) -> Fit:
    """Strengths and position bias from all forwards, each of the same weight.

    The normal equations' matrix is the Laplacian of the comparison graph; on a complete graph the strengths are
    half the max-logits scores, so this carries them over to fewer comparisons. The bias is partialled out (Frisch
    and Waugh 1933). The noise is estimated from margins alone: what both orders of a pair have in common can't
    move a strength. Where several strengths fit as well (parts), the smallest are taken.
    """
    size = len(logits_PP)
    met_PP = ~np.isnan(logits_PP)
    np.fill_diagonal(met_PP, False)
    logits_PP = np.where(met_PP, logits_PP, 0)
    orders_PP = met_PP.astype(float) + met_PP.T
    values_P, vectors_PP = np.linalg.eigh(np.diag(orders_PP.sum(1)) - orders_PP)
    fixed_P = values_P > SAME * max(size, 1)
    inverse_PP = (vectors_PP[:, fixed_P] / values_P[fixed_P]) @ vectors_PP[:, fixed_P].T

    sums_P = logits_PP.sum(1) - logits_PP.sum(0)
    lefts_P = (met_PP.sum(1) - met_PP.sum(0)).astype(float)  # how the bias adds to `sums_P`
    pull_P = inverse_PP @ lefts_P
    apart = met_PP.sum() - lefts_P @ pull_P  # what the strengths can't take of the bias
    biased = apart > SAME * size
    bias = float(logits_PP.sum() - sums_P @ pull_P) / apart if biased else 0.0
    strengths_P = inverse_PP @ (sums_P - bias * lefts_P)
    covariance_QQ = np.zeros((size + 1, size + 1))
    covariance_QQ[:size, :size] = inverse_PP
    if biased:
        with_bias_Q = np.append(-pull_P, 1)
        covariance_QQ += np.outer(with_bias_Q, with_bias_Q) / apart

    parts = size - int(fixed_P.sum())
    pairs, both = int((orders_PP > 0).sum()) // 2, int((orders_PP == 2).sum()) // 2
    lost = (
        1 - 2 * both / apart if biased else 0.0
    )  # to the bias, except for what the sums of both orders give of it
    freedom = pairs - (size - parts) - lost
    margins_PP = np.nan_to_num(_margins(np.where(met_PP, logits_PP, np.nan), bias))
    errors_PP = margins_PP - (strengths_P[:, None] - strengths_P)
    noise = float((orders_PP * errors_PP**2).sum()) / 2 / freedom if freedom > 1 - SAME else None
    return Fit(strengths_P, bias, covariance_QQ, noise, freedom, parts)


def certainty(fit: Fit, top_k: int | None) -> float:
    """At least how likely it is that the `top_k` strongest are that (None, or all: that the order is right).

    One minus the sum of the chances that one of the top and one of the others stand the wrong way round, by
    Student's t; 0 where the noise isn't known or not all can be compared.
    """
    if fit.noise is None or fit.parts > 1:
        return 0.0
    leads_C, variances_C, _, _ = contrasts(fit, top_k)
    errors_C = np.sqrt(np.maximum(fit.noise * variances_C, np.finfo(float).tiny))
    return max(0.0, 1 - sum(_student_t_tail(t, fit.freedom) for t in leads_C / errors_C))


def contrasts(fit: Fit, top_k: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Contrasts to be decided: each of the `top_k` from each of the others, or else neighbours in the order.

    Per contrast (C): the lead in strength, its variance in units of `fit.noise`, the upper and the lower player.
    """
    order = np.argsort(-fit.strengths, kind="stable")
    if top_k is None or top_k >= len(order):
        above_C, below_C = order[:-1], order[1:]
    else:
        above_C, below_C = (seats.ravel() for seats in np.meshgrid(order[:top_k], order[top_k:]))
    variance_Q = fit.covariance.diagonal()
    variances_C = variance_Q[above_C] + variance_Q[below_C] - 2 * fit.covariance[above_C, below_C]
    return fit.strengths[above_C] - fit.strengths[below_C], variances_C, above_C, below_C


def _student_t_tail(t: float, freedom: float) -> float:
    """P(T > t), by the normal approximation 26.7.8 of Abramowitz and Stegun."""
    t = min(t, 1e6)
    normal = t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom))
    return math.erfc(normal / math.sqrt(2)) / 2


def bradley_terry(logits_PP: np.ndarray) -> np.ndarray:
    """Strengths (P) by which i, on the left, wins against j with chance sigmoid(strength_i - strength_j + bias).

    A forward counts as a win by sigmoid(logit). Maximum a posteriori with a weak normal prior, without which one
    a player that always wins would be infinitely strong; Newton's method with halved steps.
    """
    size = len(logits_PP)
    left_M, right_M = (~np.isnan(logits_PP) & ~np.eye(size, dtype=bool)).nonzero()
    wins_M = _sigmoid(logits_PP[left_M, right_M])
    design_MQ = np.zeros((len(left_M), size + 1))
    rows_M = np.arange(len(left_M))
    design_MQ[rows_M, left_M], design_MQ[rows_M, right_M], design_MQ[:, size] = 1, -1, 1

    def loss(strengths_Q: np.ndarray) -> float:
        at_M = design_MQ @ strengths_Q
        return float((np.logaddexp(0, at_M) - wins_M * at_M).sum() + PRIOR / 2 * strengths_Q @ strengths_Q)

    strengths_Q = np.zeros(size + 1)
    for _ in range(100):
        chances_M = _sigmoid(design_MQ @ strengths_Q)
        slope_Q = design_MQ.T @ (chances_M - wins_M) + PRIOR * strengths_Q
        curve_QQ = design_MQ.T * (chances_M * (1 - chances_M)) @ design_MQ + PRIOR * np.eye(size + 1)
        step_Q = np.linalg.solve(curve_QQ, slope_Q)
        if slope_Q @ step_Q < SAME**2:
            break
        here, share = loss(strengths_Q), 1.0
        while share > SAME and loss(strengths_Q - share * step_Q) > here - share * slope_Q @ step_Q / 4:
            share /= 2
        strengths_Q -= share * step_Q
    return strengths_Q[:size]


def falling(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest values, by weighted least squares, that never rise; pools violators (Ayer et al. 1955)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values, weights, strict=True):
        pool = (float(value), float(weight), 1)
        while pools and pools[-1][0] < pool[0]:
            mean, total, count = pools.pop()
            both = total + pool[1]
            pool = ((mean * total + pool[0] * pool[1]) / both, both, count + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
