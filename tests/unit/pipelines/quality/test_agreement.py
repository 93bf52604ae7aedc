"""Agreement statistics: by hand, against the libraries of the field, and resample by resample."""

from itertools import product
from math import isnan, sqrt

import krippendorff
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from statsmodels.stats import inter_rater

from llm_blender_ray.pipelines.quality.agreement import (
    AGREEMENT_STATISTICS,
    AgreementEstimate,
    PairedRatings,
    bootstrapped,
    cohens_kappa,
    coincidences,
    estimate,
    krippendorff_alpha,
    mean_of,
    pair_alpha,
)

ONCE = np.ones((1, 1))
TABLE = np.array([[3.0, 1, 2], [1, 2, 0], [1, 1, 4]])  # verdicts of one rater down, of the other across: -1, 0, 1


def of_table(table: np.ndarray) -> PairedRatings:
    none = np.full((1, 0), np.nan)
    return PairedRatings(table[None], none, none)


def of_ranks(ranks: list[list[float]], others: list[list[float]]) -> PairedRatings:
    return PairedRatings(np.zeros((len(ranks), 3, 3)), np.array(ranks, float), np.array(others, float))


def random_ratings(seed: int, prompts: int = 40, contestants: int = 5) -> PairedRatings:
    rng = np.random.default_rng(seed)
    ranks = rng.integers(1, contestants + 1, (2, prompts, contestants)).astype(float)
    ranks[:, rng.random((prompts, contestants)) < 0.2] = np.nan
    return PairedRatings(rng.integers(0, 4, (prompts, 3, 3)).astype(float), ranks[0], ranks[1])


@pytest.mark.parametrize(
    ("name", "value", "n"),
    [
        ("agreement", 7 / 10, 10),  # 3 + 4 of 3 + 2 + 1 + 4
        ("agreement_half_ties", 8.5 / 13, 13),  # and half of the three pairs on which one has a tie
        ("agreement_with_ties", 9 / 15, 15),
        ("kappa", (18 / 30 - 312 / 900) / (1 - 312 / 900), 15),  # in both orders: 12, 6, 12 down, 11, 8, 11 across
    ],
)
def test_pairwise_statistics_by_hand(name: str, value: float, n: int) -> None:
    found = estimate(name, of_table(TABLE))
    assert (found.value, found.n) == (pytest.approx(value), n)
    assert (found.low, found.high) == (None, None)  # of one prompt


def test_correlations_by_hand() -> None:
    """Two of the contestants' ranks correlate with sqrt(3)/2, the other's with -1/2."""
    ratings = of_ranks([[1, 2, 3], [2, 1, 3], [3, 2, 1]], [[1, 2, 3], [1, 3, 2], [2, 3, 1]])
    found = {name: estimate(name, ratings) for name in ("pearson", "spearman", "footrule", "set_based")}
    assert found["pearson"].value == pytest.approx((sqrt(3) - 0.5) / 3)
    assert found["spearman"].value == pytest.approx((sqrt(3) - 0.5) / 3)
    assert found["footrule"].value == pytest.approx((0 + 4 + 2) / 3)
    assert found["set_based"].value == pytest.approx((1 + 4 / 9 + 7 / 9) / 3)
    assert {one.n for one in found.values()} == {3}


def test_correlations_by_hand_with_ties_at_every_place() -> None:
    ratings = of_ranks([[1, 1, 3, 3], [3, 3, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 1], [1, 1, 3, 3], [3, 3, 1, 1]])
    assert estimate("pearson", ratings).value == pytest.approx(-0.5)
    assert estimate("spearman", ratings).value == pytest.approx(-0.5)
    assert estimate("footrule", ratings).value == pytest.approx((4 + 8 + 4) / 3)
    assert estimate("set_based", ratings).value == pytest.approx((1 + 3 / 8 + 3 / 8) / 3)


