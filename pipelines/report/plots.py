"""Figures of a report, as SVG to put into the page.

Made for paper first: dark on white; place, shape, hatch or number carry each difference, never hue alone. Text
stays text, which is small, searchable and readable aloud; layout assumes DejaVu Sans, the widest of the fonts
that a browser will take.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_blender_ray.pipelines.quality.rounding import fixed

WIDTH = 4.4  # inches, of most figures: about a phone's screen
WIDE = 7.5
INK, BLUE, ORANGE, PALE = "#222222", "#0072b2", "#e69f00", "#cfe3f1"  # Okabe and Ito: safe for colour-blind readers
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "blend",  # ids depend on the content alone
    "text.parse_math": False,  # names are no formulas
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ID = re.compile(r'(\bid="|href="#|url\(#)')

PointRole = Literal["llm", "random", "ranker", "blend", "oracle"]
_MARKERS: dict[PointRole, dict[str, Any]] = {
    "llm": {"marker": "o", "color": INK, "markersize": 4.5},
    "random": {"marker": "D", "color": INK, "markerfacecolor": "white", "markersize": 4.5},
    "ranker": {"marker": "s", "color": BLUE, "markersize": 5},
    "blend": {"marker": "*", "color": BLUE, "markersize": 9},
    "oracle": {"marker": "^", "color": INK, "markerfacecolor": "white", "markersize": 5},
}


@dataclass(frozen=True, slots=True)
class Point:
    """A mean and half the width of its 95% interval."""

    label: str
    role: PointRole
    mean: float
    ci95_half_width: float


def short(text: str, most: int = 20) -> str:
    """A name as a label: printable characters in one line; the middle of a long one is cut."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split()) or "(no name)"
    if len(text) > most and _HUB_ID.fullmatch(text):
        text = text.split("/")[1]
    head = (most - 1) // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def means(points: Sequence[Point], label: str, key: str) -> str:
    """A dot for each mean, with its interval; `label` names the axis."""
    with _figure(key, len(points), 0.23) as (axes, svg):
        _rows(axes, [point.label for point in points])
        for role, marker in _MARKERS.items():
            of_role = [
                (point.mean, y, point.ci95_half_width) for y, point in enumerate(points) if point.role == role
            ]
            if of_role:
                x, y, half_widths = zip(*of_role, strict=True)
                axes.errorbar(x, y, xerr=half_widths, linestyle="", elinewidth=1.1, capsize=2.5, **marker)
        for line, point in enumerate(points):
            _aside(axes, line, fixed(point.mean))
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.06)
    return svg[0]


def is_wide(n: int) -> bool:
    """Whether a matrix of `n` lines takes the page's whole width."""
    return n > 12


