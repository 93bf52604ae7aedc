"""What a page is made of, and how numbers are written on it."""

from dataclasses import dataclass

from markupsafe import Markup

from llm_blender_ray.pipelines.quality.evaluation import Mean

SHOWN = 24  # LLMs and the like at most; more would be read by nobody


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first column is what the line is about."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...] = ()  # columns that hold text, not numbers


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, what it shows for who can't see it, and what to know beside it."""

    title: str
    svg: Markup
    alt: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    title: str
    texts: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def share(part: float, whole: float) -> str:
    """A share in percent."""
    return "" if not whole else f"{100 * part / whole:.1f}%"


def value_of(mean: Mean | None, form: str) -> str:
    return "" if mean is None or mean.value is None else format(mean.value, form)


def percent(mean: Mean | None) -> str:
    return "" if mean is None or mean.value is None else f"{100 * mean.value:.1f}%"


def plus_minus(mean: Mean | None, *, digits: int = 3, sign: bool = False) -> str:
    if mean is None or mean.value is None:
        return ""
    value = f"{mean.value:{'+' if sign else ''},.{digits}f}"
    return value if mean.ci95_half_width is None else f"{value} ± {mean.ci95_half_width:,.{digits}f}"


def percent_plus_minus(mean: Mean) -> str:
    if mean.value is None:
        return ""
    return (
        f"{100 * mean.value:.1f}%"
        if mean.ci95_half_width is None
        else f"{100 * mean.value:.1f} ± {100 * mean.ci95_half_width:.1f}%"
    )
