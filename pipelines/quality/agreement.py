"""Agreement of two raters, each statistic with a bootstrap interval over prompts.

Every statistic is a function of how often each prompt was drawn, for all resamples at once; libraries compute one
resample at a time, which takes minutes for a matrix of raters. Tests hold kappa and alpha equal to statsmodels and
krippendorff, and the four correlations to the arithmetic of `gpt_eval/cor_eval.py` in llm-blender 0.0.2.

Shape suffixes: B resamples, N prompts, C contestants, V the three verdicts (worse, tie, better).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[["PairedRatings", Array], Array]
BOOTSTRAP_RESAMPLES = 1000
_CELLS = 2**22  # of one block of resamples x prompts: 32 MiB
_VERDICTS = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True, slots=True)
class PairedRatings:
    """Verdicts of two raters on the same pairs of answers, and their ranks of the same answers, by prompt.

    Attributes:
        tables: N x V x V, number of pairs by the verdict of the first rater and of the second.
        ranks: N x C, ranks by the first rater, 1 is the best; NaN where one of the two ranks nothing.
        other_ranks: N x C, ranks of the same answers by the second.
    """

    tables: Array
    ranks: Array
    other_ranks: Array


@dataclass(frozen=True, slots=True)
class AgreementEstimate:
    """A statistic with its 95% interval.

    Attributes:
        value: None where it is undefined, as a correlation with a constant.
        low: Lower end, by bootstrap over prompts (percentiles); None for less than two prompts.
        high: Upper end.
        n: Pairs of answers that a pairwise statistic counts, prompts that a statistic of ranks counts.
        draws: B values of the resamples, NaN where undefined; empty where there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    draws: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @classmethod
    def of(cls, value: float, draws_B: Array, n: int) -> Self:
        """Estimate with the interval of its draws."""
        if not np.isfinite(value):
            return cls(None, None, None, n)
        defined = draws_B[np.isfinite(draws_B)]
        if not len(defined):
            return cls(value, None, None, n)
        low, high = np.quantile(defined, (0.025, 0.975))
        return cls(value, float(low), float(high), n, draws_B)

    def report(self) -> dict[str, Any]:
        """The estimate as plain data."""
        return {"value": self.value, "interval": None if self.low is None else [self.low, self.high], "n": self.n}


def mean_of(estimates: Sequence[AgreementEstimate], *, weighted: bool) -> AgreementEstimate:
    """Mean of the estimates of slices that share no prompt; undefined ones are left out.

    Args:
        estimates: Of the same statistic, with independent draws.
        weighted: Weighted by `n`; else every slice counts the same.
    """
    known = [one for one in estimates if one.value is not None]
    n = sum(one.n for one in known)
    if not known:
        return AgreementEstimate(None, None, None, n)
    weights = [one.n if weighted else 1 for one in known]
    values = [one.value for one in known if one.value is not None]
    if any(not len(one.draws) for one in known):  # a slice of one prompt has no spread of its own
        return AgreementEstimate(float(np.average(values, weights=weights)), None, None, n)
    draws_S_B = np.stack([one.draws for one in known])
    weights_S_B = np.where(np.isfinite(draws_S_B), np.array(weights, dtype=np.float64)[:, None], 0)
    means = (np.where(weights_S_B > 0, draws_S_B, 0) * weights_S_B).sum(axis=0)
    return AgreementEstimate.of(
        float(np.average(values, weights=weights)), means / _positive(weights_S_B.sum(axis=0)), n
    )


