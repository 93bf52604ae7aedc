"""How far a run is: its actors tell one small Ray actor, the board; the driver shows what the board says.

The board also carries the error that ends a run: what an actor raises, Ray passes on as the text of a traceback.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actors.errors import BlendError

READ = "read"
_POLL_S = 0.5
_LINE_EVERY_S = 15.0


class Board:
    """Rows done per stage, and the first error that ends the run."""

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()
        self._failure: BlendError | None = None

    def add(self, stage: str, rows: int) -> None:
        self._done[stage] += rows

    def done(self) -> dict[str, int]:
        return dict(self._done)

    def fail(self, error: BlendError) -> None:
        self._failure = self._failure or error

    def failure(self) -> BlendError | None:
        return self._failure


def start_board() -> Any:
    """A board's handle, which can be handed to actors."""
    return ray.remote(Board).options(num_cpus=0).remote()


@contextmanager
def shown(board: Any, stages: Sequence[str]) -> Iterator[None]:
    """Show the board while the block runs: bars when a person watches, else a plain line now and then."""
    console = Console(stderr=True)
    stop = threading.Event()
    watch = _bars if console.is_terminal else _lines
    thread = threading.Thread(target=watch, args=(board, stages, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _counts(board: Any) -> dict[str, int]:
    try:
        return ray.get(board.done.remote(), timeout=10)
    except ray.exceptions.RayError:  # the display must never end a run
        return {}


def _bars(board: Any, stages: Sequence[str], console: Console, stop: threading.Event) -> None:
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {stage: progress.add_task(stage, total=None) for stage in stages}
        finished = False
        while not finished:
            finished = stop.wait(_POLL_S)
            done = _counts(board)
            for stage, bar in bars.items():
                progress.update(bar, completed=done.get(stage, 0), total=done.get(READ))


def _lines(board: Any, stages: Sequence[str], console: Console, stop: threading.Event) -> None:
    started = time.monotonic()
    while not stop.wait(_LINE_EVERY_S):
        done = _counts(board)
        told = ", ".join(f"{stage} {done.get(stage, 0)}" for stage in (READ, *stages))
        console.print(f"{time.monotonic() - started:.0f} s: rows {told}", highlight=False, soft_wrap=True)
