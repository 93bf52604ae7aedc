"""Biases of judges: for a side, for their own answers, for long answers. Pure, over outcomes.

- Position: of the pairs that a judge saw in both orders, the share with the same verdict twice, and which side the
  other verdicts favour. A judge without position bias prefers the left answer in half of its decided verdicts.
- Self-preference: how often a judge prefers answers of its own family, less how often the other judges (people
  included) prefer the same answers in the same pairs. A judge may rightly win, so its rate alone is no bias.
- Length: how often the longer answer is preferred, and the slope of the log-odds of the left answer with the ratio
  of lengths, with the side as intercept. Longer answers may be better ones, so compare judges by it.

Ties count one half. Comparisons of a row depend on each other, so all intervals (95%) are those of clusters: each
row is drawn as a whole (linearised variance; for shares in Wilson's interval with the effective number of
verdicts).
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from llm_blender_ray.pipelines.quality.judgements import RANKER_CONTESTANT, SWAPPED, Outcome
from llm_blender_ray.pipelines.quality.rounding import fixed
from llm_blender_ray.pipelines.quality.votes import interval

_Z = 1.959964  # of the 95% interval
_FEWEST = 10  # verdicts for a slope
_Clusters = Mapping[str, Sequence[float]]  # values of each row


BIAS_COLUMNS = ("verdicts", "same twice", "left", "own", "longer", "slope")
BIAS_CAPTION = (
    "%, with 95% intervals. same twice: pairs with one verdict in both orders; left: of their decided verdicts; "
    "own: rate of own answers less other judges'; longer: rate of longer answers; slope: of the log-odds, for each "
    "doubling of the ratio of lengths"
)


def judge_bias(
    outcomes: Iterable[Outcome], families: Mapping[str, Collection[str]] | None = None
) -> list[dict[str, Any]]:
    """Measure the biases of all judges.

    Args:
        outcomes: Of all judges (`judgements.read_outcomes`). Those between equal texts, and the second one of a
            judgement, with the ranker as contestant, are left out.
        families: Contestants whose answers are a judge's own, by judge; default: the contestant with its name.

    Returns:
        For each judge in order of names {"judge", "verdicts", "rows", "position", "self_preference", "length"}; see
        `docs/evaluation.md`. What cannot be measured is null.
    """
    verdicts: dict[str, dict[tuple[str, str, str], Outcome]] = defaultdict(dict)
    for one in outcomes:
        if RANKER_CONTESTANT not in (one.left, one.right) and one.left_text != one.right_text:
            verdicts[one.judge].setdefault((one.row, one.left_text, one.right_text), one)
    own = families or {}
    return [
        {
            "judge": judge,
            "verdicts": len(found),
            "rows": len({row for row, _, _ in found}),
            "position": _position(found),
            "self_preference": _self_preference(judge, own.get(judge, (judge,)), verdicts),
            "length": _length(list(found.values())),
        }
        for judge, found in sorted(verdicts.items())
    ]


_Verdicts = Mapping[tuple[str, str, str], Outcome]  # of one judge, by row and texts


def _position(found: _Verdicts) -> dict[str, Any] | None:
    same, left = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    twice = {"left": 0, "right": 0}
    for (row, a, b), one in found.items():
        other = found.get((row, b, a))
        if other is None:
            continue
        if one.sign:
            left[row].append(one.left_wins)
        if a < b:
            same[row].append(float(one.preferred == SWAPPED[other.preferred]))
            if one.sign and one.sign == other.sign:
                twice["left" if one.sign > 0 else "right"] += 1
    if not same:
        return None
    return {
        "pairs": sum(map(len, same.values())),
        "consistent": _share(same),
        "left_twice": twice["left"],
        "right_twice": twice["right"],
        "left": _share(left),
    }


def _self_preference(
    judge: str, family: Collection[str], verdicts: Mapping[str, _Verdicts]
) -> dict[str, Any] | None:
    """The judge's rate of its own answers, and the others' on the same pairs; None without an own answer."""
    rates = {name: _rates_of(family, found) for name, found in verdicts.items()}
    own = rates.pop(judge)
    if not own:
        return None
    all_of, mine, theirs, more = (defaultdict[str, list[float]](list) for _ in range(4))
    for (row, pair), rate in own.items():
        all_of[row].append(rate)
        if others := [found[row, pair] for found in rates.values() if (row, pair) in found]:
            mine[row].append(rate)
            theirs[row].append(fmean(others))
            more[row].append(rate - fmean(others))
    seen = {name for one in verdicts[judge].values() for name in (one.left, one.right)}
    return {
        "contestants": sorted(seen & {*family}),
        "rate": _share(all_of),
        "shared_pairs": sum(map(len, more.values())),
        "rate_on_shared": _mean(mine)["mean"] if mine else None,
        "others_rate": _mean(theirs)["mean"] if theirs else None,
        "difference": _mean(more) if more else None,
    }


def _rates_of(family: Collection[str], found: _Verdicts) -> dict[tuple[str, frozenset[str]], float]:
    """By row and pair of texts, a judge's mean verdict for the family's answer against another contestant's."""
    rates: dict[tuple[str, frozenset[str]], list[float]] = defaultdict(list)
    for (row, a, b), one in found.items():
        if (one.left in family) != (one.right in family):
            rates[row, frozenset((a, b))].append(one.left_wins if one.left in family else 1 - one.left_wins)
    return {key: fmean(values) for key, values in rates.items()}


