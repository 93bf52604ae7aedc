"""SIGINT and SIGTERM: a command ends at once, prints how to resume, and leaves no process running.

Python's own way, an exception in the main thread, is not safe with Ray: it unwinds from wherever Ray's core calls
back into the interpreter, and shuts Ray down while its threads still run. 4 of 11 such ends were a SIGSEGV. What a
command stores is durable at any moment, so nothing has to be unwound: all descendants of the process are killed,
and then it exits.

A thread does that, woken by the signal itself, since the main thread may be in C code for up to a minute. This
module has no slow imports, so that it can be the first.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RESUMES = "the same command resumes where it stopped; finished blocks are kept"
_NEXT = {  # what follows an interrupted command
    **dict.fromkeys(("run", "rank", "fuse", "compare", "judge", "score"), _RESUMES),  # they have a work folder
    "train": "the same command resumes from the last checkpoint, if there is one",
    "submit": "a submitted job continues (`ray job list --address URL` lists it)",
    "evaluate": "the same command starts again; nothing is kept",
}
_KILL_S = 10.0  # for all descendants to end after SIGKILL
_UNDO_S = 5.0
_SET_CHILD_SUBREAPER = 36  # of Linux's prctl

_libc = ctypes.CDLL(None)
_installed = False
_terminal = 2  # file descriptor of the original stderr
_left_to_others: set[int] = set()
_undo: dict[object, Callable[[], object]] = {}
_sink = -1  # wakes the thread
_MARK = b"\0"  # no signal
_caught_up = threading.Event()


def install() -> None:
    """Take over SIGINT and SIGTERM, unless the parent process has them ignored."""
    global _installed, _terminal, _sink
    if _installed or threading.current_thread() is not threading.main_thread():
        return
    _installed = True
    _terminal = os.dup(2)
    source, _sink = os.pipe()
    os.set_blocking(_sink, False)
    signal.set_wakeup_fd(_sink, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(source,), name="signals", daemon=True).start()
    ours = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _handle)
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def left_to_others(*signals: int) -> Iterator[None]:
    """Within the block these signals have their own handler: Python's, unless another is set.

    Args:
        *signals: Some of `SIGNALS`.
    """
    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        if before[number] is _handle:
            _left_to_others.add(number)
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        _catch_up()
        for number, handler in before.items():
            if handler is _handle:
                signal.signal(number, handler)
                _left_to_others.discard(number)


@contextlib.contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo`, in any thread, if a signal ends the process within the block."""
    key = object()
    _undo[key] = undo
    try:
        yield
    finally:
        _undo.pop(key, None)


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Message of an interrupted command.

    Args:
        arguments: Of the command line, without the program's name.
    """
    command = next((one for one in arguments if not one.startswith("-")), "")
    return f"interrupted; {_NEXT.get(command, 'the same command starts again')}"


def _catch_up() -> None:
    """Wait until the thread has seen all signals so far: one for other code must not end the process later."""
    if _sink >= 0:
        _caught_up.clear()
        os.write(_sink, _MARK)
        _caught_up.wait(_UNDO_S)


def _watch(source: int) -> None:
    while received := os.read(source, 1):  # bytes are numbers of signals, in order of arrival
        if received == _MARK:
            _caught_up.set()
        elif (number := received[0]) in SIGNALS and number not in _left_to_others:
            _end(number)


def _handle(number: int, frame: FrameType | None) -> None:
    """Block the main thread; further signals interrupt this wait, not the thread that ends the process."""
    with contextlib.suppress(OSError):
        os.write(_sink, bytes([number]))  # in case other code has replaced `set_wakeup_fd`
    while True:
        time.sleep(60)


def _end(number: int) -> None:
    """Kill all descendants and exit; never returns."""
    try:
        show_cursor = "\x1b[?25h\n" if os.isatty(_terminal) else ""
        os.write(_terminal, f"{show_cursor}blend: {how_to_go_on(sys.argv[1:])}\n".encode())
    except OSError:
        pass  # nobody reads it
    try:
        undoing = threading.Thread(target=_undo_all, daemon=True)
        undoing.start()
        undoing.join(_UNDO_S)
        _kill_all()
    finally:
        os._exit(128 + number)


def _undo_all() -> None:
    for undo in list(_undo.values()):
        with contextlib.suppress(Exception):
            undo()


def _kill_all() -> None:
    """Kill all descendants, including those that lose their parent meanwhile."""
    _adopt()
    this, deadline = psutil.Process(), time.monotonic() + _KILL_S
    while (found := this.children(recursive=True)) and time.monotonic() < deadline:
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(found, timeout=1)


def _adopt() -> None:
    """Become the parent of descendants whose own parent ends, if the system can do that."""
    with contextlib.suppress(Exception):
        _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _forget() -> None:
    """Restore default signals in a forked child, so that none of its signals ends the parent."""
    global _sink
    signal.set_wakeup_fd(-1)
    _sink = -1
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
