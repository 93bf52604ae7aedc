"""`blend deploy`: the service on a Ray cluster, or an update of it, by Ray Serve's REST API.

The config itself is the application's argument: Ray Serve compares arguments, so every change of it takes effect.
"""

import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.job_client import JobClient, connect
from llm_blender_ray.cluster.submission import local_paths
from llm_blender_ray.configs.environment import variables
from llm_blender_ray.configs.schema import BlendConfig

APPLICATION = "blend"
IMPORT_PATH = "llm_blender_ray.pipelines.serve:application"
PROXY_SLACK_S = 5.0  # between a request's deadline and the proxy's end of its response
POLL_S = 1.0
_API = "/api/serve/applications/"
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


def deploy_service(config: BlendConfig, address: str, host: str, port: int, *, wait: bool = False) -> None:
    """Deploy or update the service; the cluster's other applications stay as they are.

    Args:
        config: The config.
        address: Of the cluster's dashboard.
        host: Address on which the nodes' proxies listen, where Ray Serve does not run yet.
        port: Their port.
        wait: Whether to return when the service is up or has failed.

    Raises:
        ClusterError: The cluster cannot be reached.
        BlendError: The service does not start.
    """
    client = connect(address)
    if needed := variables(config):
        _tell(f"the cluster's machines need these environment variables: {', '.join(needed)}")
    if paths := local_paths(config.model_copy(update={"input": None, "output": None})):
        _tell(f"paths of the cluster's machines, which must see them: {', '.join(paths)}")
    content = serve_config(config, host, port)
    content["applications"] += [
        one["deployed_app_config"]
        for name, one in _applications(client).items()
        if name != APPLICATION and one.get("deployed_app_config")
    ]
    response = client._do_request("PUT", _API, json_data=content)
    if response.status_code != 200:
        client._raise_error(response)
    if not wait:
        _tell(f"sent; to see how far it is: serve status --address {client.get_address()}")
        return
    while (status := (there := _applications(client)[APPLICATION])["status"]) != "RUNNING":
        if status == "DEPLOY_FAILED":
            raise BlendError(f"not deployed: {_reason(there)}")
        time.sleep(POLL_S)
    _tell(f"serving blend, blend-best and {len(config.models)} models at port {port} of the cluster's nodes")


def failed_part(parts: Iterable[tuple[str, str, str]]) -> str | None:
    """Name of the first part that did not start, with the error that it raised; None: there is none.

    Args:
        parts: Name, status and message of each deployment; the message ends with a traceback.
    """
    for name, status, message in parts:
        if status in ("DEPLOY_FAILED", "UNHEALTHY") and (reason := _last_line(message)):
            return f"{name}: {reason}"
    return None


def _reason(application: dict[str, Any]) -> str:
    parts = ((one["name"], one["status"], one["message"]) for one in application["deployments"].values())
    return failed_part(parts) or _last_line(application["message"]) or "no reason given"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _TYPE.sub("", lines[-1]) if lines else ""


def _applications(client: JobClient) -> dict[str, Any]:
    """Applications of the cluster by name."""
    response = client._do_request("GET", _API)
    if response.status_code != 200:
        client._raise_error(response)
    found: dict[str, Any] = response.json()["applications"]
    return found


def _tell(line: str) -> None:
    print(f"blend: {line}", file=sys.stderr, flush=True)
