"""A leaderboard as tables to print with rich, on terminals of any width."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from llm_blender_ray.pipelines.quality.leaderboard import AT_LEAST_COLUMN, GPT_RANK, TOP, WIN_RATE
from llm_blender_ray.pipelines.quality.metrics import metric_label
from llm_blender_ray.pipelines.quality.rounding import fixed

_BORDERS = 3  # characters that a column adds to its widest cell


@dataclass(frozen=True, slots=True)
class WideTable:
    """Table that continues below, with the first column again, where the terminal is too narrow for its columns."""

    title: str
    labels: Sequence[str]
    columns: Sequence[tuple[str, Sequence[str]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield tables of as many columns as fit."""
        yield Text(self.title, style="italic")
        for columns in self._pages(options.max_width):
            table = Table()
            table.add_column("", overflow="fold")
            for heading, cells in columns:
                table.add_column(Text(heading), justify="right", width=_width(heading, cells))
            for label, *cells in zip(self.labels, *(cells for _, cells in columns), strict=True):
                table.add_row(Text(label), *cells)
            yield table

    def _pages(self, width: int) -> Iterator[list[tuple[str, Sequence[str]]]]:
        left = width - 1 - _BORDERS - max(map(len, self.labels), default=0)
        page: list[tuple[str, Sequence[str]]] = []
        free = left
        for heading, cells in self.columns:
            needed = _width(heading, cells) + _BORDERS
            if page and needed > free:
                yield page
                page, free = [], left
            page.append((heading, cells))
            free -= needed
        if page:
            yield page


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(len, (*heading.split(), *cells)))


def render_leaderboard(report: Mapping[str, Any]) -> Group:
    """The report of `quality.leaderboard` as tables and sentences."""
    parts: list[Text | WideTable] = [Text(_source(report))]
    for title, table in {"All rows": report["table"], **report["slices"]}.items():
        parts += [_wide_table(title, table, report), *map(Text, findings_of(table))]
    compared = sum(len(table["differences"]) for table in (report["table"], *report["slices"].values()))
    parts.append(
        Text(
            "± and [ ] are 95% intervals over prompts. Place: 1 + the number of systems that are better after "
            f"Holm's correction for all {compared:,} comparisons."
        )
    )
    return Group(*parts)


def _source(report: Mapping[str, Any]) -> str:
    judges = ", ".join(f"{name} {count:,}" for name, count in report["judges"].items())
    source = f"{report['comparisons']:,} judgements ({judges})"
    if report["source"] is not None:
        source = f"by {metric_label(report['source'])}"
    return f"{report['rows']:,} rows, {report['errors']:,} with an error, {source}"


def better_lines(differences: Sequence[Mapping[str, Any]], order: Sequence[str], by: str = "") -> list[str]:
    """Sentences about the differences that hold after correction.

    Args:
        differences: `Difference.report` of each.
        order: The systems, in the order of the sentences and within them.
        by: What makes one better.
    """
    better: dict[str, list[str]] = {}
    for one in differences:
        if one["better"]:
            other = one["second"] if one["better"] == one["first"] else one["first"]
            better.setdefault(one["better"], []).append(other)
    lines = [
        f"{name} is better than {', '.join(sorted(better[name], key=order.index))}{by}."
        for name in order
        if name in better
    ]
    if differences and not lines:
        lines.append("No difference between systems holds after correction.")
    return lines


def findings_of(table: Mapping[str, Any]) -> list[str]:
    """Which systems are better than which others: only what holds after correction."""
    lines = better_lines(table["differences"], list(table["systems"]))
    if table["without_strength"]:
        lines.append(
            f"No strength: {', '.join(table['without_strength'])} (only won, only lost, or not compared with the "
            "others on two prompts or more)."
        )
    return lines


def leaderboard_columns(table: Mapping[str, Any], baseline: str | None) -> dict[str, list[str]]:
    """Cells of each column, by heading, one for each system."""
    systems = table["systems"].values()
    columns = {"place": ["" if one["place"] is None else str(one["place"]) for one in systems]}
    if any(one["strength"] for one in systems):
        columns["strength (Elo)"] = [_elo(one["strength"]) for one in systems]
    for control in dict.fromkeys(name for one in systems for name in one["controlled"]):
        controlled = [one["controlled"].get(control) for one in systems]
        columns[f"Elo at equal {control}"] = [_elo(one) for one in controlled]
        if baseline:
            columns[f"win rate at equal {control}"] = [_win_rate(one) for one in controlled]
    for key in table["columns"]:
        columns[_heading(key, baseline)] = [_mean(key, one["means"].get(key)) for one in systems]
    return {heading: cells for heading, cells in columns.items() if any(cells)}


def _wide_table(title: str, table: Mapping[str, Any], report: Mapping[str, Any]) -> WideTable:
    columns = leaderboard_columns(table, report["baseline"])
    prompts = f", {table['prompts']:,} prompts" if table["prompts"] != table["rows"] else ""
    return WideTable(f"{title} ({table['rows']:,} rows{prompts})", list(table["systems"]), list(columns.items()))


def _heading(key: str, baseline: str | None) -> str:
    if key == WIN_RATE:
        return f"wins against {baseline or 'others'}"
    if key == GPT_RANK:
        return "GPT-Rank"
    if key.startswith(TOP.format("")):
        return f"Top-{key.removeprefix(TOP.format(''))}"
    if key.startswith(AT_LEAST_COLUMN.format("")):
        return f">= {key.removeprefix(AT_LEAST_COLUMN.format(''))}"
    return metric_label(key)


def _elo(strength: Mapping[str, float] | None) -> str:
    if strength is None:
        return ""
    return f"{strength['elo']:.0f} [{strength['elo_low']:.0f}, {strength['elo_high']:.0f}]"


def _win_rate(strength: Mapping[str, float] | None) -> str:
    if strength is None or "win_rate" not in strength:
        return ""
    value, low, high = (100 * strength[key] for key in ("win_rate", "win_rate_low", "win_rate_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]%"


def _mean(key: str, mean: Mapping[str, Any] | None) -> str:
    if mean is None:
        return ""
    is_share = key == WIN_RATE or key.startswith((TOP.format(""), AT_LEAST_COLUMN.format("")))
    return mean_text(mean["mean"], mean["ci95_half_width"], digits=2 if key == GPT_RANK else 3, share=is_share)


def mean_text(mean: float, ci95_half_width: float | None, *, digits: int = 3, share: bool = False) -> str:
    """A mean and half its interval; a share in percent with one digit."""
    scale, digits = (100, 1) if share else (1, digits)
    value = fixed(scale * mean, digits)
    if ci95_half_width is not None:
        value += f" ± {fixed(scale * ci95_half_width, digits)}"
    return f"{value}%" if share else value
