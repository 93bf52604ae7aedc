"""Progress of one pass over rows in this process: a line that a person watches, or plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llm_blender_ray.cluster.notices import report_line

_RowT = TypeVar("_RowT")
FIRST_LINE_S, LINE_GROWTH = 15.0, 1.5  # a short pass has no line; later ones are ever further apart


def with_progress(
    rows: Iterable[_RowT],
    title: str,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_RowT]:
    """Yield the rows and show on stderr how many were taken.

    Args:
        rows: The rows, of which nobody knows the number.
        title: Of the pass.
        console: Where to draw; None: stderr.
        clock: Seconds, never going back.
    """
    if console is None:  # a file is no terminal, even with FORCE_COLOR
        console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    yield from _with_bar(rows, title, console) if console.is_terminal else _with_lines(rows, title, clock)


def _with_bar(rows: Iterable[_RowT], title: str, console: Console) -> Iterator[_RowT]:
    columns = (TextColumn(f"{title}: {{task.completed:,.0f}} rows"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        for row in rows:
            yield row
            progress.advance(task)


def _with_lines(rows: Iterable[_RowT], title: str, clock: Callable[[], float]) -> Iterator[_RowT]:
    began = clock()
    line_at, count = FIRST_LINE_S, 0
    for count, row in enumerate(rows, 1):
        yield row
        if (elapsed := clock() - began) >= line_at:
            report_line(f"{title}: {count:,} rows in {elapsed:,.0f} s")
            line_at = elapsed * LINE_GROWTH
