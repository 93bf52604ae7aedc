"""What a person sees of a run: rates and time left from a clock given by hand, the table as rich renders it."""

import io
import threading
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from llm_blender_ray.pipelines.bulk import progress as display
from llm_blender_ray.pipelines.bulk.progress import (
    PlannedStage,
    Progress,
    ProgressEstimator,
    ProgressView,
    StageProgress,
    display_progress,
    format_duration,
)
from llm_blender_ray.pipelines.bulk.tracker import Count, Snapshot

ONE = (PlannedStage("alder", 1),)
CHAIN = (PlannedStage("alder", 1), PlannedStage("birch", 1), PlannedStage("ranker", 1))
TWENTY = tuple(PlannedStage(f"model-with-a-long-name-{i}", 1) for i in range(20))


def snapshot_of(*, loaded: int = 1, **counts: Count) -> Snapshot:
    return Snapshot(counts, dict.fromkeys(counts, loaded))


def follow(series: Iterable[tuple[float, int]], *, total: int = 10**9, saved: int = 0) -> StageProgress:
    """The one stage at the end of a series of (time, rows done in this session)."""
    estimator = ProgressEstimator(ONE, total)
    for now, made in series:
        count = Count(rows=saved + made, saved=saved, completion_tokens=7 * made)
        progress = estimator.add(now, snapshot_of(alder=count))
    return progress.stages[0]


def rendered(moment: ProgressView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(moment)
    return console.export_text().splitlines()


# Rates


@given(
    lump=st.integers(1, 1000),
    every=st.integers(1, 300),
    lumps=st.integers(1, 40),
    later=st.floats(0, 1),
    saved=st.integers(0, 10**6),
)
def test_rate_of_regular_lumps_is_exact(lump: int, every: int, lumps: int, later: float, saved: int) -> None:
    """At any moment until the next lump, however long that takes, and whatever was saved."""
    assume(lumps * every >= 5)
    end = lumps * every
    series = [(t, t // every * lump) for t in range(end + 1)] + [(end + later * every, lumps * lump)]
    stage = follow(series, saved=saved)
    assert stage.rows_per_s == pytest.approx(lump / every)
    assert stage.tokens_per_s == pytest.approx(7 * lump / every)


@given(before=st.integers(1, 100), after=st.integers(1, 100))
def test_rate_is_that_of_the_last_half_minute(before: int, after: int) -> None:
    changed = 600
    series = [(t, t * before if t <= changed else changed * before + (t - changed) * after) for t in range(635)]
    assert follow(series).rows_per_s == pytest.approx(after)


def test_rate_of_a_stage_that_has_stopped_falls() -> None:
    series = [(t, 10 * min(t, 100)) for t in range(100 + 300 + 1)]
    assert follow(series[:121]).rows_per_s == pytest.approx(10)
    assert follow(series).rows_per_s == pytest.approx(1)  # what 30 s brought, over the 300 s since


def test_rate_is_unknown_at_first() -> None:
    assert follow([(0, 0)]).rows_per_s is None
    assert follow([(0, 0), (1, 50)]).rows_per_s is None
    assert follow([(0, 0), (1, 50), (10, 50)]).rows_per_s == pytest.approx(50 / 9)


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 10**6)), min_size=1, max_size=60))
def test_a_rate_is_never_negative_nor_zero(steps: list[tuple[float, int]]) -> None:
    """Whatever a tracker reports, even one that began anew."""
    now, series = 0.0, []
    for seconds, rows in steps:
        now += seconds
        series.append((now, rows))
    stage = follow(series)
    assert stage.rows_per_s is None or stage.rows_per_s > 0
    assert stage.seconds_left is None or stage.seconds_left >= 0