def test_a_rater_that_always_ties_has_no_correlation() -> None:
    """A contestant whose rank never varies is left out of the mean; where that is all of them, nothing is left."""
    constant = of_ranks([[1, 1], [1, 1], [1, 1]], [[1, 2], [2, 1], [1, 2]])
    assert estimate("pearson", constant) == AgreementEstimate(None, None, None, 3)
    half = of_ranks([[1, 1], [1, 2], [1, 1]], [[1, 1], [2, 2], [2, 1]])
    assert estimate("spearman", half).value == pytest.approx(1)
    assert (estimate("footrule", constant).value, estimate("set_based", constant).value) == (
        1,
        pytest.approx(2.5 / 3),
    )


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_numpy_and_scipy(seed: int) -> None:
    ratings = random_ratings(seed)
    expected: dict[str, list[float]] = {"pearson": [], "spearman": []}
    for left, right in zip(ratings.ranks.T, ratings.other_ranks.T, strict=True):
        known = ~np.isnan(left)
        expected["pearson"].append(pearsonr(left[known], right[known]).statistic)
        expected["spearman"].append(spearmanr(left[known], right[known]).statistic)
    for name, values in expected.items():
        assert estimate(name, ratings).value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_statsmodels(seed: int) -> None:
    table = random_ratings(seed).tables.sum(axis=0)
    expected = inter_rater.cohens_kappa(table + table[::-1, ::-1], return_results=False)
    assert cohens_kappa(of_table(table), ONCE)[0] == pytest.approx(expected)


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_is_that_of_the_library(level: str) -> None:
    """Four raters, each with gaps; the library gets every pair of answers in both orders."""
    rng = np.random.default_rng(1)
    verdicts = np.clip(rng.normal(rng.normal(0, 1, 60), 0.7, (4, 60)).round(), -1, 1)
    verdicts[rng.random(verdicts.shape) < 0.3] = np.nan
    units = [[(one == value).sum() for value in (-1, 0, 1)] for one in verdicts.T]
    several = np.array([coincidences(np.array(one, float)) for one in units if sum(one) > 1])
    expected = krippendorff.alpha(np.concatenate([verdicts, -verdicts], axis=1), level_of_measurement=level)
    assert krippendorff_alpha(several, np.ones((1, len(several))))[0] == pytest.approx(expected)
    two = verdicts[:2, ~np.isnan(verdicts[:2]).any(axis=0)]
    table = np.array([[((two[0] == a) & (two[1] == b)).sum() for b in (-1, 0, 1)] for a in (-1, 0, 1)], float)
    expected = krippendorff.alpha(np.concatenate([two, -two], axis=1), level_of_measurement=level)
    assert pair_alpha(of_table(table), ONCE)[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", AGREEMENT_STATISTICS)
def test_a_resample_is_its_prompts_repeated(name: str) -> None:
    """All resamples are computed at once; one by one, on rows that are there as often as drawn, is the same."""
    ratings, rng = random_ratings(4), np.random.default_rng(5)
    weights = rng.multinomial(40, np.full(40, 1 / 40), 6).astype(float)
    at_once = AGREEMENT_STATISTICS[name](ratings, weights)
    for counts, value in zip(weights, at_once, strict=True):
        drawn = np.repeat(np.arange(40), counts.astype(int))
        repeated = PairedRatings(ratings.tables[drawn], ratings.ranks[drawn], ratings.other_ranks[drawn])
        assert value == pytest.approx(AGREEMENT_STATISTICS[name](repeated, np.ones((1, 40)))[0])


@pytest.mark.parametrize("name", AGREEMENT_STATISTICS)
def test_statistics_do_not_depend_on_who_is_first_nor_on_the_sides(name: str) -> None:
    ratings = random_ratings(6)
    swapped = PairedRatings(ratings.tables.transpose(0, 2, 1), ratings.other_ranks, ratings.ranks)
    mirrored = PairedRatings(ratings.tables[:, ::-1, ::-1], ratings.ranks, ratings.other_ranks)
    for other in (swapped, mirrored):
        assert estimate(name, other).value == pytest.approx(estimate(name, ratings).value)


@pytest.mark.parametrize(("name", "sign"), [*product(("agreement", "kappa", "pearson", "set_based"), (1, -1))])
def test_full_agreement_is_one(name: str, sign: int) -> None:
    rng = np.random.default_rng(0)
    ranks = np.array([rng.permutation(4) + 1.0 for _ in range(20)])
    table = np.diag([3.0, 0, 3])
    ratings = PairedRatings(np.array([table[::sign]] * 20), ranks, ranks if sign > 0 else 5 - ranks)
    found = estimate(name, ratings)
    least = {"agreement": 0, "kappa": -1, "pearson": -1, "set_based": (0 + 0 + 0.5 + 1) / 4}[name]
    assert found.value == pytest.approx(1 if sign > 0 else least)
    assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_the_interval_of_a_share_is_that_of_its_binomial() -> None:
    tables = np.zeros((400, 3, 3))
    tables[:300, 0, 0] = tables[300:, 0, 2] = 1
    none = np.full((400, 0), np.nan)
    found = estimate("agreement", PairedRatings(tables, none, none))
    half = 1.96 * sqrt(0.75 * 0.25 / 400)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75 - half, 0.75 + half), abs=0.006)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate("spearman", random_ratings(7))
    monkeypatch.setattr("llm_blender_ray.pipelines.quality.agreement._CELLS", 1234)
    assert estimate("spearman", random_ratings(7)) == whole


def test_nothing_in_common_is_undefined() -> None:
    for name in AGREEMENT_STATISTICS:
        empty = PairedRatings(np.zeros((2, 3, 3)), np.full((2, 3), np.nan), np.full((2, 3), np.nan))
        assert estimate(name, empty) == AgreementEstimate(None, None, None, 0)
    assert estimate("agreement", of_table(np.diag([0.0, 5, 0]))).n == 0  # nothing but ties


def test_means_of_slices_by_n_and_equal() -> None:
    large, small = estimate_of(300, 100), estimate_of(10, 10)
    undefined = AgreementEstimate(None, None, None, 3)
    equal, weighted = (mean_of([large, small, undefined], weighted=one) for one in (False, True))
    assert (large.value, small.value) == (0.75, 0.5)
    assert (equal.value, equal.n) == (pytest.approx(0.625), 420)
    assert weighted.value == pytest.approx((0.75 * 400 + 0.5 * 20) / 420)
    assert equal.low is not None and equal.high is not None and weighted.low is not None
    assert equal.low < weighted.low < 0.738 < (weighted.high or 0)  # the small slice has more spread
    assert mean_of([undefined], weighted=True).value is None
    lone = estimate("agreement", of_table(TABLE))
    assert (mean_of([large, lone], weighted=False).value, mean_of([large, lone], weighted=False).low) == (
        pytest.approx(0.725),
        None,
    )


def estimate_of(right: int, wrong: int) -> AgreementEstimate:
    """Of that many prompts with a pair each."""
    tables = np.zeros((right + wrong, 3, 3))
    tables[:right, 0, 0] = tables[right:, 0, 2] = 1
    none = np.full((right + wrong, 0), np.nan)
    return estimate("agreement", PairedRatings(tables, none, none))


def test_resamples_without_a_value_give_no_interval() -> None:
    found = bootstrapped(lambda weights: np.where((weights == 1).all(axis=1), 1.0, np.nan), 50, 50)
    assert (found.value, found.low) == (1, None)
    assert not isnan(found.value or 0)