def decided_agreement(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Share of pairs with the same preference, of those on which both raters have one."""
    return _share(_counted(ratings, weights_B_N), [[1, 0, 0], [0, 0, 0], [0, 0, 1]], _PREFERRED)


def agreement_half_ties(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """The same of pairs on which at least one rater has a preference; a tie of the other is half right."""
    right = [[1, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 1]]
    return _share(_counted(ratings, weights_B_N), right, _PREFERRED_BY_ONE)


def agreement_with_ties(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Share of all pairs with the same verdict; a tie is a verdict that agrees with nothing but a tie."""
    return _share(_counted(ratings, weights_B_N), np.eye(3), np.ones((3, 3)))


def cohens_kappa(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Cohen's kappa of the three verdicts.

    Each pair counts in both orders, so that the value does not depend on which of its answers is named first.
    """
    table = _counted(ratings, weights_B_N)
    share = (table + table[:, ::-1, ::-1]) / _positive(2 * table.sum(axis=(1, 2)))[:, None, None]
    observed = np.trace(share, axis1=1, axis2=2)
    expected = (share.sum(axis=2) * share.sum(axis=1)).sum(axis=1)
    return (observed - expected) / _positive(1 - expected)


def pair_alpha(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Krippendorff's alpha of two raters; see `krippendorff_alpha`."""
    return krippendorff_alpha(ratings.tables + ratings.tables.transpose(0, 2, 1), weights_B_N)


def krippendorff_alpha(coincidences_N_V_V: Array, weights_B_N: Array) -> Array:
    """Krippendorff's alpha with the ordinal metric: a tie is half as far from a preference as its opposite.

    Each pair counts in both orders, as in `cohens_kappa`; the ordinal metric is then the interval metric.

    Args:
        coincidences_N_V_V: See `coincidences`.
        weights_B_N: How often each prompt was drawn.
    """
    summed = _summed(coincidences_N_V_V, weights_B_N)
    summed = summed + summed[:, ::-1, ::-1]
    distance = (_VERDICTS[:, None] - _VERDICTS) ** 2
    marginal = summed.sum(axis=2)
    expected = np.einsum("bi,bj,ij->b", marginal, marginal, distance)
    observed = (summed * distance).sum(axis=(1, 2))
    return 1 - (marginal.sum(axis=1) - 1) * observed / _positive(expected)


def coincidences(counts_V: Array) -> Array:
    """Coincidence matrix of one pair of answers (Krippendorff 2011).

    Args:
        counts_V: How many raters gave each verdict, at least two raters.
    """
    return (np.outer(counts_V, counts_V) - np.diag(counts_V)) / (counts_V.sum() - 1)


def pearson(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Correlation of a contestant's ranks over prompts, mean over contestants.

    A contestant whose rank never varies has none and is left out; the original's mean is NaN then.
    """
    return _by_contestant(ratings, weights_B_N, lambda x_N, weights: np.broadcast_to(x_N, weights.shape))


def spearman(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Rank correlation of a contestant's ranks over prompts, mean over contestants; see `pearson`."""
    return _by_contestant(ratings, weights_B_N, _centred_ranks)


def spearman_footrule(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Sum of the absolute differences of a prompt's ranks, mean over prompts; 0 is the best."""
    return _mean_of_prompts(np.abs(ratings.ranks - ratings.other_ranks), weights_B_N, np.nansum)


def set_correlation(ratings: PairedRatings, weights_B_N: Array) -> Array:
    """Jaccard similarity of the sets of a prompt's k best answers, mean over every k and over prompts.

    Equal ranks are ordered as the answers are.
    """
    similar_N_C = np.full(ratings.ranks.shape, np.nan)
    for row, (ranks, others) in enumerate(zip(ratings.ranks, ratings.other_ranks, strict=True)):
        known = np.flatnonzero(~np.isnan(ranks))
        orders = [known[np.argsort(one[known], kind="stable")].tolist() for one in (ranks, others)]
        for k in range(1, len(known) + 1):
            common = len({*orders[0][:k]} & {*orders[1][:k]})
            similar_N_C[row, k - 1] = common / (2 * k - common)
    return _mean_of_prompts(similar_N_C, weights_B_N, np.nanmean)


PAIRWISE: dict[str, Statistic] = {
    "agreement": decided_agreement,
    "agreement_half_ties": agreement_half_ties,
    "agreement_with_ties": agreement_with_ties,
    "kappa": cohens_kappa,
    "alpha": pair_alpha,
}
OF_RANKS: dict[str, Statistic] = {
    "pearson": pearson,
    "spearman": spearman,
    "footrule": spearman_footrule,
    "set_based": set_correlation,
}
AGREEMENT_STATISTICS = PAIRWISE | OF_RANKS
_PREFERRED = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]])
_PREFERRED_BY_ONE = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
_COUNTED = {"agreement": _PREFERRED, "agreement_half_ties": _PREFERRED_BY_ONE}


def estimate(name: str, ratings: PairedRatings, *, seed: int = 0) -> AgreementEstimate:
    """Estimate a statistic of `AGREEMENT_STATISTICS`."""
    if name in PAIRWISE:
        pairs_N = (ratings.tables * _COUNTED.get(name, 1)).sum(axis=(1, 2))
        n = round(pairs_N.sum())
        used = pairs_N > 0
    else:
        used = ~np.isnan(ratings.ranks).all(axis=1)
        n = int(used.sum())
    some = PairedRatings(ratings.tables[used], ratings.ranks[used], ratings.other_ranks[used])
    return bootstrapped(lambda weights: AGREEMENT_STATISTICS[name](some, weights), int(used.sum()), n, seed)


def bootstrapped(
    statistic: Callable[[Array], Array], prompts: int, n: int, seed: int = 0, resamples: int = BOOTSTRAP_RESAMPLES
) -> AgreementEstimate:
    """Estimate a statistic with its interval.

    Args:
        statistic: Of how often each prompt was drawn, resamples x prompts; NaN where it is undefined.
        prompts: Number of prompts.
        n: What `AgreementEstimate.n` is.
        seed: Of the bootstrap.
        resamples: Draws of as many prompts, with replacement.
    """
    if not prompts:
        return AgreementEstimate(None, None, None, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.ones((1, prompts)))[0])
        if prompts < 2 or not np.isfinite(value):
            return AgreementEstimate.of(value, np.empty(0), n)
        drawn = [statistic(weights) for weights in _resamples(prompts, resamples, seed)]
    return AgreementEstimate.of(value, np.concatenate(drawn), n)


