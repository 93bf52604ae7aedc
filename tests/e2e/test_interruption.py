"""Signals at any moment: one line, the exit code that shells expect, nothing left running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from llm_blender_ray.cluster.processes import descendants, title, wait_until
from llm_blender_ray.pipelines.interruption import how_to_go_on

RESUMES = "blend: interrupted; the same command resumes where it stopped; finished blocks are kept\n"
NOT_OF_THE_END = ("import time:", "reading | ", "run | ")  # progress is printed where a run is slow
PATIENCE_S = 60.0


def _heed_sigint() -> None:
    """Shells have what they start in the background ignore it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process, ended with all below it when the test fails."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        preexec_fn=_heed_sigint,
    )
    try:
        yield process
    finally:
        for one in [*descendants(process), psutil.Process(process.pid)] if process.poll() is None else []:
            one.kill()


def script(text: str) -> list[str]:
    """Arguments that run a program which has children of two generations, says so, and goes on with `text`."""
    begin = """
        import ctypes, os, signal, subprocess, sys, time
        from pathlib import Path
        from llm_blender_ray.pipelines.interruption import install, left_to_others, undone
        install()
        subprocess.Popen(["sh", "-c", "setsid sleep 600 & sleep 600"])
        def ready(): print("ready", flush=True)
    """
    return ["-c", textwrap.dedent(begin) + textwrap.dedent(text), "run"]


def end(process: subprocess.Popen[str], *signals: int) -> tuple[int, str]:
    """Signal a process that is ready; its exit code and what it wrote to stderr. Nothing below it is left."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    below = descendants(process)
    assert below
    for number in signals:
        process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert not psutil.wait_procs(below, timeout=PATIENCE_S)[1]
    return process.returncode, told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("busy", ["time.sleep(600)", "ctypes.CDLL(None).sleep(600)", "while True: pass"])
def test_one_line_the_code_and_nothing_left(number: int, code: int, busy: str) -> None:
    """Also where the main thread is in C code that doesn't come back."""
    with started(*script(f"ready()\n{busy}")) as process:
        assert end(process, number) == (code, RESUMES)


def test_more_signals_change_nothing() -> None:
    with started(*script("ready()\ntime.sleep(600)")) as process:
        assert end(process, signal.SIGINT, signal.SIGINT, signal.SIGINT) == (130, RESUMES)


def test_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    text = f"""
        from llm_blender_ray.pipelines.rows.uris import replacing
        with replacing({str(tmp_path / "rows.jsonl")!r}) as file:
            file.write(b"half")
            ready()
            time.sleep(600)
    """
    with started(*script(text)) as process:
        assert end(process, signal.SIGINT) == (130, RESUMES)
    assert not list(tmp_path.iterdir())


def test_a_handler_that_another_set_is_left_alone_and_ours_comes_back() -> None:
    """As the service waits for its end; afterwards the same signal ends the process."""
    text = """
        came = []
        with left_to_others(signal.SIGINT):
            before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
            os.kill(os.getpid(), signal.SIGINT)
            while not came: pass
            signal.signal(signal.SIGINT, before)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(600)
            except KeyboardInterrupt:
                came.append(2)
        assert came == [1, 2]
        ready()
        time.sleep(600)
    """
    with started(*script(text)) as process:
        assert end(process, signal.SIGINT) == (130, RESUMES)


def test_a_signal_that_was_for_others_ends_nothing_later() -> None:
    """The thread that ends the process sees it late, when signals are its own again."""
    text = """
        read, slow = os.read, threading.Event()
        def late(*arguments):
            received = read(*arguments)
            slow.wait(0.5)
            return received
        os.read = late
        came = []
        os.write(interruption._sink, b"?")  # the thread waits in the fast one still
        with left_to_others(signal.SIGINT):
            before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
            os.kill(os.getpid(), signal.SIGINT)
            while not came: pass
            signal.signal(signal.SIGINT, before)
        slow.wait(2)
        for child in psutil.Process().children(recursive=True): child.kill()
        os._exit(7)
    """
    with started(
        *script(
            "import psutil, threading\nfrom llm_blender_ray.pipelines import interruption\n" + textwrap.dedent(text)
        )
    ) as process:
        assert process.wait(PATIENCE_S) == 7