def matrix(names: Sequence[str], shares: Sequence[Sequence[float | None]], key: str) -> str:
    """Square of shares with the number in each cell; None is left blank. Columns have the lines' numbers."""
    n = len(names)
    width = WIDE if is_wide(n) else WIDTH
    side = min(0.42, (width - 1.5) / n)
    with _figure(key, n, side, extra=0.3, width=width) as (axes, svg):
        values = np.array([[np.nan if share is None else share for share in line] for line in shares], dtype=float)
        axes.pcolormesh(np.ma.masked_invalid(values), cmap="Greys", vmin=0, vmax=1.15, edgecolors="white")
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    color="white" if value > 0.7 else "black",
                    fontsize=min(8.5, 34 * side),
                    in_layout=False,  # measuring hundreds of texts would take most of the time
                )
        axes.set(xlim=(0, n), ylim=(n, 0))
        axes.set_yticks(np.arange(n) + 0.5, [f"{short(name)}  {i}" for i, name in enumerate(names, 1)])
        axes.set_xticks(np.arange(n) + 0.5, [str(i) for i in range(1, n + 1)])
        axes.tick_params(bottom=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
    return svg[0]


def chosen(names: Sequence[str], first: Sequence[float], fused: Sequence[float | None], key: str) -> str:
    """Bars: how often each LLM is the best (full), and how often it is fused (hatched, behind)."""
    with _figure(key, len(names), 0.27, extra=0.7) as (axes, svg):
        _rows(axes, names)
        rows = np.arange(len(names))
        both = any(share is not None for share in fused)
        if both:
            axes.barh(
                rows,
                [100 * (share or 0) for share in fused],
                height=0.72,
                color=PALE,
                edgecolor=BLUE,
                hatch="////",
                linewidth=0.7,
                label="among those fused",
            )
        axes.barh(rows, [100 * share for share in first], height=0.36, color=INK, label="ranked first")
        for y, (best, share) in enumerate(zip(first, fused, strict=True)):
            _aside(axes, y, f"{100 * best:.0f}" + ("" if share is None else f" / {100 * share:.0f}"))
        axes.set_xlabel("% of rows")
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        if both:
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(
                handles[::-1], labels[::-1], loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, frameon=False
            )
    return svg[0]


def spread(names: Sequence[str], lengths: Sequence[Sequence[int]], key: str) -> str:
    """Boxes: median and quartiles, whiskers from the 5th to the 95th percentile, on a logarithmic axis.

    Every list has at least one length; 0 is drawn as 1.
    """
    with _figure(key, len(names), 0.25) as (axes, svg):
        _rows(axes, names)
        boxes = []
        for y, values in enumerate(lengths):
            low, left, middle, right, high = np.maximum(np.percentile(values, [5, 25, 50, 75, 95]), 1)
            boxes.append({"whislo": low, "q1": left, "med": middle, "q3": right, "whishi": high, "fliers": []})
            _aside(axes, y, f"{np.median(values):,.0f}")
        axes.bxp(
            boxes,
            positions=list(range(len(names))),
            orientation="horizontal",
            widths=0.5,
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": PALE, "edgecolor": INK, "linewidth": 0.8},
            medianprops={"color": "black", "linewidth": 1.8},
            whiskerprops={"color": INK, "linewidth": 0.8},
            capprops={"color": INK, "linewidth": 0.8},
        )
        low = min(box["whislo"] for box in boxes)
        high = max(box["whishi"] for box in boxes)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        ticks = _log_ticks(low / 1.3, high * 1.3)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("characters (logarithmic)")
        axes.grid(axis="x")
    return svg[0]


def bars(names: Sequence[str], values: Sequence[float], label: str, key: str) -> str:
    """Bars with their values; `label` names the axis."""
    with _figure(key, len(names), 0.25) as (axes, svg):
        _rows(axes, names)
        axes.barh(range(len(names)), values, height=0.6, color=PALE, edgecolor=INK, linewidth=0.8)
        for y, value in enumerate(values):
            _aside(axes, y, f"{value:,.0f}" if value >= 100 else f"{value:,.3g}")
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
    return svg[0]


def _log_ticks(low: float, high: float) -> list[int]:
    """Round numbers from `low` to `high`, as many as fit."""
    for steps in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in range(12) for step in steps if low <= step * 10**power <= high]
        if len(ticks) <= 6:
            break
    return ticks


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """One line for each name, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _aside(axes: Axes, y: float, text: str) -> None:
    """A number at the right end of a line."""
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center")


@contextmanager
def _figure(
    key: str, lines: int, each: float, extra: float = 0.5, width: float = WIDTH
) -> Iterator[tuple[Axes, list[str]]]:
    """One pair of axes, `each` inches high for each of `lines`; after the block the list holds the SVG.

    `key` distinguishes the ids of the SVG from those of the page's other figures.
    """
    svg: list[str] = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's own font has the characters that DejaVu Sans lacks; only their widths are estimated.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, each * lines + extra), layout="constrained")
        yield figure.subplots(), svg
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    svg.append(_ID.sub(lambda match: f"{match[0]}{key}-", text))
