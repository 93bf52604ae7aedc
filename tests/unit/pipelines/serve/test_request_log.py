"""Targets of the service's log, and lines of other processes."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.serve import request_log
from llm_blender_ray.pipelines.serve.request_log import SOCKET, log, open_log, printing

WRITER = """
import sys
from llm_blender_ray.pipelines.serve.request_log import log, open_log
open_log(sys.argv[1], private=False)
for at in range(200):
    log.info('{"writer": "%s", "at": %d}', sys.argv[2], at)
"""


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", logging.NOTSET)
    yield
    for handler in log.handlers:
        handler.close()


def test_lines_of_other_processes_are_printed_whole_and_all() -> None:
    printed = io.StringIO()
    with printing(printed) as target:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, target, name]) for name in "ab"]
        assert [writer.wait() for writer in writers] == [0, 0]
    lines = [json.loads(line) for line in printed.getvalue().splitlines()]
    for name in "ab":
        assert [line["at"] for line in lines if line["writer"] == name] == list(range(200))


def test_half_a_line_of_a_killed_process_is_dropped() -> None:
    printed = io.StringIO()
    with printing(printed) as target, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(target.removeprefix(SOCKET))
        connection.sendall(b'{"whole": 1}\n{"half')
        connection.close()
    assert printed.getvalue() == '{"whole": 1}\n'


def test_a_stream_that_nobody_reads_any_more_stops_no_writer(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with printing(Broken()) as target:
        open_log(target, private=False)
        log.info("first")
        log.info("second")
        log.handlers.pop().close()
    assert capsys.readouterr().err.count("the log can't be written any more: [Errno 32] Broken pipe") == 1


def test_a_reader_that_pauses_stops_no_writer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING_LINES", 10)
    read = threading.Event()

    class Paused(io.StringIO):
        def write(self, text: str) -> int:
            read.wait()
            return super().write(text)

    printed, written = Paused(), 1000
    with printing(printed) as target:
        open_log(target, private=False)
        for _ in range(written):
            log.info("x" * 1000)  # more than a socket holds
        read.set()
        log.handlers.pop().close()
    whole = printed.getvalue().count("x\n")
    assert 10 <= whole < written
    assert f"blend: {written - whole} lines of the log are lost" in capsys.readouterr().err


@pytest.mark.parametrize("private", [False, True])
def test_lines_are_appended_to_a_file_also_after_it_was_rotated(private: bool, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("before\n")
    file.chmod(0o644)
    open_log(str(file), private=private)
    log.info("one")
    assert file.read_text() == "before\none\n"
    assert file.stat().st_mode & 0o777 == (0o600 if private else 0o644)
    file.rename(tmp_path / "requests.jsonl.1")
    log.info("two")
    assert file.read_text() == "two\n"
    assert not private or file.stat().st_mode & 0o777 == 0o600


def test_a_target_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "log"
    for target in (str(missing), f"{SOCKET}{missing}"):
        with pytest.raises(BlendError, match=f"^serve.log {target}: No such file or directory$"):
            open_log(target, private=False)


def test_a_handler_of_the_application_stays_the_only_one() -> None:
    own = logging.NullHandler()
    log.addHandler(own)
    open_log("stdout", private=False)
    assert log.handlers == [own]


def test_a_pipe_may_be_the_file_as_a_pods_log_is() -> None:
    """Containers have it as /proc/1/fd/1."""
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w"):
        open_log(f"/proc/self/fd/{write}", private=False)
        log.info("one")
        log.info("two")
        assert [reader.readline() for _ in range(2)] == ["one\n", "two\n"]