def _resamples(prompts: int, count: int, seed: int) -> Iterator[Array]:
    rng, share = np.random.default_rng(seed), np.full(prompts, 1 / prompts)
    at_once = max(1, _CELLS // prompts)
    for done in range(0, count, at_once):
        yield rng.multinomial(prompts, share, min(at_once, count - done)).astype(np.float64)


def _summed(tables_N_V_V: Array, weights_B_N: Array) -> Array:
    flat: Array = weights_B_N @ tables_N_V_V.reshape(len(tables_N_V_V), -1)
    return flat.reshape(-1, 3, 3)


def _counted(ratings: PairedRatings, weights_B_N: Array) -> Array:
    return _summed(ratings.tables, weights_B_N)


def _share(table_B_V_V: Array, right: Any, counted: Any) -> Array:
    return (table_B_V_V * right).sum(axis=(1, 2)) / _positive((table_B_V_V * counted).sum(axis=(1, 2)))


def _positive(divisor: Array) -> Array:
    """The divisor, NaN where it is 0 but for rounding: the quotient is undefined then."""
    return np.where(divisor > 1e-12, divisor, np.nan)


def _mean_of_prompts(values_N_C: Array, weights_B_N: Array, combine: Callable[..., Any]) -> Array:
    """Mean over the prompts that have ranks."""
    ranked = ~np.isnan(values_N_C).all(axis=1)
    of_prompt: Array = combine(values_N_C[ranked], axis=1)
    weights = weights_B_N[:, ranked]
    return (weights @ of_prompt) / _positive(weights.sum(axis=1))


def _by_contestant(ratings: PairedRatings, weights_B_N: Array, transform: Callable[[Array, Array], Array]) -> Array:
    """Mean over contestants of the correlation of transformed ranks."""
    found = []
    for ranks_N, others_N in zip(ratings.ranks.T, ratings.other_ranks.T, strict=True):
        known = ~np.isnan(ranks_N)
        if known.any():
            weights = weights_B_N[:, known]
            found.append(
                _correlation(transform(ranks_N[known], weights), transform(others_N[known], weights), weights)
            )
    if not found:
        return np.full(len(weights_B_N), np.nan)
    of_each = np.stack(found)
    defined = np.isfinite(of_each)
    mean: Array = np.where(defined, of_each, 0).sum(axis=0) / _positive(defined.sum(axis=0))
    return mean


def _correlation(x_B_N: Array, y_B_N: Array, weights_B_N: Array) -> Array:
    """Weighted Pearson correlation, row by row. Ranks are multiples of 1/2: no variance is exactly 0."""
    count = weights_B_N.sum(axis=1)

    def covariance(a: Array, b: Array) -> Array:
        def total(values: Array) -> Array:
            return np.asarray(np.einsum("bn,bn->b", weights_B_N, values))

        return count * total(a * b) - total(a) * total(b)

    return covariance(x_B_N, y_B_N) / _positive(
        np.sqrt(covariance(x_B_N, x_B_N)) * np.sqrt(covariance(y_B_N, y_B_N))
    )


def _centred_ranks(x_N: Array, weights_B_N: Array) -> Array:
    """Rank of each value in each resample less the mean rank; equal values take the mean of their ranks."""
    values, place_N = np.unique(x_N, return_inverse=True)
    counts = weights_B_N @ np.eye(len(values))[place_N]
    centred: Array = np.cumsum(counts, axis=1) - counts / 2 - counts.sum(axis=1, keepdims=True) / 2
    return centred[:, place_N]
