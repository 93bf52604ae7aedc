"""`blend serve`: the service on this machine, or on the config's cluster, until it is interrupted."""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.address import LOCAL_ADDRESS, address_of, bracketed
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.cluster.plan import place_together
from llm_blender_ray.cluster.preflight import check_hub_models, check_local_models, check_variables
from llm_blender_ray.configs.extras import require
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.configs.online import online
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.interruption import SIGNALS, left_to_others, undone
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.budgets import check_budget, spending_file
from llm_blender_ray.pipelines.serve.request_log import printing
from llm_blender_ray.pipelines.serve.serve_config import APPLICATION, PROXY_SLACK_S, failed_part

OTLP = "opentelemetry.exporter.otlp.proto.http"  # the extra `otel` installs it; Ray has the rest


def serve_blend(config: BlendConfig, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        BlendError: The service cannot be started.
        ConfigError: The config is invalid.
        ModuleNotFoundError: An extra that it needs is not installed.
    """
    require("fastapi", "uvicorn", "prometheus_client", *([OTLP] if config.serve.tracing else []))
    keys = Keys.load(config.serve.keys_file, os.environ)
    if keys is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} needs API keys, since any host that reaches this machine could use the service: "
            "make one with `blend key NAME`, and put its line into a file that serve.keys_file names"
        )
    local = address_of(config.ray) == LOCAL_ADDRESS
    check_variables(config.ray, config)
    check_local_models(config.ray, config.parts.values())
    check_hub_models(config.ray, config.parts.values())
    check_budget(config)
    spending_file(config, local=local)
    if local:
        listening_socket(host, port).close()  # it is free
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # of replicas' output
    # Ray: a second of imports, which no refusal above waits for
    from llm_blender_ray.cluster.serving import lean_serve
    from llm_blender_ray.cluster.session import metrics_urls, session, without_ray_output

    stdout = sys.stdout
    with without_ray_output(), lean_serve(), contextlib.ExitStack() as running:
        stderr = sys.stderr
        try:
            with _waiting(), _unheard():
                config = running.enter_context(_logged(config, stdout, stderr)) if local else config
                running.enter_context(session(config.ray, log_to_driver=True))
                running.enter_context(_deployed(config, host, port, local))
            models = f"blend, blend-best and {len(config.members)} models"
            who = "with API keys" if keys else "without API keys: this machine only"
            url = f"http://{bracketed(host)}:{port}"
            report_line(f"serving {models} at {url} ({who})")
            if exporters := ", ".join(metrics_urls()):
                report_line(f"metrics at {url}/metrics, Ray's at {exporters}")
            until_interrupted()  # meanwhile Ray prints the replicas' stderr here
        finally:
            with _unheard():
                running.close()


@contextlib.contextmanager
def _logged(config: BlendConfig, stdout: TextIO, stderr: TextIO) -> Iterator[BlendConfig]:
    """The config with a log that this process prints, if it goes to one of these."""
    streams = {"stdout": stdout, "stderr": stderr}
    if (stream := streams.get(config.serve.log)) is None:
        yield config
        return
    with printing(stream) as target:
        yield config.model_copy(update={"serve": config.serve.model_copy(update={"log": target})})


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """Spinner while the models are loading."""
    with Console(file=sys.stderr).status("loading the models") if sys.stderr.isatty() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Suppress Ray's output while it starts or ends; failures are raised."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(host: str, port: int) -> socket.socket:
    """Socket that listens on a port; port 0 takes a free one.

    Raises:
        BlendError: The port is taken, or the host is not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BlendError(
            f"can't listen on {bracketed(host)}:{port}: {os.strerror(error.errno or 0)}; give another --port"
        ) from error


@contextlib.contextmanager
def _deployed(config: BlendConfig, host: str, port: int, local: bool) -> Iterator[None]:
    from llm_blender_ray.cluster.replicas import check_all_weights, check_node_weights
    from llm_blender_ray.cluster.session import capacity

    listen = (host, port) if local else None
    config = online(config)
    available = capacity(config.ray)
    placements = place_together(config, available)
    check_node_weights(placements)
    check_all_weights(placements)
    from ray import serve  # reads its environment at import
    from ray.serve.config import HTTPOptions, ProxyLocation

    from llm_blender_ray.pipelines.serve.deployments import build

    quiet = {"enable_access_log": False, "log_level": "ERROR"}  # the gateway logs each request
    serve.start(
        proxy_location=ProxyLocation.Disabled if listen else ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=host, port=port, request_timeout_s=config.serve.deadline_s + PROXY_SLACK_S),
        logging_config=quiet,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # of this process
    with contextlib.ExitStack() as left:
        left.callback(serve.shutdown)
        if not local:  # other machines' processes do not end with this one
            left.enter_context(undone(serve.shutdown))
        try:
            application = build(config, available, listen)
            route = None if listen else "/"
            serve.run(application, name=APPLICATION, route_prefix=route, logging_config=quiet)
        except RuntimeError as error:
            raise BlendError(_why_not_running() or str(error)) from error
        yield


def _why_not_running() -> str | None:
    """The first part that did not start, with the error that it raised."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    parts = application.deployments.items() if application else ()
    return failed_part((name, part.status, part.message) for name, part in parts)


def until_interrupted() -> None:
    """Wait for SIGINT or SIGTERM."""
    interrupted = threading.Event()
    with left_to_others(*SIGNALS):
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, lambda *_: interrupted.set()) for number in heeded}
        try:
            interrupted.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