def _length(found: Sequence[Outcome]) -> dict[str, Any] | None:
    longer = defaultdict[str, list[float]](list)
    for one in found:
        if len(one.left_text) != len(one.right_text):
            is_left = len(one.left_text) > len(one.right_text)
            longer[one.row].append(one.left_wins if is_left else 1 - one.left_wins)
    if not longer:
        return None
    return {"verdicts": sum(map(len, longer.values())), "longer": _share(longer), "slope": _slope(found)}


def _slope(found: Sequence[Outcome]) -> dict[str, Any] | None:
    """Slope of the log-odds of the left answer for each doubling of the ratio of lengths in characters.

    A logistic regression with clustered errors; None without statsmodels (extra `evaluation`), with few verdicts,
    or where length or side decides everything.
    """
    used = [one for one in found if one.left_text and one.right_text]
    rows = {row: number for number, row in enumerate(dict.fromkeys(one.row for one in used))}
    if len(used) < _FEWEST or len(rows) < 2 or find_spec("statsmodels") is None:
        return None
    import statsmodels.api as sm

    ratios = np.array([math.log2(len(one.left_text) / len(one.right_text)) for one in used])
    wins = np.array([one.left_wins for one in used])
    if np.ptp(ratios) == 0 or np.ptp(wins) == 0:
        return None
    clusters = np.array([rows[one.row] for one in used])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # perfect separation, no convergence
        try:
            model = sm.GLM(wins, sm.add_constant(ratios), family=sm.families.Binomial())
            fit = model.fit(cov_type="cluster", cov_kwds={"groups": clusters})
            low, high = fit.conf_int()[1]
        except (Warning, ValueError, ArithmeticError, np.linalg.LinAlgError):
            return None
    return {"per_doubling": float(fit.params[1]), "interval": [float(low), float(high)]}


def _share(clusters: _Clusters) -> dict[str, Any] | None:
    """A share with its interval; None without a value."""
    if not any(clusters.values()):
        return None
    mean, variance, count = _moments(clusters)
    effective = mean * (1 - mean) / variance if variance else len(clusters)
    effective = min(max(effective, 1.0), count)
    return {"share": mean, "interval": list(interval(mean * effective, effective)), "verdicts": count}


def _mean(clusters: _Clusters) -> dict[str, Any]:
    """A mean with its interval, which is null for one row."""
    mean, variance, count = _moments(clusters)
    half = _Z * math.sqrt(variance)
    return {"mean": mean, "interval": [mean - half, mean + half] if len(clusters) > 1 else None, "pairs": count}


def _moments(clusters: _Clusters) -> tuple[float, float, int]:
    """Mean of all values, the variance of that mean with rows as clusters, and the number of values."""
    sums = np.array([(sum(values), len(values)) for values in clusters.values()], dtype=float)
    total, count = sums.sum(0)
    mean, rows = total / count, len(sums)
    spread = float(((sums[:, 0] - mean * sums[:, 1]) ** 2).sum()) / count**2
    return float(mean), spread * rows / max(rows - 1, 1), int(count)


def bias_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """What `judge_bias` returns as a table to print with rich."""
    shown = Table(title="Judges", title_justify="left", caption=BIAS_CAPTION)
    shown.add_column("", no_wrap=True)
    for heading in BIAS_COLUMNS:
        shown.add_column(heading, justify="right")
    for name, *cells in bias_lines(reports):
        shown.add_row(Text(name), *cells)
    return shown


def bias_lines(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What `judge_bias` returns as each judge's name and cells of `BIAS_COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for one in reports:
        position, own, length = one["position"], one["self_preference"], one["length"]
        more = own and own["difference"]
        slope = length and length["slope"]
        cells = (
            f"{one['verdicts']:,}",
            _percent(position and position["consistent"]),
            _percent(position and position["left"]),
            _with_interval(more["mean"] * 100, more["interval"], 100, sign=True) if more else "",
            _percent(length and length["longer"]),
            _with_interval(slope["per_doubling"], slope["interval"], sign=True, digits=2) if slope else "",
        )
        found.append((one["judge"], *cells))
    return found


def _percent(share: Mapping[str, Any] | None) -> str:
    return _with_interval(share["share"] * 100, share["interval"], 100) if share else ""


def _with_interval(
    value: float, bounds: Sequence[float] | None, scale: float = 1, *, sign: bool = False, digits: int = 1
) -> str:
    inside = f" [{', '.join(fixed(bound * scale, digits, sign=sign) for bound in bounds)}]" if bounds else ""
    return fixed(value, digits, sign=sign) + inside
