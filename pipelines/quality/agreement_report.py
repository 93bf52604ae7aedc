"""Report of `blend agreement`: every two raters of some rows, by each statistic, whole and by slice."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.agreement import (
    AGREEMENT_STATISTICS,
    PAIRWISE,
    AgreementEstimate,
    PairedRatings,
    bootstrapped,
    estimate,
    krippendorff_alpha,
    mean_of,
)
from llm_blender_ray.pipelines.quality.metrics import Metric, default_metrics
from llm_blender_ray.pipelines.quality.raters import (
    PEOPLE_TOGETHER,
    RatedPrompt,
    RatedPrompts,
    group_tables,
    paired_ratings,
    rater_kind,
    raters_of,
)
from llm_blender_ray.pipelines.quality.rounding import fixed
from llm_blender_ray.pipelines.quality.row_progress import with_progress
from llm_blender_ray.pipelines.rows.readers import read_rows

MOST_PEOPLE = 10  # who are listed one by one; the others count in `PEOPLE_TOGETHER`
OF_GROUPS = tuple(name for name in PAIRWISE if name != "kappa")  # which is of two raters
STATISTIC_LABELS = {
    "agreement": "agreement, pairs without a tie",
    "agreement_half_ties": "agreement, one's tie counts half",
    "agreement_with_ties": "agreement, a tie is a verdict",
    "kappa": "Cohen's kappa",
    "alpha": "Krippendorff's alpha",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "footrule": "Spearman's footrule (0 is the best)",
    "set_based": "set-based correlation",
}
Estimates = dict[str, AgreementEstimate]


def measure_agreement(
    rows: Iterable[Mapping[str, Any]],
    slice_by: Sequence[str] = (),
    metrics: Sequence[Metric] | None = None,
    raters: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the agreement of every two raters of rows.

    Args:
        rows: Rows of `rows.readers.read_rows`.
        slice_by: Columns whose values slice the rows.
        metrics: Metrics against references that are raters; None: `quality.metrics.default_metrics`.
        raters: Raters to compare; all of them if empty, of people the `MOST_PEOPLE` with the most prompts.

    Returns:
        Plain data: {"rows", "errors", "prompts", "raters": {name: prompts}, "pairs": [pair], "groups": [group],
        "by", "slices": [{"values", "prompts", "pairs"}], "means": [pair]}. A pair is {"rater", "other",
        STATISTIC: {"value", "interval", "n"}}, a group {"group", "raters", STATISTIC: ...}; "means" are those
        of the slices, where a statistic is {"equal", "weighted"}.

    Raises:
        BlendError: There are no two raters of the same pair of answers, a wanted rater is none, or no row has a
            value in a column to slice by.
    """
    rated = RatedPrompts(default_metrics() if metrics is None else metrics, slice_by).add_all(rows)
    if rated.unknown and rated.rows > rated.errors:
        raise BlendError(f"--by {rated.unknown[0]}: no row has a value in this column")
    prompts = list(chain.from_iterable(rated.slices.values()))
    found = raters_of(prompts)
    names = _wanted(found, raters)
    pairs = list(combinations(names, 2))
    whole = {pair: _estimates(prompts, *pair) for pair in pairs}
    whole = {pair: of_pair for pair, of_pair in whole.items() if any(one.n for one in of_pair.values())}
    if not whole:
        raise BlendError(
            f"no two raters of the same answers in {rated.rows} rows ({rated.errors} with an error); raters: "
            f"{', '.join(names) or 'none'}"
        )
    report: dict[str, Any] = {
        "rows": rated.rows,
        "errors": rated.errors,
        "prompts": len(prompts),
        "raters": {name: found[name] for name in names},
        "pairs": [_pair_report(pair, of_pair) for pair, of_pair in whole.items()],
        "groups": _groups(prompts, names, names if raters else found),
    }
    if slice_by:
        by_slice = {
            values: {pair: _estimates(some, *pair, seed=seed) for pair in whole}
            for seed, (values, some) in enumerate(sorted(rated.slices.items()))
        }
        report |= {
            "by": list(slice_by),
            "slices": [
                {
                    "values": list(values),
                    "prompts": len(rated.slices[values]),
                    "pairs": [_pair_report(pair, of_pair) for pair, of_pair in found_here.items()],
                }
                for values, found_here in by_slice.items()
            ],
            "means": [_means(pair, [one[pair] for one in by_slice.values()]) for pair in whole],
        }
    return report