def test_a_forked_child_has_signals_of_its_own() -> None:
    text = """
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            os.write(sink, b".")
            while True: signal.pause()
        os.read(source, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        ready()
        time.sleep(600)
    """
    with started(*script(text)) as process:
        assert end(process, signal.SIGINT) == (130, RESUMES)


def test_ignored_signals_stay_ignored() -> None:
    """As a shell sets them for what runs in the background."""
    text = """
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        ready()
        time.sleep(600)
    """
    code, *rest = script(text)
    with started(code, "import signal; signal.signal(2, signal.SIG_IGN)\n" + rest[0], *rest[1:]) as process:
        assert end(process, signal.SIGTERM) == (143, RESUMES)


def test_each_command_says_how_to_go_on() -> None:
    for command in ("run", "rank", "fuse", "compare"):
        assert how_to_go_on(["--debug", command, "--input", "x"]) + "\n" == RESUMES.removeprefix("blend: ")
    assert "resumes from the last checkpoint, if there is one" in how_to_go_on(["train", "ranker", "c.yaml"])
    assert "job" in how_to_go_on(["submit", "c.yaml"])
    assert how_to_go_on(["evaluate", "out"]) == "interrupted; the same command starts again; nothing is kept"
    for arguments in (["serve", "c.yaml"], ["plan", "c.yaml"], []):
        assert how_to_go_on(arguments) == "interrupted; the same command starts again"


class Running:
    """`blend run` in a process of its own, and what is seen of it."""

    def __init__(self, folder: Path) -> None:
        source, config = folder / "in.jsonl", folder / "c.yaml"
        source.write_text("".join(json.dumps({"id": str(i), "prompt": f"p {i}"}) + "\n" for i in range(8000)))
        settings = {
            "models": [{"name": "one", "engine": "echo", "model": "none"}],
            "ranker": {"kind": "echo"},
            "rows_per_block": 32,
            "ray": {"num_cpus": 2},
        }
        config.write_text(yaml.safe_dump(settings))
        self.output, self.work, self.told = folder / "out.jsonl", folder / ".out.jsonl.blend", folder / "told"
        without_auth = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        command = [sys.executable, "-X", "importtime", "-m", "llm_blender_ray", "run", str(config)]
        command += ["--input", str(source), "--output", str(self.output)]
        with self.told.open("w") as told:
            home = {"HOME": "/dev/null"}  # nor does it need a place where it may write
            self.process = subprocess.Popen(command, stderr=told, env=without_auth | home, preexec_fn=_heed_sigint)

    def imports(self) -> bool:
        return "pydantic" in self.told.read_text()

    def starts_ray(self) -> bool:
        return any("gcs_server" in title(one) for one in descendants(self.process))

    def reads(self) -> bool:
        return any(self.work.glob("rows/*/*.parquet"))

    def works(self) -> bool:
        return any(self.work.glob("results/*/*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        (Running.imports, signal.SIGINT),
        (Running.starts_ray, signal.SIGINT),
        (Running.reads, signal.SIGTERM),
        (Running.works, signal.SIGINT),
    ],
)
def test_a_run_is_interrupted_at_any_moment(phase: Callable[[Running], bool], number: int, tmp_path: Path) -> None:
    run = Running(tmp_path)
    assert wait_until(lambda: phase(run), run.process)
    below = descendants(run.process)
    run.process.send_signal(number)
    assert run.process.wait(timeout=PATIENCE_S) == 128 + number
    lines = [line for line in run.told.read_text().splitlines() if not line.startswith(NOT_OF_THE_END)]
    assert lines == [RESUMES.rstrip()]
    assert not psutil.wait_procs(below, timeout=PATIENCE_S)[1]
    assert not run.output.exists()
