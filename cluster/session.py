"""Ray session: a private local one, or a connection to a cluster.

A local Ray listens on 127.0.0.1 only and reports no usage. Both are environment variables; the first Ray reads only
when it is imported, into a constant, which is set here too: by then Ray is imported, and a connection to a real
cluster needs it the other way round.
"""

import contextlib
import functools
import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.cluster import ray_internals
from llm_blender_ray.cluster.address import (
    LOCAL_ADDRESS,
    ClusterError,
    address_of,
    bracketed,
    check_answers,
    token_cure,
)
from llm_blender_ray.cluster.capacity import grown_capacity
from llm_blender_ray.cluster.placement import Capacity, Node
from llm_blender_ray.configs.schema import RayCluster

_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def session(settings: RayCluster, *, log_to_driver: bool = False) -> Iterator[None]:
    """Ray for the length of the block; an existing connection is used as it is and left open.

    Args:
        settings: Which Ray, and how large a local one is.
        log_to_driver: Print the actors' output here.
    """
    if ray.is_initialized():
        yield
        return
    address = address_of(settings)
    if address != LOCAL_ADDRESS:
        check_answers(address)
    with private_ray() if address == LOCAL_ADDRESS else contextlib.nullcontext():
        try:
            with _keeping_signals(), ray_internals.lean_start(logs=log_to_driver):
                ray.init(
                    address=address,
                    logging_level=logging.ERROR,
                    log_to_driver=log_to_driver,
                    **_local_options(settings, address),
                )
        except Exception as error:  # a start that times out is raised as a plain Exception
            raise ClusterError(_why_not(address, error)) from error
        if address == LOCAL_ADDRESS:
            _make_private()
        try:
            yield
        finally:
            ray.shutdown()


def _why_not(address: str, error: Exception) -> str:
    """Why there is no connection to Ray."""
    if address == LOCAL_ADDRESS:
        return f"Ray did not start on this machine: {one_line(error)}"
    if isinstance(error, ConnectionError):  # Ray's core has the reason, and only logs it
        return f"Ray at {address}: it answers, but refuses the connection; if it wants a token, {token_cure()}"
    return f"Ray at {address}: {one_line(error)}"


@contextlib.contextmanager
def _keeping_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces with its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _make_private() -> None:
    """Restrict the local Ray's files, logs and token included, to this user."""
    if folder := ray_internals.session_folder():
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
    with contextlib.suppress(OSError, RuntimeError):
        token = Path.home() / ".ray" / "auth_token"
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)


def _local_options(settings: RayCluster, address: str) -> dict[str, Any]:
    if address != LOCAL_ADDRESS:
        return {}
    return {
        "num_cpus": settings.num_cpus,
        "num_gpus": settings.num_gpus,
        "resources": dict(settings.resources) or None,
        "include_dashboard": False,
    }


@contextlib.contextmanager
def private_ray() -> Iterator[None]:
    """A Ray started within the block, here or in a child process, binds 127.0.0.1 only and reports no usage."""
    ours = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if not any(name in os.environ for name in _AUTH):
        # else Ray writes a token of its own to ~/.ray, readable for all, and fails where it cannot
        ours["RAY_AUTH_TOKEN"] = _token()
    before = {name: os.environ.get(name) for name in (*ours, "RAY_AUTH_MODE")}  # the last is set by Ray
    os.environ.update(ours)
    try:
        with ray_internals.loopback_only():
            yield
    except ray_internals.MissingInternalError as error:
        raise ClusterError(str(error)) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@functools.cache
def _token() -> str:
    """Token of all local sessions of this process: Ray's core reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def without_ray_output() -> Iterator[None]:
    """Keep Ray's output in this process off the terminal, within the block; `sys.stderr` works as before.

    Its core writes to file descriptor 2, and its driver prints tracebacks of tasks that will be retried on
    `sys.stdout`; neither can be turned off.
    """
    sys.stderr.flush()
    python, terminal = sys.stderr, os.dup(2)
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            open(terminal, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False) as sys.stderr,
            contextlib.redirect_stdout(nowhere),
        ):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        sys.stderr = python


@contextlib.contextmanager
def running(settings: RayCluster) -> Iterator[None]:
    """Ray and Ray Data configured for a run: only this project reports errors."""
    from ray.data import DataContext  # takes a second, and not every session has data

    debugging = "BLEND_DEBUG" in os.environ
    quiet = contextlib.nullcontext() if debugging else without_ray_output()
    with quiet, session(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.data")  # advice on tuning
        # until Ray Data has another way to a placement group for each actor (2.64 is to remove this one)
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = int(settings.stall_timeout_s)
        for handler in logging.getLogger("ray.data").handlers:
            if not debugging and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
        yield


def capacity(settings: RayCluster) -> Capacity:
    """Capacity of the connected cluster, or what it can grow to."""
    if settings.nodes:
        return grown_capacity(settings)
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            total = dict(node["Resources"])
            kinds = [name.removeprefix(_ACCELERATOR) for name in total if name.startswith(_ACCELERATOR)]
            own = {name: amount for name, amount in total.items() if not _internal(name)}
            cpus, gpus = own.pop("CPU", 0.0), own.pop("GPU", 0.0)
            nodes.append(Node(cpus, gpus, own, kinds[0] if kinds else None))
    return Capacity(tuple(nodes))


def metrics_urls() -> list[str]:
    """Pages of Ray's exporters for Prometheus, one per node of the connected cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return [f"http://{bracketed(node['NodeManagerAddress'])}:{node['MetricsExportPort']}/metrics" for node in nodes]


_ACCELERATOR = "accelerator_type:"


def _internal(name: str) -> bool:
    return name in ("memory", "object_store_memory") or name.startswith(("node:", _ACCELERATOR))
