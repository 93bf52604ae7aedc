"""Bradley-Terry strengths of contestants with intervals, plain and with length or style held fixed.

The model: the left contestant's expected share of a win is `sigmoid(strength_left - strength_right)`; a tie is
half a win for both, a judge's probability is a share as it is. It is a logistic regression on the two
contestants, fitted by statsmodels' GLM, as Chatbot Arena's is (Chiang et al. 2024, arXiv 2403.04132).

The estimate is finite only among contestants each of which is connected to each by wins or ties (Ford 1957).
Others, such as one that won every comparison, get no strength.

With a control, the model gets the difference of the answers' features as covariates: `length` as length-
controlled AlpacaEval does (Dubois et al. 2024, arXiv 2404.04475: tanh of the difference in characters over its
standard deviation), `style` as Arena's style control does (Li, Angelopoulos and Chiang 2024: (left - right) /
(left + right) of length, headers, bold and lists, divided by its standard deviation).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True)
class Strengths:
    """Strengths in log-odds, centred on the mean of the models and the blend.

    Attributes:
        values: Strength of each contestant that has one, strongest first.
        draws: Strengths in each of R resamples, R x N, in the order of `values`.
        without: Contestants whose comparisons determine no strength.
        tail: Share of the draws below, and above, a 95% interval.
        effects: Log-odds that one unit of a covariate adds, with half the width of its 95% interval.
    """

    values: Mapping[str, float]
    draws: np.ndarray
    without: tuple[str, ...] = ()
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
    with _quiet():
        values = pairs.fit(np.ones(prompts), prior=1e-6)  # enough to fix where zero is
        draws = np.array([pairs.fit(rng.multinomial(prompts, even_P), _PRIOR) for _ in range(resamples)])
    found = _strengths([*names, *[RANKER_CONTESTANT] * pairs.has_ranker], values, draws, table.names)
    return replace(found, tail=_tail(prompts))


def fit_controlled(
    table: OutcomeTable, control: Control, *, resamples: int = STRENGTH_RESAMPLES, seed: int = 0
) -> Strengths:
    """Fit strengths with the length or style of the answers held fixed; without the ranker's choice.

    The draws are normal, with the covariance that holds for dependent outcomes of one prompt (statsmodels,
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
    with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without statsmodels' warnings about contestants that a resample separates."""
    import statsmodels.api  # noqa: F401 (its import lets warnings through)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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

    if prompts < 2:
        return 0.0
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

    def fit(self, weight_P: np.ndarray, prior: float) -> np.ndarray:
        """Strengths, that of the ranker's choice last if it has one."""
        count_K, won_K = weight_P @ self.count_P_K, weight_P @ self.won_P_K
        own = ~self._of_ranker_K & (count_K > 0)
        values = _regress(self._design_K_N[own, :-1], count_K[own], won_K[own], prior)
        if not self.has_ranker:
            return values
        of = self._of_ranker_K & (count_K > 0)
        offset_K = self._design_K_N[of, :-1] @ values
        return np.append(values, _regress(self._design_K_N[of, -1:], count_K[of], won_K[of], prior, offset_K))


def _regress(
    design_K_N: np.ndarray,
    count_K: np.ndarray,
    won_K: np.ndarray,
    prior: float,
    offset_K: np.ndarray | None = None,
) -> np.ndarray:
    """Coefficients of a logistic regression on counts."""
    import statsmodels.api as sm

    n = design_K_N.shape[1]
    return (
        sm.GLM(
            np.append(won_K / count_K, np.full(n, 0.5)),
            np.vstack([design_K_N, np.eye(n)]),
            family=sm.families.Binomial(),
            var_weights=np.append(count_K, np.full(n, prior)),
            offset=None if offset_K is None else np.append(offset_K, np.zeros(n)),
        )
        .fit()
        .params
    )


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
