"""Bradley-Terry strengths of contestants with intervals, plain and with length or style held fixed.

The model: the left contestant's expected share of a win is `sigmoid(strength_left - strength_right)`; a tie is
half a win for both, a judge's probability is a share as it is. It is a logistic regression on the two
contestants, as Chatbot Arena's is (Chiang et al. 2024, arXiv 2403.04132).

The estimate is finite only among contestants each of which is connected to each by wins or ties (Ford 1957).
Others, such as one that won every comparison, get no strength.

With a control, the model gets the difference of the answers' features as covariates: `length` as length-
controlled AlpacaEval does (Dubois et al. 2024, arXiv 2404.04475: tanh of the difference in characters over its
standard deviation), `style` as Arena's style control does (Li, Angelopoulos and Chiang 2024: (left - right) /
(left + right) of length, headers, bold and lists, divided by its standard deviation).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from llm_blender_ray.pipelines.quality.judgements import RANKER_CONTESTANT
from llm_blender_ray.pipelines.quality.outcome_table import STYLE_FEATURES, OutcomeTable

Control = Literal["length", "style"]
STRENGTH_RESAMPLES = 1000
ELO_SCALE = 400 / np.log(10)  # Elo points of one unit of log-odds: 400 points are odds of 10 to 1
ELO_MEAN = 1000
# Weight of a tie of every contestant with strength 0, in resamples only: one without a loss of a contestant
# would make its strength infinite.
_PRIOR = 0.1
_Z = 1.959964
_CHUNK = 100  # resamples at once
_MOST_STEPS = 100


@dataclass(frozen=True)
class Strengths:
    """Strengths in log-odds, centred on the mean of the models and the blend.

    Attributes:
        values: Strength of each contestant that has one, strongest first.
        draws: Strengths in each of R resamples, R x N, in the order of `values`.
        without: Contestants whose comparisons determine no strength.
        prompts: Prompts that they are of.
        tail: Share of the draws below, and above, a 95% interval.
        effects: Log-odds that one unit of a covariate adds, with half the width of its 95% interval.
    """

    values: Mapping[str, float]
    draws: np.ndarray
    without: tuple[str, ...] = ()
    prompts: int = 0
    tail: float = 0.025
    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def interval(self, name: str, baseline: str | None = None) -> tuple[float, float]:
        """95% interval of a strength, or of its difference to a baseline's."""
        return tuple(np.quantile(self._draws(name, baseline), (self.tail, 1 - self.tail)).tolist())

    def standard_error(self, name: str, baseline: str | None = None) -> float:
        """Standard error of a strength, or of its difference to a baseline's."""
        return float(self._draws(name, baseline).std(ddof=1))

    def _draws(self, name: str, baseline: str | None) -> np.ndarray:
        at = list(self.values).index
        return self.draws[:, at(name)] - (0 if baseline is None else self.draws[:, at(baseline)])


def fit_strengths(table: OutcomeTable, *, resamples: int = STRENGTH_RESAMPLES, seed: int = 0) -> Strengths:
    """Fit strengths, with a bootstrap over prompts.

    Intervals are percentiles, expanded for few prompts (Hesterberg 2015, arXiv 1411.5279).

    The ranker's choice is fitted last, against the strengths of the others: its comparisons are those of the models
    that it chose, which would count twice.

    Args:
        table: The outcomes.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.
    """
    names = _comparable(table)
    if not names:
        return Strengths({}, np.empty((resamples, 0)), table.names)
    pairs = _Pairs(table, names)
    rng = np.random.default_rng(seed)
    prompts = len(pairs.count_P_K)
    even_P = np.full(prompts, 1 / prompts)
    once = np.ones((1, prompts))
    values = pairs.fit(once, prior=1e-6)[0]  # enough to fix where zero is
    draws = [
        pairs.fit(rng.multinomial(prompts, even_P, size=min(_CHUNK, resamples - start)), _PRIOR)
        for start in range(0, resamples, _CHUNK)
    ]
    # The prior draws the strength of a contestant that hardly ever wins, or loses, towards the others: what a
    # resample tells is how far it lies from the estimate under the same prior.
    errors = np.concatenate(draws) - pairs.fit(once, _PRIOR)
    found = _strengths([*names, *[RANKER_CONTESTANT] * pairs.has_ranker], values, values + errors, table.names)
    return replace(found, prompts=prompts, tail=_tail(prompts))


