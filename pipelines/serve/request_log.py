"""Where the service's log goes: a JSON line per request, with nothing else in the line.

Ray prints a replica's output with a prefix, and stops before the last replica does. So on one machine gateways send
their lines to `blend serve` (`printing`), which prints them as they are until the last gateway has ended.
"""

import contextlib
import logging
import os
import queue
import select
import socket
import socketserver
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from typing import TextIO

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.notices import report_line

STREAMS = ("stderr", "stdout")
SOCKET = "unix:"  # before the path of a Unix socket
MAX_WAITING_LINES = 100_000  # for a stream that is not read, about 50 MB
STALLED_S = 5.0  # without progress of a stream, at the end

log = logging.getLogger("blend.requests")


def open_log(target: str, *, private: bool) -> None:
    """Give the logger a handler if it has none.

    Args:
        target: `stderr` or `stdout` of this process, `unix:PATH`, or a file, to which lines are appended; it may be
            moved by logrotate.
        private: Restrict a file to its owner: it may have users' prompts.

    Raises:
        BlendError: The target cannot be opened.
    """
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not log.handlers:
        try:
            handler = _handler(target, private)
        except OSError as error:
            raise BlendError(f"serve.log {target}: {error.strerror or error}") from error
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False  # a handler of the root logger would write it again
    if private and target in STREAMS:
        _keep_private(getattr(sys, target))


def _handler(target: str, private: bool) -> logging.Handler:
    if target in STREAMS:
        return logging.StreamHandler(getattr(sys, target))
    if target.startswith(SOCKET):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(target.removeprefix(SOCKET))
        return logging.StreamHandler(connection.makefile("w", encoding="utf-8"))
    return (_PrivateFileHandler if private else WatchedFileHandler)(target, encoding="utf-8")


class _PrivateFileHandler(WatchedFileHandler):
    """File that is its owner's, also after it was rotated."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        _keep_private(stream)
        return stream


def _keep_private(stream: TextIO) -> None:
    """Restrict a log's file, such as that of a Ray worker, to its owner."""
    with contextlib.suppress(OSError, ValueError):  # no file, or another user's
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            os.fchmod(stream.fileno(), 0o600)


@contextlib.contextmanager
def printing(stream: TextIO) -> Iterator[str]:
    """Print the lines of other processes of this machine to a stream, for the length of the block.

    At its end all lines are printed that these processes have written: it waits for them to close the log.

    Yields:
        The target for `open_log` in these processes.
    """
    # not in TMPDIR: the path of a socket has 107 bytes at most
    with tempfile.TemporaryDirectory(prefix="blend-", dir="/tmp") as folder:
        path = f"{folder}/log"
        with _Printer(path, stream) as printer:
            thread = threading.Thread(target=printer.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
            thread.start()
            try:
                yield SOCKET + path
            finally:
                printer.shutdown()
                thread.join()
                while select.select([printer], [], [], 0)[0]:  # connected, and not accepted yet
                    printer.handle_request()


class _Printer(socketserver.ThreadingUnixStreamServer):
    """Server that prints the lines of its connections; closing it waits for their ends.

    Lines wait in memory for the stream, whose reader may pause: gateways must not wait for it.
    """

    def __init__(self, path: str, stream: TextIO) -> None:
        super().__init__(path, _Connection)
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING_LINES)  # None: the end
        self._dropped = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._print, args=(stream,), daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Print a line soon; it is dropped if too many wait."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            with self._lock:
                self._dropped += 1

    def server_close(self) -> None:
        """See base class. A stream that is not read delays the end by `STALLED_S` at most."""
        super().server_close()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=STALLED_S)
            self._thread.join(STALLED_S)
        if left := self._dropped + self._waiting.qsize():
            _report(f"{left} lines of the log are lost: what reads it has stopped reading")

    def _print(self, stream: TextIO) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                stream.write(line)
                stream.flush()
            except (OSError, ValueError) as error:
                _report(f"the log can't be written any more: {error}")
                break
        while line is not None:  # the stream is broken: drop them
            line = self._waiting.get()


def _report(problem: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be the log itself
        report_line(problem)


class _Connection(socketserver.StreamRequestHandler):
    server: _Printer

    def handle(self) -> None:
        """Print the lines; what a killed process leaves of one is dropped."""
        with contextlib.suppress(ConnectionError):
            for line in self.rfile:
                if line.endswith(b"\n"):
                    self.server.add(line.decode())
