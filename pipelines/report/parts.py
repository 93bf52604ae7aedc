"""Parts of a page, and the format of numbers on it."""

from dataclasses import dataclass

from markupsafe import Markup

from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.rounding import fixed

MAX_MODELS = 24  # most LLMs of a table or figure


@dataclass(frozen=True, slots=True)
class Table:
    """Table of texts; the first column names the line."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...] = ()  # columns of text; others are numbers


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its alternative text and a note."""

    title: str
    svg: Markup
    alt: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    title: str
    texts: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def share(part: float, whole: float) -> str:
    """A share in percent; empty for a share of nothing."""
    return "" if not whole else f"{100 * part / whole:.1f}%"


def value_of(mean: Mean | None, digits: int = 3, *, sign: bool = False) -> str:
    """The mean; empty without a value."""
    return "" if mean is None or mean.value is None else fixed(mean.value, digits, sign=sign)


def plus_minus(mean: Mean | None, *, digits: int = 3, sign: bool = False) -> str:
    """The mean and half the width of its 95% interval; empty without a value."""
    if mean is None or mean.value is None:
        return ""
    value = fixed(mean.value, digits, sign=sign)
    return value if mean.ci95_half_width is None else f"{value} ± {fixed(mean.ci95_half_width, digits)}"


def percent_plus_minus(mean: Mean | None) -> str:
    """The same as a percentage."""
    if mean is None or mean.value is None:
        return ""
    return (
        f"{100 * mean.value:.1f}%"
        if mean.ci95_half_width is None
        else f"{100 * mean.value:.1f} ± {100 * mean.ci95_half_width:.1f}%"
    )
