"""`blend deploy`: the service on a Ray cluster, or an update of it, by Ray Serve's REST API."""

import time
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.job_client import JobClient, connect
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.cluster.submission import local_paths
from llm_blender_ray.configs.environment import variables
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.serve.budgets import check_budget, spending_file
from llm_blender_ray.pipelines.serve.serve_config import APPLICATION, failed_part, last_line, serve_config

POLL_S = 1.0
_API = "/api/serve/applications/"


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
        BlendError: The service does not start, or can't: a budget without a price, or without a file for it.
    """
    check_budget(config)
    spending_file(config, local=False)
    client = connect(address)
    if needed := variables(config):
        report_line(f"the cluster's machines need these environment variables: {', '.join(needed)}")
    if paths := local_paths(config.model_copy(update={"input": None, "output": None})):
        report_line(f"paths of the cluster's machines, which must see them: {', '.join(paths)}")
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
        report_line(f"sent; to see how far it is: serve status --address {client.get_address()}")
        return
    while (status := (there := _applications(client)[APPLICATION])["status"]) != "RUNNING":
        if status == "DEPLOY_FAILED":
            raise BlendError(f"not deployed: {_reason(there)}")
        time.sleep(POLL_S)
    report_line(f"serving blend, blend-best and {len(config.members)} models at port {port} of the cluster's nodes")


def _reason(application: dict[str, Any]) -> str:
    parts = ((one["name"], one["status"], one["message"]) for one in application["deployments"].values())
    return failed_part(parts) or last_line(application["message"]) or "no reason given"


def _applications(client: JobClient) -> dict[str, Any]:
    """Applications of the cluster by name."""
    response = client._do_request("GET", _API)
    if response.status_code != 200:
        client._raise_error(response)
    found: dict[str, Any] = response.json()["applications"]
    return found
