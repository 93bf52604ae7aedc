"""Progress of a run: a live table on a terminal, periodic plain lines in a job's log.

It only observes: a tracker that is slow, lost or wrong, or a closed terminal, never ends or delays a run. So a
thread that nothing waits for polls the tracker, another draws, and a pure function makes the immutable value that
is drawn from the tracker's snapshots.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_blender_ray.pipelines.bulk.tracker import Count, Snapshot

WINDOW_S = 30.0
_SHORTEST_S = 5.0  # a rate over less is noise
_SILENCE_S = 30.0  # without news, after which that is shown
_LOOK_EVERY_S = 1.0
_LAST_LOOK_S = 5.0  # longest delay of a run's end by a tracker that does not answer
_LINE_AFTER_S, _LINE_GROWTH, _LINE_EVERY_S = 15.0, 0.1, 120.0  # a tenth of the elapsed time, within these limits
_WIDE = 80  # columns

_State = Literal["running", "done", "stopped"]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a run, and its planned number of actors."""

    name: str
    replicas: int


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Progress of one stage.

    `rows` and `failed` are of the whole run, with all its sessions. `queue`: rows that have reached this stage and
    not passed it. Rates are of this session, None while unknown: over about the last half minute, and over the
    stage's whole time once it is done.
    """

    name: str
    total: int
    replicas: int
    loaded: int = 0
    rows: int = 0
    queue: int = 0
    failed: int = 0
    begun: bool = False  # in this session
    rows_per_s: float | None = None
    tokens_per_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether all rows have passed the stage."""
        return self.rows >= self.total

    @property
    def loading(self) -> bool:
        """Whether some of its actors are still loading."""
        return not self.begun and not self.done and self.loaded < self.replicas

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds; None while the rate is unknown."""
        if self.done:
            return 0.0
        return None if self.rows_per_s is None else (self.total - self.rows) / self.rows_per_s


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of all stages at the time `at`, in the order in which rows pass them."""

    at: float
    stages: tuple[StageProgress, ...]

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds of the slowest stage; None while one is unknown."""
        left = [seconds for stage in self.stages if (seconds := stage.seconds_left) is not None]
        return max(left, default=0.0) if len(left) == len(self.stages) else None

    @property
    def failed(self) -> int:
        """Failures of all stages."""
        return sum(stage.failed for stage in self.stages)


class _Rate:
    """Rate of a count that grows in lumps: a batch of rows, then nothing for a while.

    Measured from lump to lump over at least `WINDOW_S`, to smooth over lumps; since the last lump if that is longer
    ago than all the measured time, so that a stopped count falls towards 0.
    """

    def __init__(self, now: float, count: int) -> None:
        self._first = (now, count)
        self._lumps = deque([self._first])  # the latest at least WINDOW_S before the last, if any, and all after it

    def add(self, now: float, count: int) -> None:
        """Add a value of the count."""
        if count == self._lumps[-1][1]:
            return
        self._lumps.append((now, count))
        while self._lumps[1][0] <= now - WINDOW_S:
            self._lumps.popleft()

    def recent(self, now: float) -> float | None:
        """Recent rate per second; None while unknown."""
        return self._since(self._lumps[0], now)

    def mean(self) -> float | None:
        """Rate per second from the start to the last lump; None without one."""
        return self._since(self._first, self._lumps[-1][0])

    def _since(self, start: tuple[float, int], now: float) -> float | None:
        (began, before), (last, count) = start, self._lumps[-1]
        seconds = max(last - began, now - last)
        return (count - before) / seconds if count > before and seconds >= _SHORTEST_S else None


class ProgressEstimator:
    """Computes the run's progress from each `Snapshot` and those before."""

    def __init__(self, stages: Sequence[PlannedStage], total: int) -> None:
        """Start; each of `total` rows (0: unknown) passes the `stages` in this order."""
        self._stages = tuple(stages)
        self._total = total
        self._rates: dict[str, tuple[_Rate, _Rate]] = {}

    def add(self, now: float, snapshot: Snapshot) -> Progress:
        """Add the snapshot of the time `now`, in seconds of any clock that never goes back."""
        come = self._total
        found = []
        for stage in self._stages:
            count = snapshot.counts.get(stage.name, Count())
            loaded = snapshot.loaded.get(stage.name, 0)
            made = count.rows - count.saved
            queue = max(0, come - count.rows)
            if stage.name not in self._rates or (made == 0 and not (loaded and queue)):
                # Loading a model, and waiting for the first rows, does not count as busy time.
                self._rates[stage.name] = _Rate(now, made), _Rate(now, count.completion_tokens)
            rows, tokens = self._rates[stage.name]
            rows.add(now, made)
            tokens.add(now, count.completion_tokens)
            done = count.rows >= self._total
            found.append(
                StageProgress(
                    name=stage.name,
                    total=self._total,
                    replicas=stage.replicas,
                    loaded=loaded,
                    rows=count.rows,
                    queue=queue,
                    failed=count.failed,
                    begun=made > 0,
                    rows_per_s=rows.mean() if done else rows.recent(now),
                    tokens_per_s=tokens.mean() if done else tokens.recent(now),
                )
            )
            come = count.rows
        return Progress(now, tuple(found))