def print_agreement(
    uris: Sequence[str],
    *,
    slice_by: Sequence[str] = (),
    metrics: Sequence[Metric] | None = None,
    raters: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Print the agreement of the raters of some URIs' rows, as tables or as JSON; see `measure_agreement`."""
    rows = with_progress(chain.from_iterable(map(read_rows, uris)), "agreement")
    report = measure_agreement(rows, slice_by, metrics, raters)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a file has no width
    console.print(agreement_tables(report))


def agreement_tables(report: Mapping[str, Any]) -> Group:
    """The report as tables to print with rich."""
    head = f"{report['rows']} rows, {report['errors']} with an error, {report['prompts']} prompts"
    pairs = report["pairs"]
    if "slices" in report:
        tables = [_slice_table(report, at) for at in range(len(pairs))]
    elif len(pairs) == 1:
        tables = [_pair_table(pairs[0])]
    else:
        tables = [_raters_table(report), *(_matrix(report, name) for name in AGREEMENT_STATISTICS)]
    groups = [_group_table(report["groups"])] if report["groups"] else []
    return Group(Text(head), *tables, *groups)


def _wanted(found: Mapping[str, int], raters: Sequence[str]) -> list[str]:
    people = sorted((name for name in found if rater_kind(name) == "person"), key=lambda name: -found[name])
    every = [*found, *([PEOPLE_TOGETHER] if len(people) > 1 else [])]
    if unknown := [name for name in raters if name not in every]:
        raise BlendError(f"no rater {unknown[0]!r} in these rows; there are {', '.join(every) or 'none'}")
    return [name for name in every if (name in raters if raters else name not in people[MOST_PEOPLE:])]


def _estimates(prompts: Sequence[RatedPrompt], rater: str, other: str, *, seed: int = 0) -> Estimates:
    ratings = paired_ratings(prompts, rater, other)
    return {name: estimate(name, ratings, seed=seed) for name in AGREEMENT_STATISTICS}


def _pair_report(pair: tuple[str, str], of_pair: Estimates) -> dict[str, Any]:
    return {"rater": pair[0], "other": pair[1]} | {name: one.report() for name, one in of_pair.items()}


def _means(pair: tuple[str, str], slices: Sequence[Estimates]) -> dict[str, Any]:
    found: dict[str, Any] = {"rater": pair[0], "other": pair[1]}
    for name in AGREEMENT_STATISTICS:
        of_each = [one[name] for one in slices]
        found[name] = {
            "equal": mean_of(of_each, weighted=False).report(),
            "weighted": mean_of(of_each, weighted=True).report(),
        }
    return found


def _groups(prompts: Sequence[RatedPrompt], names: Sequence[str], everyone: Iterable[str]) -> list[dict[str, Any]]:
    """Agreement of more than two raters with one another: people, judges, all that are compared."""
    groups = {
        "people": [name for name in everyone if rater_kind(name) == "person"],
        "judges": [name for name in everyone if rater_kind(name) == "judge"],
        "all": [name for name in names if name != PEOPLE_TOGETHER],
    }
    found: list[dict[str, Any]] = []
    for label, members in groups.items():
        tables, coincident = group_tables(prompts, members)
        if len(members) < 3 or not len(tables):
            continue
        unranked = np.full((len(tables), 0), np.nan)
        ratings = PairedRatings(tables, unranked, unranked)
        pairwise = {name: estimate(name, ratings) for name in OF_GROUPS}
        n = pairwise["alpha"].n
        pairwise["alpha"] = bootstrapped(partial(krippendorff_alpha, coincident), len(tables), n)
        estimates = {name: one.report() for name, one in pairwise.items()}
        found.append({"group": label, "raters": len(members)} | estimates)
    return found


def _cell(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return f"undefined\nn {one['n']:,}" if one["n"] else ""
    interval = "" if one["interval"] is None else "\n{} to {}".format(*map(fixed, one["interval"]))
    return f"{fixed(one['value'])}{interval}\nn {one['n']:,}"


def _titled(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    return table


def _raters_table(report: Mapping[str, Any]) -> Table:
    table = Table(title=Text("Raters"), title_justify="left")
    for heading in ("", "rater", "prompts"):
        table.add_column(heading, justify="left" if heading == "rater" else "right")
    for number, (name, count) in enumerate(report["raters"].items(), 1):
        table.add_row(str(number), Text(name), f"{count:,}")
    return table


def _matrix(report: Mapping[str, Any], statistic: str) -> Table:
    """A line and a column per rater; columns have the raters' numbers."""
    names = list(report["raters"])
    of_pair = {(one["rater"], one["other"]): one[statistic] for one in report["pairs"]}
    table = _titled(STATISTIC_LABELS[statistic], map(str, range(2, len(names) + 1)))
    for number, name in enumerate(names[:-1], 1):
        cells = [_cell(of_pair[name, other]) if (name, other) in of_pair else "" for other in names[1:]]
        table.add_row(Text(f"{number} {name}"), *cells)
    return table


def _pair_table(pair: Mapping[str, Any]) -> Table:
    """Both raters of a pair by every statistic."""
    table = _titled(f"{pair['rater']} and {pair['other']}", ("value", "95% interval", "n"))
    table.show_lines = False
    for name in AGREEMENT_STATISTICS:
        one = pair[name]
        value = "undefined" if one["value"] is None else fixed(one["value"])
        interval = "" if one["interval"] is None else "{} to {}".format(*map(fixed, one["interval"]))
        table.add_row(STATISTIC_LABELS[name], value, interval, f"{one['n']:,}")
    return table


def _slice_table(report: Mapping[str, Any], at: int) -> Table:
    """Both raters of a pair by slice, overall, and averaged over slices in two ways."""
    pair, means = report["pairs"][at], report["means"][at]
    title = f"{pair['rater']} and {pair['other']} by {', '.join(report['by'])}"
    table = _titled(title, (STATISTIC_LABELS[name] for name in AGREEMENT_STATISTICS))
    for one in report["slices"]:
        cells = [_cell(one["pairs"][at][name]) for name in AGREEMENT_STATISTICS]
        table.add_row(Text(", ".join(one["values"])), *cells)
    table.add_row("all rows", *(_cell(pair[name]) for name in AGREEMENT_STATISTICS))
    for weights, label in (("weighted", "mean of slices, by n"), ("equal", "mean of slices, equal")):
        table.add_row(label, *(_cell(means[name][weights]) for name in AGREEMENT_STATISTICS))
    return table


def _group_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = _titled("Every two of several raters", ("raters", *(STATISTIC_LABELS[name] for name in OF_GROUPS)))
    for one in groups:
        table.add_row(Text(one["group"]), str(one["raters"]), *(_cell(one[name]) for name in OF_GROUPS))
    return table
