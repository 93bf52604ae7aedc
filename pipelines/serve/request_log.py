"""Where the service's log goes: a JSON line per request, with nothing else in the line.

Ray prints a replica's output with a prefix, and stops before the last replica does. So on one machine gateways send
their lines to `blend serve` (`printing`), which prints them as they are until the last gateway has ended.
"""

import contextlib
import logging
import os
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

STREAMS = ("stderr", "stdout")
SOCKET = "unix:"  # before the path of a Unix socket

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
    """Server that prints the lines of its connections; closing it waits for their ends."""

    def __init__(self, path: str, stream: TextIO) -> None:
        super().__init__(path, _Connection)
        self.stream: TextIO | None = stream  # None: nobody reads it any more
        self.lock = threading.Lock()

    def print(self, line: str) -> None:
        """Print a line; it is dropped once the stream is broken."""
        with self.lock:
            if self.stream is None:
                return
            try:
                self.stream.write(line)
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.stream = None
                with contextlib.suppress(OSError, ValueError):  # it may be stderr itself
                    print(f"blend: the log can't be written any more: {error}", file=sys.stderr, flush=True)


class _Connection(socketserver.StreamRequestHandler):
    server: _Printer

    def handle(self) -> None:
        """Print the lines; what a killed process leaves of one is dropped."""
        with contextlib.suppress(ConnectionError):
            for line in self.rfile:
                if line.endswith(b"\n"):
                    self.server.print(line.decode())