@dataclass(frozen=True, slots=True)
class ProgressView:
    """What is displayed at the time `now`, of a run that began at the time `began`."""

    title: str
    total: int
    began: float
    now: float
    progress: Progress
    state: _State = "running"

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now - self.began

    @property
    def time_left(self) -> tuple[str, ...]:
        """Remaining time, if known and relevant, and whether the tracker is silent."""
        left, silent = self.progress.seconds_left, self.now - self.progress.at
        return (
            *((f"{format_duration(left)} left",) if self.state == "running" and left else ()),
            *((f"no news for {format_duration(silent)}",) if silent >= _SILENCE_S else ()),
        )

    def line(self) -> str:
        """The progress as one line of a log."""
        stages = (_stage_text(stage, first=i == 0) for i, stage in enumerate(self.progress.stages))
        return " | ".join(
            (
                self.title,
                self._took(f"{self.elapsed:.0f} s"),
                *stages,
                _errors(self.progress.failed),
                *self.time_left,
            )
        )

    def _took(self, elapsed: str) -> str:
        return elapsed if self.state == "running" else f"{self.state} after {elapsed}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The progress as a table, with fewer columns on a narrow terminal."""
        wide = options.max_width >= _WIDE
        failed = self.progress.failed
        head = (
            self._took(str(timedelta(seconds=int(self.elapsed)))),
            *self.time_left,
            *((f"{self.total:,} rows",) if self.total and not wide else ()),
            *((_errors(failed),) if failed else ()),
        )
        yield Text.assemble(
            (self.title, "bold"), *(f"  {part}" for part in head), no_wrap=True, overflow="ellipsis"
        )
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=options.max_width // 4)
        table.add_column("", no_wrap=True, ratio=1, min_width=5)
        for name in ("rows", "queue", "rows/s", "tok/s", "errors"):
            table.add_column(name, no_wrap=True, justify="right")
        for stage in self.progress.stages:
            table.add_row(*_cells(stage, wide=wide))
        yield table


def format_duration(seconds: float) -> str:
    """A rounded duration: `45 s`, `6 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _errors(failed: int) -> str:
    return "1 error" if failed == 1 else f"{failed} errors"


def _per_s(rate: float) -> str:
    return f"{rate:.2g}" if rate < 1 else f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def _stage_text(stage: StageProgress, *, first: bool) -> str:
    """Text of a stage. The first stage's queue, which is all remaining rows, is omitted."""
    known = []
    if stage.loading:
        known.append(f"loading {stage.loaded}/{stage.replicas}")
    if stage.rows_per_s is not None:
        known.append(f"{_per_s(stage.rows_per_s)} rows/s")
    if stage.tokens_per_s is not None:
        known.append(f"{_per_s(stage.tokens_per_s)} tok/s")
    if stage.queue and not first:
        known.append(f"queue {stage.queue}")
    if stage.failed:
        known.append(_errors(stage.failed))
    rows = f"{stage.rows}/{stage.total}" if stage.total else f"{stage.rows}"
    return f"{stage.name} {rows}" + (f" ({', '.join(known)})" if known else "")


