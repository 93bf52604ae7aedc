"""Aggregations on logits of which any part is known."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llm_blender_ray.actors.tournaments.aggregation import (
    aggregate,
    bradley_terry,
    certainty,
    falling,
    least_squares,
    max_logits,
)
from llm_blender_ray.configs.strategies import Aggregation

KINDS: tuple[Aggregation, ...] = ("max-logits", "max-wins", "borda", "least-squares", "bradley-terry")
SEEDS = st.integers(0, 10_000)


def random_logits(seed: int, size: int, share: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    logits_PP = random.normal(size=(size, size))
    logits_PP[random.random((size, size)) > share] = np.nan
    np.fill_diagonal(logits_PP, np.nan)
    return logits_PP


def forwards(logits_PP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The regression that `least_squares` solves, written out: a row per forward; the last column is the bias."""
    cells = np.argwhere(~np.isnan(logits_PP))
    design = np.zeros((len(cells), len(logits_PP) + 1))
    for row, (i, j) in zip(design, cells, strict=True):
        row[i], row[j], row[-1] = 1, -1, 1
    return design, np.array([logits_PP[i, j] for i, j in cells])


@given(SEEDS, st.integers(1, 9))
def test_least_squares_on_the_complete_graph_is_max_logits(seed: int, size: int) -> None:
    logits_PP = random_logits(seed, size)
    scores_P = aggregate("least-squares", logits_PP, np.ones(size, int))
    np.testing.assert_allclose(scores_P, max_logits(logits_PP, np.ones(size, int)), atol=1e-12)


@given(SEEDS, st.integers(2, 8), st.floats(0.2, 1))
def test_least_squares_fits_the_forwards_best(seed: int, size: int, share: float) -> None:
    logits_PP = random_logits(seed, size, share)
    design, values = forwards(logits_PP)
    assume(len(values))
    fit = least_squares(logits_PP)
    residuals = values - design @ np.append(fit.strengths, fit.bias)
    np.testing.assert_allclose(design[:, :-1].T @ residuals, 0, atol=1e-9)
    if fit.bias:
        assert residuals.sum() == pytest.approx(0, abs=1e-9)


@given(SEEDS, st.integers(2, 8), st.floats(0.5, 1))
def test_variances_are_those_of_the_regression(seed: int, size: int, share: float) -> None:
    logits_PP = random_logits(seed, size, share)
    design, values = forwards(logits_PP)
    fit = least_squares(logits_PP)
    assume(len(values) and fit.parts == 1 and fit.bias)
    inverse = np.linalg.pinv(design.T @ design)
    contrast = np.zeros(size + 1)
    contrast[0], contrast[1] = 1, -1
    mine = fit.covariance[0, 0] + fit.covariance[1, 1] - 2 * fit.covariance[0, 1]
    assert mine == pytest.approx(contrast @ inverse @ contrast)


def test_noise_is_estimated_without_bias() -> None:
    random = np.random.default_rng(0)
    met_PP = random_logits(1, 8, 0.6)
    strengths_P = random.normal(size=8)
    noises = [
        least_squares(
            met_PP * 0 + strengths_P[:, None] - strengths_P + 0.7 + 0.5 * random.normal(size=(8, 8))
        ).noise
        for _ in range(2000)
    ]
    assert np.mean(noises) == pytest.approx(0.25, rel=0.03)  # type: ignore[arg-type]


def test_certainty_is_never_too_sure() -> None:
    random = np.random.default_rng(0)
    met_PP = random_logits(5, 9, 0.5)
    claimed, right = [], []
    for _ in range(2000):
        strengths_P = random.normal(size=9)
        logits_PP = met_PP * 0 + strengths_P[:, None] - strengths_P + 0.4 * random.normal(size=(9, 9))
        fit = least_squares(logits_PP)
        claimed.append(certainty(fit, 3))
        right.append(set(np.argsort(-fit.strengths)[:3]) == set(np.argsort(-strengths_P)[:3]))
    claims, hits = np.array(claimed), np.array(right)
    for low, high in pairwise((0.5, 0.8, 0.9, 0.95, 1.01)):
        here = (claims >= low) & (claims < high)
        assert hits[here].mean() >= claims[here].mean() - 2 / np.sqrt(here.sum())


def test_nothing_is_certain_without_spare_comparisons_or_across_parts() -> None:
    chain_PP = np.full((3, 3), np.nan)
    chain_PP[0, 1], chain_PP[1, 2] = 5.0, 5.0
    assert certainty(least_squares(chain_PP), 1) == 0
    apart_PP = np.full((6, 6), np.nan)
    apart_PP[:3, :3] = apart_PP[3:, 3:] = np.subtract.outer([9.0, 5.0, 1.0], [9.0, 5.0, 1.0])
    assert least_squares(apart_PP).parts == 2
    assert certainty(least_squares(apart_PP), 1) == 0


@given(SEEDS, st.integers(2, 8), st.floats(0.1, 1))
def test_bradley_terry_is_where_the_likelihood_is_flat(seed: int, size: int, share: float) -> None:
    logits_PP = 4 * random_logits(seed, size, share)
    strengths_P = bradley_terry(logits_PP)
    assert np.isfinite(strengths_P).all()
    assert strengths_P.sum() == pytest.approx(0, abs=1e-6)  # the data tell differences only, the prior the rest


def test_bradley_terry_stays_finite_for_one_who_always_wins() -> None:
    order_P = np.arange(5.0)
    logits_PP = 1000 * np.sign(order_P[:, None] - order_P)
    strengths_P = bradley_terry(logits_PP)
    assert np.isfinite(strengths_P).all()
    assert list(np.argsort(strengths_P)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, size=st.integers(1, 7), share=st.floats(0, 1))
def test_scores_go_with_the_seats_and_copies_count_as_if_each_were_compared(
    kind: Aggregation, seed: int, size: int, share: float
) -> None:
    logits_PP = random_logits(seed, size, share)
    copies_P = np.random.default_rng(seed).integers(1, 4, size)
    scores_P = aggregate(kind, logits_PP, copies_P)
    turned = np.roll(np.arange(size), 1)
    np.testing.assert_allclose(
        aggregate(kind, logits_PP[np.ix_(turned, turned)], copies_P[turned]), scores_P[turned], atol=1e-6
    )
    if kind in ("max-logits", "borda"):
        one_by_one = np.repeat(np.arange(size), copies_P)
        expanded = logits_PP[np.ix_(one_by_one, one_by_one)]
        same = one_by_one[:, None] == one_by_one
        np.fill_diagonal(same, False)
        expanded[same] = 0.0  # an even game
        both = ~(np.isnan(logits_PP) ^ np.isnan(logits_PP.T))
        if both.all():  # else the bias is another one
            mine = aggregate(kind, expanded, np.ones(len(one_by_one), int))
            np.testing.assert_allclose(mine, scores_P[one_by_one], atol=1e-12)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 3)), max_size=8), st.lists(st.floats(-5, 5), max_size=8))
def test_falling_is_the_nearest_that_falls(weighted: list[tuple[float, int]], other: list[float]) -> None:
    values, weights = (np.array([pair[k] for pair in weighted], float) for k in (0, 1))
    fitted = falling(values, weights)
    assert (np.diff(fitted) <= 0).all()
    rival = np.sort(np.resize(other or [0.0], len(values)))[::-1]
    assert (weights * (fitted - values) ** 2).sum() <= (weights * (rival - values) ** 2).sum() + 1e-9


def test_nobody_has_no_scores() -> None:
    for kind in KINDS:
        assert aggregate(kind, np.empty((0, 0)), np.empty(0, int)).shape == (0,)
