"""`blend campaign serve`: the page of a campaign until it is interrupted. It needs no Ray."""

import asyncio
import threading
from pathlib import Path

import uvicorn

from llm_blender_ray.cluster.address import bracketed
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.configs.serving import Limits
from llm_blender_ray.pipelines.campaign.app import campaign_service
from llm_blender_ray.pipelines.campaign.creation import annotator_keys
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.serve.command import listening_socket, until_interrupted
from llm_blender_ray.pipelines.serve.connections import server_config

GRACE_S = 10  # for requests in progress when the server is interrupted


def serve_campaign(folder: str | Path, host: str, port: int) -> None:
    """Serve a campaign until SIGINT or SIGTERM.

    Args:
        folder: The campaign's.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Raises:
        CampaignError: There is no campaign, or nobody may vote.
        BlendError: The port is taken.
    """
    store, keys = CampaignStore(folder), annotator_keys(folder)
    with listening_socket(host, port) as listener:
        options = {"log_level": "warning", "timeout_graceful_shutdown": GRACE_S}
        server = uvicorn.Server(server_config(campaign_service(store, keys), Limits(), **options))
        serving = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="campaign")
        serving.start()
        report_line(f"serving the campaign at http://{bracketed(host)}:{listener.getsockname()[1]}")
        try:
            until_interrupted()
        finally:
            server.should_exit = True
            serving.join()