def test_loading_and_waiting_for_the_first_rows_is_no_time_of_work() -> None:
    estimator = ProgressEstimator(CHAIN, 10_000)
    for now in range(1000 + 1):
        done, ranked = max(0, now - 900), max(0, now - 950)
        counts = {"alder": Count(rows=done), "birch": Count(rows=done), "ranker": Count(rows=ranked)}
        progress = estimator.add(now, Snapshot(counts, {"alder": int(now >= 900), "birch": 1, "ranker": 1}))
        if now == 920:  # it began within the second before it was seen
            alder, birch, ranker = (stage.rows_per_s for stage in progress.stages)
            assert [alder, birch] == pytest.approx([1, 1], rel=0.05)
            assert ranker is None
    assert progress.stages[2].rows_per_s == pytest.approx(1)


def test_a_stage_that_is_through_shows_its_mean() -> None:
    series = [(t, 10 * min(t, 50) + max(0, t - 50)) for t in range(101)]  # 550 rows in 100 s, slow at the end
    assert follow(series, total=10_000).rows_per_s == pytest.approx(1)
    assert follow([*series, (500, 550)], total=550).rows_per_s == pytest.approx(5.5)


# Queues and the time left


@given(total=st.integers(0, 10**6), done=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_queue_is_what_came_and_is_not_through(total: int, done: tuple[int, int, int]) -> None:
    counts = {stage.name: Count(rows=rows) for stage, rows in zip(CHAIN, done, strict=True)}
    stages = ProgressEstimator(CHAIN, total).add(0, Snapshot(counts)).stages
    assert [stage.queue for stage in stages] == [
        max(0, came - rows) for came, rows in zip((total, *done[:2]), done, strict=True)
    ]


def test_time_left_is_that_of_the_slowest_stage() -> None:
    estimator = ProgressEstimator(CHAIN, 1000)
    for now in range(101):
        counts = {"alder": Count(rows=600 + 4 * now, saved=600), "birch": Count(rows=2 * now), "ranker": Count()}
        progress = estimator.add(now, snapshot_of(**counts))
    assert [stage.seconds_left for stage in progress.stages] == [0, pytest.approx(400), None]
    assert progress.seconds_left is None
    progress = estimator.add(101, snapshot_of(**counts | {"ranker": Count(rows=101)}))
    assert progress.stages[2].seconds_left == progress.seconds_left == pytest.approx(899)


def test_saved_rows_are_not_left_and_make_no_rate() -> None:
    stage = follow([(0, 0), (10, 0), (20, 100)], total=1000, saved=400)
    assert (stage.rows, stage.rows_per_s, stage.seconds_left) == (500, pytest.approx(5), pytest.approx(100))
    whole = follow([(0, 0), (60, 0)], total=400, saved=400)
    assert (whole.done, whole.loading, whole.rows_per_s, whole.seconds_left) == (True, False, None, 0)


def test_nothing_to_do_is_done() -> None:
    progress = ProgressEstimator(CHAIN, 0).add(0, Snapshot())
    assert progress.seconds_left == 0
    assert len(rendered(ProgressView("wave 1 of 1", 0, 0, 0, progress), 80)) == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (360, "6 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_about(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# A line, a table


def halfway() -> ProgressView:
    alder = StageProgress("alder", 2000, 2, 2, 512, 1488, 2, True, 4.31, 350.2)
    ranker = StageProgress("ranker", 2000, 1, 1, 448, 64, 0, True, 3.9, None)
    return ProgressView("wave 1 of 2", 2000, 1000.0, 1120.0, Progress(1119.0, (alder, ranker)))


def test_line() -> None:
    assert halfway().line() == (
        "wave 1 of 2 | 120 s | alder 512/2000 (4.3 rows/s, 350 tok/s, 2 errors) "
        "| ranker 448/2000 (3.9 rows/s, queue 64) | 2 errors | 7 min left"
    )


def test_line_while_models_load() -> None:
    counts = {"alder": Count(rows=30, saved=30)}
    progress = ProgressEstimator((PlannedStage("alder", 2),), 50).add(0, snapshot_of(loaded=1, **counts))
    assert ProgressView("wave 1 of 1", 50, 0, 15, progress).line() == (
        "wave 1 of 1 | 15 s | alder 30/50 (loading 1/2) | 0 errors"
    )


def test_a_silent_board_is_told() -> None:
    progress = ProgressEstimator(ONE, 50).add(0, Snapshot())
    assert "no news" not in ProgressView("wave 1 of 1", 50, 0, 29, progress).line()
    moment = ProgressView("wave 1 of 1", 50, 0, 45, progress)
    assert moment.line().endswith(" | no news for 45 s")
    assert "no news for 45 s" in rendered(moment, 60)[0]


def test_table() -> None:
    head, names, alder, ranker = rendered(halfway(), 80)
    assert head.split("  ") == ["wave 1 of 2", "0:02:00", "7 min left", "2 errors"]
    assert names.split() == ["rows", "queue", "rows/s", "tok/s", "errors"]
    assert alder.replace("━", " ").replace("╸", " ").replace("╺", " ").split() == (
        ["alder", "512/2,000", "1,488", "4.3", "350", "2"]
    )
    assert ranker.replace("━", " ").replace("╸", " ").replace("╺", " ").split() == (
        ["ranker", "448/2,000", "64", "3.9"]
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_twenty_stages_of_a_million_rows_fit_a_terminal(width: int) -> None:
    estimator = ProgressEstimator(TWENTY, 1_000_000)
    for now in (0.0, 100.0):
        made = int(now * 1234)
        count = Count(rows=800_000 + made, saved=800_000, failed=10 * made, completion_tokens=80 * made)
        progress = estimator.add(now, snapshot_of(**{stage.name: count for stage in TWENTY}))
    lines = rendered(ProgressView("wave 10 of 12", 1_000_000, 0, 360_100, progress), width)
    assert len(lines) == 22  # of a terminal's 24
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("wave 10 of 12  4 days, 4:01:40")
    for line in lines[2:]:
        assert "━" in line
        assert "923,400" in line
        assert line.split()[-3:] == ["1,234", "98,720", "1,234,000"]


def test_table_while_models_load() -> None:
    progress = ProgressEstimator((PlannedStage("alder", 2),), 50).add(0, Snapshot(loaded={"alder": 1}))
    assert rendered(ProgressView("wave 1 of 1", 50, 0, 1, progress), 60)[2].split() == [
        "alder",
        "loading",
        "1/2",
        "0",
        "50",
    ]


# While a run goes on


class Time:
    """A clock that goes on only by being waited for, as long as told."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.until = seconds
        self.over = threading.Event()

    def clock(self) -> float:
        return self.now

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.now += seconds
        if self.now < self.until:
            return False
        self.over.set()
        return stop.wait()


def a_row_a_second(time: Time) -> Snapshot:
    return snapshot_of(alder=Count(rows=int(time.now)))


def test_a_log_gets_a_line_now_and_then() -> None:
    time, log = Time(10 * 3600), Console(file=io.StringIO())
    with display_progress(
        lambda: a_row_a_second(time),
        ONE,
        total=36_000,
        title="wave 1 of 1",
        console=log,
        clock=time.clock,
        wait=time.wait,
    ):
        assert time.over.wait(60)
    first, *lines, last = log.file.getvalue().splitlines()
    assert first == "wave 1 of 1 | start | 36000 rows | alder x1"
    assert last == "wave 1 of 1 | done after 36000 s | alder 36000/36000 (1.0 rows/s) | 0 errors"
    assert lines[0] == "wave 1 of 1 | 15 s | alder 15/36000 (1.0 rows/s) | 0 errors | 10 h 0 min left"
    times = [int(line.split(" | ")[1].removesuffix(" s")) for line in lines]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (15, 120)


def test_rows_of_an_unknown_number_are_shown_without_one() -> None:
    time, log = Time(60), Console(file=io.StringIO())
    with display_progress(
        lambda: a_row_a_second(time), ONE, total=0, title="reading", console=log, clock=time.clock, wait=time.wait
    ):
        assert time.over.wait(60)
    first, *lines = log.file.getvalue().splitlines()
    assert first == "reading | start | alder x1"
    assert lines[0] == "reading | 15 s | alder 15 (1.0 rows/s) | 0 errors"
    progress = ProgressEstimator(ONE, 0).add(0, snapshot_of(alder=Count(rows=5)))
    for width in (60, 100):
        title, _, stage = rendered(ProgressView("reading", 0, 0, 1, progress), width)
        assert title.split() == ["reading", "0:00:01"] and stage.split()[-1] == "5"


def test_a_log_of_a_short_run_is_empty() -> None:
    """What it did is told by its result, and why it failed by one line."""
    log = Console(file=io.StringIO())
    with display_progress(Snapshot, ONE, total=5, title="wave 1 of 1", console=log):
        pass
    assert log.file.getvalue() == ""


def test_the_end_is_seen() -> None:
    time, log = Time(20), Console(file=io.StringIO())
    done = 0
    with display_progress(
        lambda: snapshot_of(alder=Count(rows=done)),
        ONE,
        total=5,
        title="wave 1 of 1",
        console=log,
        clock=time.clock,
        wait=time.wait,
    ):
        assert time.over.wait(60)
        done = 5
    assert "| alder 5/5 " in log.file.getvalue().splitlines()[-1]


def test_a_board_that_gives_nothing_or_fails_ends_nothing() -> None:
    time, log = Time(60), Console(file=io.StringIO())

    def read() -> Snapshot | None:
        if time.now < 20:
            return a_row_a_second(time)
        if time.now < 40:
            return None
        raise RuntimeError("the tracker is gone")

    with display_progress(read, ONE, total=100, title="wave 1 of 1", console=log, clock=time.clock, wait=time.wait):
        assert time.over.wait(60)
    *_, late, last = log.file.getvalue().splitlines()
    assert late.startswith("wave 1 of 1 | 45 s | alder 19/100 (1.0 rows/s)")
    assert last == "wave 1 of 1 | done after 60 s | alder 19/100 (1.0 rows/s) | 0 errors | no news for 41 s"


def test_a_board_that_never_answers_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_LAST_LOOK_S", 0.0)
    log, asked, answer = Console(file=io.StringIO()), threading.Event(), threading.Event()

    def read() -> None:
        asked.set()
        answer.wait()

    try:
        with display_progress(
            read, ONE, total=5, title="wave 1 of 1", console=log, wait=lambda stop, _: stop.is_set()
        ):
            assert asked.wait(60)
        assert log.file.getvalue() == ""
    finally:
        answer.set()


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    log = Console(file=io.StringIO())
    with display_progress(Snapshot, ONE, total=5, title="wave 1 of 1", console=log):
        log.file.close()


def test_a_file_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the environment of a CI says."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    time = Time(20)
    with display_progress(Snapshot, ONE, total=5, title="wave 1 of 1", clock=time.clock, wait=time.wait):
        assert time.over.wait(60)
    said = capsys.readouterr()
    assert said.out == ""
    assert "\x1b" not in said.err
    assert said.err.startswith("wave 1 of 1 | start")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_run_leaves_a_clean_terminal(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    with (
        pytest.raises(error),
        display_progress(
            lambda: snapshot_of(alder=Count(rows=3)), ONE, total=5, title="wave 1 of 1", console=terminal
        ),
    ):
        raise error
    said = terminal.file.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert said.startswith(hide)
    assert said.endswith(show)
    assert "stopped after 0:00:00" in said
    assert "3/5" in said


def test_a_log_says_that_a_run_was_stopped() -> None:
    time, log = Time(20), Console(file=io.StringIO())
    with (
        pytest.raises(KeyboardInterrupt),
        display_progress(Snapshot, ONE, total=5, title="w", console=log, clock=time.clock, wait=time.wait),
    ):
        assert time.over.wait(60)
        raise KeyboardInterrupt
    assert "| stopped after 20 s |" in log.file.getvalue().splitlines()[-1]