def _cells(stage: StageProgress, *, wide: bool) -> Iterator[RenderableType]:
    yield Text(stage.name)
    if stage.loading:
        yield Text(f"loading {stage.loaded}/{stage.replicas}", style="yellow")
    else:
        yield ProgressBar(stage.total, stage.rows, complete_style="cyan", finished_style="green")
    yield f"{stage.rows:,}/{stage.total:,}" if wide and stage.total else f"{stage.rows:,}"
    yield f"{stage.queue:,}" if stage.queue else ""
    for rate in (stage.rows_per_s, stage.tokens_per_s):
        yield "" if rate is None else _per_s(rate) if rate < 1000 else f"{rate:,.0f}"
    yield Text(f"{stage.failed:,}", style="red") if stage.failed else ""


class _Display:
    """Display of `display_progress`: one thread polls and writes `_progress`, another ends and writes `_end`."""

    def __init__(
        self,
        read: Callable[[], Snapshot | None],
        stages: Sequence[PlannedStage],
        total: int,
        title: str,
        console: Console,
        clock: Callable[[], float],
        wait: Callable[[threading.Event, float], bool],
    ) -> None:
        self._read, self._stages, self._total, self._title = read, stages, total, title
        self._console, self._clock, self._wait = console, clock, wait
        self._began = clock()
        self._progress = Progress(
            self._began, tuple(StageProgress(stage.name, total, stage.replicas) for stage in stages)
        )
        self._end: tuple[float, _State] | None = None
        self._begun = False  # whether a line has been written
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="display", daemon=True)
        # Ray prints tracebacks of retried tasks on stdout, which is redirected for that reason.
        self._live = Live(console=console, get_renderable=self._now, redirect_stdout=False, refresh_per_second=2)

    def start(self) -> None:
        """Start the threads."""
        if self._console.is_interactive:
            self._live.start(refresh=True)
        self._thread.start()

    def finish(self, state: _State) -> None:
        """Stop them and draw the last state."""
        try:
            self._stop.set()
            if self._thread.is_alive():  # not when the start was interrupted
                self._thread.join(_LAST_LOOK_S)
        finally:  # leaves a clean terminal also after a second Ctrl-C
            self._end = self._clock(), state
            if self._console.is_interactive:
                with suppress(OSError):
                    self._live.stop()
            elif self._begun:
                self._print(self._now().line())

    def _now(self) -> ProgressView:
        now, state = self._end or (self._clock(), "running")
        return ProgressView(self._title, self._total, self._began, now, self._progress, state)

    def _watch(self) -> None:
        estimator = ProgressEstimator(self._stages, self._total)
        line_at = self._began + _LINE_AFTER_S
        ending = False
        while not ending:
            ending = self._wait(self._stop, _LOOK_EVERY_S)
            with suppress(Exception):  # whatever Ray raises when the tracker is lost
                if (snapshot := self._read()) is not None:
                    self._progress = estimator.add(self._clock(), snapshot)
            moment = self._now()
            if not self._console.is_interactive and not self._stop.is_set() and moment.now >= line_at:
                if not self._begun:  # a short run prints its result only
                    stages = ", ".join(f"{stage.name} x{stage.replicas}" for stage in self._stages)
                    rows = (f"{self._total} rows",) if self._total else ()
                    self._print(" | ".join((self._title, "start", *rows, stages)))
                    self._begun = True
                self._print(moment.line())
                line_at = moment.now + min(max(_LINE_AFTER_S, moment.elapsed * _LINE_GROWTH), _LINE_EVERY_S)

    def _print(self, line: str) -> None:
        with suppress(OSError, ValueError):  # the reader has closed it
            print(line, file=self._console.file, flush=True)


@contextmanager
def display_progress(
    read: Callable[[], Snapshot | None],
    stages: Sequence[PlannedStage],
    *,
    total: int,
    title: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
) -> Iterator[None]:
    """Show the progress of a run while the block runs, on `sys.stderr` unless there is a `console`.

    Args:
        read: Polls the tracker, in a thread of its own; may be slow, return None or raise.
        stages: Stages in the order in which rows pass them.
        total: Number of rows; 0: unknown, as while they are read.
        title: Of the run.
        console: Where to draw; None: stderr.
        clock: Seconds, never going back.
        wait: Waits until an event is set, at most a number of seconds; returns whether it is set.
    """
    if console is None:  # a file is no terminal, even with FORCE_COLOR
        console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    display = _Display(read, stages, total, title, console, clock, wait)
    try:
        display.start()
        yield
    except BaseException:
        display.finish("stopped")
        raise
    display.finish("done")
