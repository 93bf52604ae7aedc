"""Leaderboard of models, ranker and blend, from judgements, a given score or a metric.

Strengths (`quality.bradley_terry`), win rates, GPT-Rank, Top-k and >= named models (`quality.rankings`), each
with its 95% interval, and the differences that hold after correction for all comparisons made (`quality.paired`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.bradley_terry import (
    ELO_MEAN,
    ELO_SCALE,
    Control,
    Strengths,
    fit_controlled,
    fit_strengths,
)
from llm_blender_ray.pipelines.quality.contest import REFERENCE, Contest, LeaderboardOptions
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.outcome_table import OutcomeTable
from llm_blender_ray.pipelines.quality.paired import (
    PERMUTATIONS,
    Difference,
    correct,
    paired_differences,
    strength_differences,
)
from llm_blender_ray.pipelines.quality.rankings import (
    AT_LEAST,
    RANDOM_CHOICE,
    WINS,
    JudgedRow,
    oracle_of,
    systems_of,
)
from llm_blender_ray.pipelines.quality.row_progress import with_progress
from llm_blender_ray.pipelines.quality.votes import Side
from llm_blender_ray.pipelines.rows.readers import read_rows

LEADERBOARD_NEEDS = ("scipy", "statsmodels")  # of the extra `evaluation`
WIN_RATE, GPT_RANK, TOP, AT_LEAST_COLUMN = "win_rate", "gpt_rank", "top_{}", "at_least {}"
_EXCHANGES = 200  # permutations for each comparison made, so that p-values survive the correction


def leaderboard_of(uris: Sequence[str], options: LeaderboardOptions) -> dict[str, Any]:
    """`leaderboard` of the rows of files, folders or globs; shows progress.

    Raises:
        BlendError: There is nothing to compare, or a named judge has no judgements.
    """
    contest = Contest(options)
    for row in with_progress((row for uri in uris for row in read_rows(uri)), "leaderboard"):
        contest.add(row)
    contest.finish()
    for name in options.judges:
        if contest.all_judges and name not in contest.all_judges:
            raise BlendError(f"--judge {name}: expected one of {', '.join(contest.all_judges)}")
    return leaderboard(contest)


def leaderboard(contest: Contest) -> dict[str, Any]:
    """Compute the leaderboard.

    Args:
        contest: The rows. Its options say what of them is shown.

    Returns:
        Plain data, ready for JSON: {"source", "judges", "rows", "errors", "comparisons", "baseline", "table",
        "slices"}. A table is {"rows", "prompts", "columns", "systems", "differences", "without_strength",
        "effects"}; `slices` has one for each value of the columns to slice by. A system is {"place",
        "strength", "controlled", "means"}: its place is 1 + the number of systems that are better after
        correction, a strength is {"log_odds", "low", "high", "elo", "elo_low", "elo_high"} or None, with a
        baseline also the win rate that it implies, and a mean is `Mean.report`.

    Raises:
        BlendError: There is nothing to compare.
    """
    contest.check()
    outcomes = contest.outcomes()
    slices = sorted({row.slice for row in contest.rows}) if contest.options.slice_by else []
    groups: list[Sequence[int]] = [range(len(contest.rows))]
    groups += [[at for at, row in enumerate(contest.rows) if row.slice == one] for one in slices]
    pairs = sum(len(systems_of([contest.rows[at] for at in group])) ** 2 // 2 for group in groups)
    permutations = max(PERMUTATIONS, _EXCHANGES * pairs)
    tables = [_Table(contest, outcomes, group, permutations) for group in groups]
    corrected = correct([table.differences for table in tables])
    whole, *parts = (table.report(found) for table, found in zip(tables, corrected, strict=True))
    return {
        "source": contest.source,
        "judges": dict(contest.judges.most_common()) if contest.source is None else {},
        "rows": sum(row.count for row in contest.rows),
        "errors": contest.errors,
        "comparisons": sum(contest.judges.values()),
        "baseline": contest.options.baseline,
        "table": whole,
        "slices": {
            ", ".join(f"{name}={value}" for name, value in zip(contest.options.slice_by, one, strict=True)): part
            for one, part in zip(slices, parts, strict=True)
        },
    }


class _Table:
    """One table: of all rows, or of a slice."""

    def __init__(self, contest: Contest, outcomes: OutcomeTable, group: Sequence[int], permutations: int) -> None:
        options = contest.options
        self._contest, self._rows = contest, [contest.rows[at] for at in group]
        self._contestants = systems_of(self._rows)
        self._source = WIN_RATE if options.baseline == REFERENCE else contest.source  # column of the differences
        self._prompts = sorted({row.prompt for row in self._rows})
        whole = len(group) == len(contest.rows)
        own = outcomes if whole else outcomes.take(np.isin(outcomes.prompts, self._prompts))
        drawn = {"resamples": options.resamples, "seed": options.seed}
        self.strengths = fit_strengths(own, **drawn) if len(own) else None
        self._controlled: dict[Control, Strengths] = {
            control: fit_controlled(own, control, **drawn) for control in options.controls if len(own)
        }
        self._means, by_source = self._columns()
        if by_source is not None:
            self.differences = paired_differences(
                by_source, self._contestants, permutations=permutations, seed=options.seed
            )
        else:
            self.differences = strength_differences(self.strengths) if self.strengths else []

    def _columns(self) -> tuple[dict[str, dict[str, Mean]], np.ndarray | None]:
        """Mean of each column for each system, and the values that differences are of, higher is better."""
        options, source = self._contest.options, self._source
        oracles = sorted({name for row in self._rows for name in row.scores}) if options.paper else []
        systems = [*self._contestants, *[RANDOM_CHOICE] * options.paper, *map(oracle_of, oracles)]
        found: dict[str, dict[str, dict[int, list[float]]]] = {}  # values of a prompt's rows
        for row in self._rows:
            sides = row.systems(self._contest.signs) if options.paper else row.contestants()
            for key, values in self._values_of(row).items():
                of_key = found.setdefault(key, {name: {} for name in systems})
                for name in systems:
                    known = [values[side] for side in sides.get(name, ()) if side in values]
                    if known:
                        of_key[name].setdefault(row.prompt, []).append(sum(known) / len(known))
        own = {(AT_LEAST_COLUMN.format(name), name) for name in options.at_least} | {(WIN_RATE, options.baseline)}
        by_prompt = {
            key: {
                name: {prompt: sum(values) / len(values) for prompt, values in of_name.items()}
                for name, of_name in of_key.items()
            }
            for key, of_key in found.items()
        }
        means_of = {
            key: {name: Mean.of([*one.values()]) for name, one in of_key.items() if one and (key, name) not in own}
            for key, of_key in by_prompt.items()
        }
        if source is None:
            return means_of, None
        of_source = [by_prompt.get(source, {}).get(name, {}) for name in self._contestants]
        values_P_S = [[one.get(prompt, math.nan) for one in of_source] for prompt in self._prompts]
        return means_of, self._contest.signs.get(source, 1) * np.array(values_P_S)

    def _values_of(self, row: JudgedRow) -> dict[str, Mapping[Side, float]]:
        """Each column's value for each answer of a row."""
        options, source = self._contest.options, self._contest.source
        found: dict[str, Mapping[Side, float]] = dict(row.scores)
        if options.baseline == REFERENCE and source is not None:
            found[WIN_RATE] = found.pop(source, {})
        elif row.judgements:
            found[WIN_RATE] = row.shares(options.baseline, WINS)
        if row.judgements:
            ranks = row.ranks()
            found[GPT_RANK] = ranks
            found |= {AT_LEAST_COLUMN.format(name): row.shares(name, AT_LEAST) for name in options.at_least}
            found[TOP.format(options.top_k)] = {side: float(rank <= options.top_k) for side, rank in ranks.items()}
        return found

    def report(self, differences: Sequence[Difference]) -> dict[str, Any]:
        """The table as plain data, with corrected differences."""
        baseline = self._contest.options.baseline
        worse = [one.second if one.better == one.first else one.first for one in differences if one.better]
        compared = {name for one in differences for name in (one.first, one.second)}
        names = dict.fromkeys([*self._contestants, *(self.strengths.values if self.strengths else ())])
        names |= dict.fromkeys(name for means in self._means.values() for name in means)
        systems = {
            name: {
                "place": 1 + worse.count(name) if name in compared else None,
                "strength": _strength(self.strengths, name, baseline),
                "controlled": {
                    control: _strength(strengths, name, baseline) for control, strengths in self._controlled.items()
                },
                "means": {key: means[name].report() for key, means in self._means.items() if name in means},
            }
            for name in names
        }
        return {
            "rows": sum(row.count for row in self._rows),
            "prompts": len(self._prompts),
            "columns": list(self._means),
            "systems": dict(sorted(systems.items(), key=lambda item: self._order(*item))),
            "differences": [one.report() for one in differences],
            "without_strength": list(self.strengths.without) if self.strengths else [],
            "effects": {
                control: {
                    name: {"log_odds": value, "ci95_half_width": half}
                    for name, (value, half) in strengths.effects.items()
                }
                for control, strengths in self._controlled.items()
            },
        }

    def _order(self, name: str, system: Mapping[str, Any]) -> tuple[bool, float, str]:
        """Contestants before oracles and random choice; the best by the source first."""
        if (source := self._source) is not None:
            mean = system["means"].get(source)
            best = self._contest.signs.get(source, 1) * mean["mean"] if mean else -math.inf
        else:
            best = system["strength"]["log_odds"] if system["strength"] else -math.inf
        return name not in (*self._contestants, REFERENCE), -best, name


def _strength(strengths: Strengths | None, name: str, baseline: str | None) -> dict[str, float] | None:
    """A strength as plain data, and the win rate against the baseline that follows from it."""
    if strengths is None or name not in strengths.values:
        return None
    value, (low, high) = strengths.values[name], strengths.interval(name)
    found = {"log_odds": value, "low": low, "high": high}
    found |= {
        key: ELO_MEAN + ELO_SCALE * one for key, one in (("elo", value), ("elo_low", low), ("elo_high", high))
    }
    if baseline is not None and baseline in strengths.values and baseline != name:
        leads = value - strengths.values[baseline], *strengths.interval(name, baseline)
        for key, lead in zip(("win_rate", "win_rate_low", "win_rate_high"), leads, strict=True):
            found[key] = 1 / (1 + math.exp(-lead))
    return found