def fit_controlled(
    table: OutcomeTable, control: Control, *, resamples: int = STRENGTH_RESAMPLES, seed: int = 0
) -> Strengths:
    """Fit strengths with the length or style of the answers held fixed; without the ranker's choice.

    The draws are normal, with the covariance that holds for dependent outcomes of one prompt (statsmodels' GLM,
    `cov_type="cluster"`): each resample would be a regression on all outcomes.

    Args:
        table: Outcomes with style.
        control: What is held fixed.
        resamples: Draws of the strengths.
        seed: Of the draws.
    """
    import statsmodels.api as sm

    models = [name for name in table.names if name != RANKER_CONTESTANT]
    names = _comparable(table)
    if not names:
        return Strengths({}, np.empty((resamples, 0)), tuple(models))
    kept = table.among(names)
    covariates = _covariates(kept, control)
    design = np.column_stack([_sides(len(names), kept.left, kept.right)[:, 1:], *covariates.values()])
    groups = np.unique(kept.prompts, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of statsmodels, about shares that are no counts
        fit = sm.GLM(kept.shares, design, family=sm.families.Binomial()).fit(
            cov_type="cluster", cov_kwds={"groups": groups}
        )
    n = len(names) - 1
    drawn = np.random.default_rng(seed).multivariate_normal(fit.params[:n], fit.cov_params()[:n, :n], resamples)
    of_first = np.zeros((resamples, 1))
    effects = {
        name: (float(value), float(_Z * error))
        for name, value, error in zip(covariates, fit.params[n:], fit.bse[n:], strict=True)
    }
    found = _strengths(names, np.append(0.0, fit.params[:n]), np.hstack([of_first, drawn]), models)
    return replace(found, effects=effects)


def _strengths(
    names: Sequence[str], values: np.ndarray, draws_R_N: np.ndarray, contestants: Sequence[str]
) -> Strengths:
    """Strengths, strongest first, with their mean (the ranker's choice aside) as zero."""
    centre = [name != RANKER_CONTESTANT for name in names]
    values, draws_R_N = values - values[centre].mean(), draws_R_N - draws_R_N[:, centre].mean(axis=1, keepdims=True)
    order = np.argsort(-values, kind="stable")
    return Strengths(
        {names[at]: float(values[at]) for at in order},
        draws_R_N[:, order],
        tuple(name for name in contestants if name not in names),
    )


def _tail(prompts: int) -> float:
    """Share of a bootstrap's draws outside either end of a 95% interval: less than .025 for few prompts."""
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(prompts / (prompts - 1)) * t.ppf(0.025, prompts - 1)))


class _Pairs:
    """Comparisons of each prompt (P) summed by pair (K): what a resample needs."""

    def __init__(self, table: OutcomeTable, names: Sequence[str]) -> None:
        n = len(names)
        kept = table.among([*names, RANKER_CONTESTANT])
        first_M, second_M = np.minimum(kept.left, kept.right), np.maximum(kept.left, kept.right)
        pairs, pair_M = np.unique(first_M * (n + 1) + second_M, return_inverse=True)
        prompts, prompt_M = np.unique(kept.prompts, return_inverse=True)
        first_K, second_K = np.divmod(pairs, n + 1)
        share_M = np.where(kept.left < kept.right, kept.shares, 1 - kept.shares)
        self.count_P_K, self.won_P_K = np.zeros((2, len(prompts), len(pairs)))
        np.add.at(self.count_P_K, (prompt_M, pair_M), 1.0)
        np.add.at(self.won_P_K, (prompt_M, pair_M), share_M)
        self._design_K_N = _sides(n + 1, first_K, second_K)
        self._of_ranker_K = second_K == n
        won = self.won_P_K[:, self._of_ranker_K].sum()
        self.has_ranker = bool(0 < won < self.count_P_K[:, self._of_ranker_K].sum())

    def fit(self, weight_R_P: np.ndarray, prior: float) -> np.ndarray:
        """Strengths in each resample, R x N; that of the ranker's choice last if it has one."""
        count_R_K, won_R_K = weight_R_P @ self.count_P_K, weight_R_P @ self.won_P_K
        own, of = ~self._of_ranker_K, self._of_ranker_K
        values_R_N = _regress(self._design_K_N[own, :-1], count_R_K[:, own], won_R_K[:, own], prior)
        if not self.has_ranker:
            return values_R_N
        offset_R_K = values_R_N @ self._design_K_N[of, :-1].T
        ranker_R_1 = _regress(self._design_K_N[of, -1:], count_R_K[:, of], won_R_K[:, of], prior, offset_R_K)
        return np.hstack([values_R_N, ranker_R_1])


