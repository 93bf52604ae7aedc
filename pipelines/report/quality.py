"""Sections about the quality of answers: references and given scores."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from llm_blender_ray.pipelines.quality.evaluation import LINES
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.metrics import Metric, metric_label
from llm_blender_ray.pipelines.quality.paired import Difference
from llm_blender_ray.pipelines.quality.rounding import fixed
from llm_blender_ray.pipelines.quality.tally import Tally
from llm_blender_ray.pipelines.report import plots
from llm_blender_ray.pipelines.report.numbers import Numbers
from llm_blender_ray.pipelines.report.parts import Figure, Section, Table, percent_plus_minus, plus_minus, value_of

MAX_SCORES = 6  # sections of given scores


def headline(numbers: Numbers) -> tuple[str, str, str] | None:
    """(metric, value of the blend or choice, value of the best LLM) of the first metric; None without one."""
    given = sorted(numbers.sample.quality.scores.items())
    for name, tally in [*_references(numbers), *given]:
        best = max(tally.models, key=lambda one: _mean_of(tally, tally.models[one]), default=None)
        system = next((one for one in ("blend", "ranker") if one in tally.systems), None)
        if best is not None and system is not None:
            value, of_best = value_of(tally.systems[system]["mean"]), value_of(tally.models[best]["mean"])
            label = f"{LINES[system]}: {metric_label(name)}"
            return label, value, f"best LLM, {plots.short(best)}: {of_best}"
    return None


def quality_sections(numbers: Numbers, names: Sequence[str]) -> list[Section]:
    """A section for references and one for each given score, about the LLMs of these names."""
    quality = numbers.sample.quality
    references = {name: tally for name, tally in _references(numbers) if tally.models}
    scores = sorted((name, tally) for name, tally in quality.scores.items() if tally.models)[:MAX_SCORES]
    found = []
    differences = quality.differences()
    if references:
        of_first = differences["references", next(iter(references))]
        found.append(_quality_of("Quality against references", references, numbers, names, "r", of_first))
    for index, (name, tally) in enumerate(scores):
        title, of_score = f"Quality by given score: {name}", differences["scores", name]
        found.append(_quality_of(title, {name: tally}, numbers, names, f"s{index}", of_score))
    return found


def _references(numbers: Numbers) -> list[tuple[str, Tally]]:
    """Metrics against references: the one that orders, then the others in the report's order.

    Metrics below their threshold are left out.
    """
    quality = numbers.sample.quality
    order_by, tallies, metrics = quality.order_by, quality.references, quality.metrics
    keys = sorted(metrics, key=lambda key: (key != order_by, metrics[key].report_order))
    return [(key, tallies[key]) for key in keys if key == order_by or _is_shown(metrics[key], tallies[key])]


def _is_shown(metric: Metric, tally: Tally) -> bool:
    return metric.report_from is None or _best(tally) >= metric.report_from


def _best(tally: Tally) -> float:
    return max(tally.systems[name]["mean"].value or 0.0 for name in ("oracle", "blend") if name in tally.systems)


def _mean_of(tally: Tally, means: Mapping[str, Mean]) -> float:
    """The mean, with its sign such that higher is better."""
    return tally.sign * (means["mean"].value or 0.0)


def _quality_of(
    title: str,
    metrics: dict[str, Tally],
    numbers: Numbers,
    names: Sequence[str],
    key: str,
    differences: Sequence[Difference],
) -> Section:
    first_name, first = next(iter(metrics.items()))
    heading = metric_label(first_name)
    lines = _lines(first, names)
    sampled = numbers.sample.rows < numbers.rows
    of_rows = f"{first.rows:,} rows" + (
        f", of a random sample of {numbers.sample.rows:,} of {numbers.rows:,}" if sampled else ""
    )
    system = "blend" if "blend" in first.gains else "ranker" if "ranker" in first.gains else None
    against = f"{LINES[system]} minus it" if system else None
    table = Table(
        caption=f"Mean ± half its 95% interval over {of_rows}. Mean rank and best: by {heading}; 1 is the best "
        "rank, LLMs that tie for a row's best share it, and the ranker's choice may be any of them."
        + (f" Differences are of the same rows, by {heading}." if against else ""),
        head=(
            "",
            *(metric_label(name) for name in metrics),
            "mean rank",
            "best",
            *([against] if against else []),
        ),
        lines=tuple(
            (
                label,
                *(plus_minus(_means_of(tally, role, name).get("mean")) for tally in metrics.values()),
                plus_minus(_means_of(first, role, name).get("rank"), digits=2),
                percent_plus_minus(
                    _means_of(first, role, name).get("best_share", _means_of(first, role, name).get("is_best"))
                ),
                *([_gain(first, system, role, name)] if system else []),
            )
            for label, role, name in lines
        ),
    )
    figures = [
        Figure(
            metric_label(name),
            Markup(plots.means(_points(tally, lines), f"mean {metric_label(name)}", f"q{key}{i}")),
            f"Mean {metric_label(name)} of each LLM and of the blend, best first: " + _described(tally, lines),
        )
        for i, (name, tally) in enumerate(metrics.items())
    ]
    return Section(title, tuple(_findings(first, heading, differences)), tuple(figures), (table,))


_Line = tuple[str, plots.PointRole, str]  # label, role, name of the LLM


def _lines(tally: Tally, names: Sequence[str]) -> list[_Line]:
    """The LLMs of these names and every system, best mean first."""
    lines: list[_Line] = [(name, "llm", name) for name in names if name in tally.models]
    roles: tuple[plots.PointRole, ...] = ("random", "ranker", "blend", "oracle")
    lines += [(LINES[role], role, "") for role in roles if role in tally.systems]

    def order(line: _Line) -> tuple[float, str]:
        return -_mean_of(tally, _means_of(tally, line[1], line[2])), line[0]

    return sorted(lines, key=order)


def _means_of(tally: Tally, role: plots.PointRole, name: str) -> dict[str, Mean]:
    return (tally.models.get(name) if role == "llm" else tally.systems.get(role)) or {}


def _points(tally: Tally, lines: Sequence[_Line]) -> list[plots.Point]:
    found = []
    for label, role, name in lines:
        mean = _means_of(tally, role, name).get("mean")
        if mean is not None and mean.value is not None:
            label = "oracle" if role == "oracle" else label
            found.append(plots.Point(label, role, mean.value, mean.ci95_half_width or 0.0))
    return found


def _described(tally: Tally, lines: Sequence[_Line]) -> str:
    return ", ".join(f"{point.label} {fixed(point.mean)}" for point in _points(tally, lines))


def _gain(tally: Tally, system: str, role: plots.PointRole, name: str) -> str:
    gains = tally.gains[system]
    if role == "llm":
        return plus_minus(gains.get(name), sign=True)
    return plus_minus(gains.get(None), sign=True) if role == "ranker" and system == "blend" else ""


def _findings(tally: Tally, heading: str, differences: Sequence[Difference]) -> list[str]:
    """The table in words; a difference counts when it holds after correction for all leads of blend and ranker."""
    found = []
    best = max(tally.models, key=lambda name: (_mean_of(tally, tally.models[name]), name))
    name = plots.short(best, 40)
    for system in ("blend", "ranker"):
        gain = tally.gains[system].get(best) if system in tally.gains else None
        if gain is None or gain.value is None or gain.ci95_half_width is None:
            continue
        label = "The blend" if system == "blend" else "The ranker's choice"
        if not any(one.better and (one.first, one.second) == (system, best) for one in differences):
            size = plus_minus(gain, sign=True)
            found.append(f"{label} is about as good as the best LLM, {name}: {size} ({heading}, row by row).")
        else:
            word = "better" if gain.value > 0 else "worse"
            size = f"{abs(gain.value):.3f} ± {gain.ci95_half_width:.3f}"
            found.append(f"{label} is {word} than the best LLM, {name}, by {size} ({heading}, row by row).")
    right = tally.pairwise
    if right.value is not None:
        found.append(
            f"Of {right.count:,} pairs of answers of different quality the ranker put "
            f"{100 * right.value:.1f}% in the right order; chance is 50%."
        )
    return found
