"""Progress of a pass over rows: a bar for a person, few lines in a log, nothing for a short pass."""

import io
import itertools

import pytest
from rich.console import Console

from llm_blender_ray.pipelines.quality.row_progress import with_progress


def test_a_log_has_lines_ever_further_apart(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = itertools.count(step=10).__next__
    assert list(with_progress(iter(range(12)), "evaluate", clock=seconds)) == list(range(12))
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "blend: evaluate: 2 rows in 20 s",
        "blend: evaluate: 3 rows in 30 s",
        "blend: evaluate: 5 rows in 50 s",
        "blend: evaluate: 8 rows in 80 s",
        "blend: evaluate: 12 rows in 120 s",
    ]
    assert shown.out == ""


def test_a_short_pass_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress("ab", "report", clock=itertools.count().__next__)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_person_sees_the_number_of_rows() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100)
    assert list(with_progress(range(1200), "evaluate", console=console)) == list(range(1200))
    assert "evaluate: 1,200 rows" in drawn.getvalue()
