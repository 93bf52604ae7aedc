"""Adapter of Ray's private modules: what a local session needs and Ray's public API has not.

Each function does without where another release of Ray has moved what it uses.
"""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CONSTANT = "ENABLE_RAY_CLUSTER"


class MissingInternalError(RuntimeError):
    """The installed Ray lacks a private attribute."""


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Make a Ray that is started within the block bind 127.0.0.1 only.

    Ray reads the environment variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER when it is imported, into a constant.

    Raises:
        MissingInternalError: Ray has no such constant: a start would listen on all interfaces.
    """
    constants = _module("ray._private.ray_constants")
    if not hasattr(constants, _CONSTANT):
        raise MissingInternalError(
            f"this Ray has no {_CONSTANT}, so a local Ray would listen on all interfaces; install a tested Ray "
            "(constraints.txt), or start one yourself (`ray start --head`) and set RAY_ADDRESS"
        )
    before = getattr(constants, _CONSTANT)
    setattr(constants, _CONSTANT, False)
    try:
        yield
    finally:
        setattr(constants, _CONSTANT, before)


@contextlib.contextmanager
def lean_start(*, logs: bool = False) -> Iterator[None]:
    """Make a Ray that is started within the block run no process that a private Ray has no use for.

    Those are the autoscaler's monitor and the server of dashboard and usage reports, which Ray starts without a
    dashboard, too. With the log monitor, they take 2 of 3.9 s of CPU at a start; `ray.init` waits for the server.

    Args:
        logs: Run the log monitor, which `log_to_driver` needs.
    """
    node = getattr(_module("ray._private.node"), "Node", None)
    lean = {"start_monitor": _start_nothing, "start_api_server": _name_no_server}
    if not logs:
        lean["start_log_monitor"] = _start_nothing
    before = {name: method for name in lean if (method := getattr(node, name, None))}
    for name in before:
        setattr(node, name, lean[name])
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


def _start_nothing(node: Any) -> None:
    """Stand in for the start of a process."""


def _name_no_server(node: Any, **_: Any) -> None:
    """Stand in for the start of the dashboard's server: its address is one where nothing listens.

    Without an address, the agent of the node looks for it every second and logs that there is none.
    """
    constants = _module("ray._private.ray_constants")
    key, namespace = constants.DASHBOARD_ADDRESS.encode(), constants.KV_NAMESPACE_DASHBOARD
    node.get_gcs_client().internal_kv_put(key, b"127.0.0.1:0", True, namespace)


def session_folder() -> Path | None:
    """Folder in which the started local Ray keeps its logs and sockets; None where it cannot be found."""
    node = getattr(_module("ray._private.worker"), "_global_node", None)
    folder = getattr(node, "get_session_dir_path", None)
    return Path(folder()) if folder else None


def local_gpus() -> int | None:
    """Number of visible GPUs that a Ray started here would count; None where this Ray cannot be asked."""
    manager_of = getattr(_module("ray._private.accelerators"), "get_accelerator_manager_for_resource", None)
    manager = manager_of("GPU") if manager_of else None
    if manager is None:
        return None
    count = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return int(count if visible is None else min(count, len(visible)))


def is_removed(handle: Any) -> bool:
    """Whether the deployment of a Ray Serve handle was deleted after the handle's first call."""
    router = getattr(getattr(handle, "_router", None), "_asyncio_router", None)
    return not getattr(router, "_deployment_available", True)


def only_errors(*names: str) -> None:
    """Keep warnings of Ray's loggers off the terminal; its modules set levels of their own."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
        for child in [one for one in logging.root.manager.loggerDict if one.startswith(f"{name}.")]:
            logging.getLogger(child).setLevel(logging.ERROR)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