def _regress(
    design_K_N: np.ndarray,
    count_R_K: np.ndarray,
    won_R_K: np.ndarray,
    prior: float,
    offset_R_K: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Coefficients of logistic regressions on counts, all resamples at once: Newton's method.

    One by one, statsmodels' GLM takes 0.8 ms for each, and a leaderboard needs a thousand for each slice.
    """
    resamples, n = len(count_R_K), design_K_N.shape[1]
    squares_K_NN = (design_K_N[:, :, None] * design_K_N[:, None, :]).reshape(len(design_K_N), n * n)
    values_R_N = np.zeros((resamples, n))
    for _ in range(_MOST_STEPS):
        share_R_K = _sigmoid(values_R_N @ design_K_N.T + offset_R_K)
        tie_R_N = _sigmoid(values_R_N)
        slope_R_N = (won_R_K - count_R_K * share_R_K) @ design_K_N - prior * (tie_R_N - 0.5)
        bend_R_N_N = (count_R_K * share_R_K * (1 - share_R_K) @ squares_K_NN).reshape(resamples, n, n)
        bend_R_N_N += np.eye(n) * (prior * tie_R_N * (1 - tie_R_N))[:, None, :]
        step_R_N = np.linalg.solve(bend_R_N_N, slope_R_N[:, :, None])[:, :, 0].clip(-2, 2)
        values_R_N += step_R_N
        if np.abs(step_R_N).max() < 1e-9:
            break
    return values_R_N


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _sides(contestants: int, left_M: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    """Design of the regression: 1 for the left contestant, -1 for the right one."""
    design = np.zeros((len(left_M), contestants))
    at = np.arange(len(left_M))
    design[at, left_M] = 1
    design[at, right_M] = -1
    return design


def _comparable(table: OutcomeTable) -> list[str]:
    """The largest set of contestants each of which is connected to each by wins or ties; [] without one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = [name for name in table.names if name != RANKER_CONTESTANT]
    kept, n = table.among(names), len(names)
    if len(np.unique(kept.prompts)) < 2:  # one prompt has no variance
        return []
    over = np.concatenate([kept.left[kept.shares > 0], kept.right[kept.shares < 1]])
    under = np.concatenate([kept.right[kept.shares > 0], kept.left[kept.shares < 1]])
    if not len(over):
        return []
    _, component_N = connected_components(
        coo_array((np.ones(len(over)), (over, under)), (n, n)), connection="strong"
    )
    most = np.bincount(component_N).argmax()
    found = [name for name, component in zip(names, component_N, strict=True) if component == most]
    return found if len(found) > 1 else []


def _covariates(table: OutcomeTable, control: Control) -> dict[str, np.ndarray]:
    """Differences of the answers' features that vary, by name."""
    if table.styles is None:
        raise ValueError("the table has no style")
    left_M_F, right_M_F = table.styles[:, 0], table.styles[:, 1]
    gap_M_F = left_M_F - right_M_F
    if control == "length":
        deviation = gap_M_F[:, 0].std()
        return {"length": np.tanh(gap_M_F[:, 0] / deviation)} if deviation > 0 else {}
    relative_M_F = gap_M_F / np.maximum(left_M_F + right_M_F, 1)
    deviation_F = relative_M_F.std(axis=0)
    return {
        name: relative_M_F[:, at] / deviation_F[at] for at, name in enumerate(STYLE_FEATURES) if deviation_F[at] > 0
    }
