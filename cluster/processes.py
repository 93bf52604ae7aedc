"""Processes of this machine below a given one, free ports, and a Ray cluster of several nodes on it.

Tests and benchmarks that kill processes use it.
"""

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.ray_internals import lean_start
from llm_blender_ray.cluster.session import private_ray

PROCESS_POLL_S = 0.02
_PATIENCE_S = 240.0  # for processes to end by themselves


def wait_until(true: Callable[[], bool], process: subprocess.Popen[Any], poll_s: float = PROCESS_POLL_S) -> bool:
    """Wait for something that a process brings about; False when the process ended before."""
    while not true():
        if process.poll() is not None:
            return true()
        time.sleep(poll_s)
    return True


def descendants(process: subprocess.Popen[Any] | int) -> list[psutil.Process]:
    """Descendants of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process if isinstance(process, int) else process.pid).children(recursive=True)
    return []


def worker_actors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that are actors of a stage, by the titles that Ray gives them."""
    return [one for one in processes if "(Worker)" in title(one)]


def title(process: psutil.Process) -> str:
    """Command line of a process; empty when it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def remaining(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Processes that do not end by themselves. Ray's agents do, but notice the end of the others after a minute."""
    _, left = psutil.wait_procs([one for one in processes if "Agent" not in title(one)], timeout=_PATIENCE_S)
    return list(left)


def free_port() -> int:
    """A port of this machine that is free, and unlikely to be taken before a service listens on it.

    Systems give outgoing connections, and Ray its processes, ports above and below these.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BlendError("no free port from 20000 to 32000")


@contextlib.contextmanager
def nodes(cpus: Sequence[int], dashboard_port: int | None = None, gpus: int | None = None) -> Iterator[Any]:
    """A Ray cluster of several nodes on this machine; the first is its head.

    Args:
        cpus: Of each node.
        dashboard_port: Port of the dashboard, on 127.0.0.1; None: there is none.
        gpus: That each node reports, whether the machine has them or not; None: those of the machine.
    """
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {
        "num_cpus": cpus[0],
        "num_gpus": gpus,
        "include_dashboard": dashboard_port is not None,
    }
    if dashboard_port is not None:
        head |= {"dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    with private_ray(), lean_start() if dashboard_port is None else contextlib.nullcontext():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in cpus[1:]:
                cluster.add_node(num_cpus=number, num_gpus=gpus)
            yield cluster
        finally:
            cluster.shutdown()


def raylet_of(node: Any) -> int:
    """Process id of a node's raylet, the parent of its workers."""
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def remove_busiest(cluster: Any) -> int:
    """Remove the worker node with most actors of stages, without notice; returns their number."""
    busy = {node: len(worker_actors(descendants(raylet_of(node)))) for node in cluster.worker_nodes}
    busiest = max(busy, key=lambda node: busy[node])
    workers = descendants(raylet_of(busiest))
    cluster.remove_node(busiest, allow_graceful=False)
    for one in workers:  # lost together with the machine
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return busy[busiest]
