"""Which comparisons tell most: regular graphs, and the choice of what to add."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.tournaments.aggregation import contrasts, least_squares
from llm_blender_ray.actors.tournaments.board import Pair
from llm_blender_ray.actors.tournaments.design import circulant, most_informative


@given(st.integers(0, 24), st.sampled_from([2, 4, 6, 10]))
def test_a_regular_graph_is_connected_and_balanced(n: int, degree: int) -> None:
    pairs = circulant(n, degree)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == n * min(degree, n - 1) // 2 if n else not pairs
    lefts, rights = (np.bincount([pair[side] for pair in pairs], minlength=n) for side in (0, 1))
    assert (lefts + rights == min(degree, n - 1)).all()
    assert (abs(lefts - rights) <= (1 if degree >= n - 1 and n % 2 == 0 else 0)).all()
    logits_PP = np.full((n, n), np.nan)
    for pair in pairs:
        logits_PP[pair] = 0.0
    assert least_squares(logits_PP).parts == min(n, 1)


def test_offsets_are_chosen_for_the_least_variance() -> None:
    def variance(offsets: tuple[int, int]) -> float:
        logits_PP = np.full((16, 16), np.nan)
        for offset in offsets:
            for i in range(16):
                logits_PP[i, (i + offset) % 16] = 0.0
        return float(least_squares(logits_PP).covariance[:16, :16].trace())

    chosen = {(j - i) % 16 for i, j in circulant(16, 4)}
    assert variance(tuple(chosen)) == pytest.approx(min(variance((1, other)) for other in range(2, 8)))


def information(logits_PP: np.ndarray) -> np.ndarray:
    size = len(logits_PP)
    total_QQ = np.zeros((size + 1, size + 1))
    for i, j in np.argwhere(~np.isnan(logits_PP)):
        total_QQ += forward(size, (i, j))
    return total_QQ


def forward(size: int, pair: Pair) -> np.ndarray:
    row_Q = np.zeros(size + 1)
    row_Q[pair[0]], row_Q[pair[1]], row_Q[size] = 1, -1, 1
    return np.outer(row_Q, row_Q)


@given(st.integers(0, 10_000), st.none() | st.integers(1, 4), st.booleans())
def test_every_choice_takes_off_most_of_the_expected_loss(seed: int, top_k: int | None, both_orders: bool) -> None:
    random, size = np.random.default_rng(seed), 7
    logits_PP = np.full((size, size), np.nan)
    for pair in circulant(size, 4):
        logits_PP[pair] = random.normal()
    fit = least_squares(logits_PP)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j and np.isnan(logits_PP[i, j])]
    if both_orders:
        pairs = [(i, j) for i, j in pairs if i < j]
    chosen = most_informative(fit, pairs, top_k, 3, both_orders=both_orders)
    assert len(set(chosen)) == 3 and set(chosen) <= set(pairs)

    leads_C, variances_C, above_C, below_C = contrasts(fit, top_k)
    weights_C = np.exp(-(leads_C**2) / 2 / (fit.noise * variances_C)) / np.sqrt(variances_C)
    known_QQ = information(logits_PP)

    def loss(added: list[Pair]) -> float:
        more = [pair for i, j in added for pair in (((i, j), (j, i)) if both_orders else ((i, j),))]
        covariance_QQ = np.linalg.pinv(known_QQ + sum(forward(size, pair) for pair in more))
        spread_C = covariance_QQ[above_C, above_C] + covariance_QQ[below_C, below_C]
        return float(weights_C @ (spread_C - 2 * covariance_QQ[above_C, below_C]))

    for number in range(3):
        best = min(loss([*chosen[:number], pair]) for pair in pairs if pair not in chosen[:number])
        assert loss(chosen[: number + 1]) == pytest.approx(best)
