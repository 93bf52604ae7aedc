"""The service as an application of Ray Serve: its config for `serve deploy`, and why it did not start.

The blend's config itself is the application's argument: Ray Serve compares arguments, so every change of it takes
effect. Without Ray's imports.
"""

import re
from collections.abc import Iterable
from typing import Any

from llm_blender_ray.configs.schema import BlendConfig

APPLICATION = "blend"
IMPORT_PATH = "llm_blender_ray.pipelines.serve:application"
PROXY_SLACK_S = 5.0  # between a request's deadline and the proxy's end of its response
_TYPE = re.compile(r"^[\w.]+: ")  # of an exception in a traceback


def serve_config(config: BlendConfig, host: str, port: int) -> dict[str, Any]:
    """The config's service as a Serve config, for `serve deploy` and KubeRay's `serveConfigV2`.

    Args:
        config: The config.
        host: Address on which the nodes' proxies listen.
        port: Their port.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    data.get("ray", {}).pop("address", None)  # the application is on its own cluster
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": host,
            "port": port,
            "request_timeout_s": config.serve.deadline_s + PROXY_SLACK_S,
        },
        "applications": [
            {"name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": {"config": data}}
        ],
    }


def failed_part(parts: Iterable[tuple[str, str, str]]) -> str | None:
    """Name of the first part that did not start, with the error that it raised; None: there is none.

    Args:
        parts: Name, status and message of each deployment; the message ends with a traceback.
    """
    for name, status, message in parts:
        if status in ("DEPLOY_FAILED", "UNHEALTHY") and (reason := last_line(message)):
            return f"{name}: {reason}"
    return None


def last_line(message: str) -> str:
    """Last line of a traceback, without the exception's type."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _TYPE.sub("", lines[-1]) if lines else ""
