"""The `blend` command in the test's own process: what its code does, without a process's start.

The process itself (its signals, its first imports, a Ray of its own) is the subject of tests that start one.
"""

import sys
from dataclasses import dataclass

import pytest

from llm_blender_ray.pipelines.cli import commands


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class InProcess:
    """`blend` in this process, on the Ray that it is connected to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *args: object, code: int = 0) -> Done:
        """Run it.

        Args:
            args: Of the command line.
            code: The exit code that it must have.
        """
        self._capfd.readouterr()
        with self._monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["blend", *map(str, args)])
            patch.setattr(commands, "install", lambda: None)  # the signals of this process are pytest's
            commands.main()
        done = Done(int(ended.value.code or 0), *self._capfd.readouterr())
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done
