"""SIGKILL to one replica of each part of a service under load, one after the other, and its effect on clients.

The load comes from OpenAI's own client with its own retries (two, after about half a second and a second): a
connection that breaks with its gateway can be retried by nothing else. The effect of a part's death is counted over
all requests that were under way at any moment from then until Ray Serve had replaced the replica.
"""

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import openai
import psutil

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.processes import descendants, title
from llm_blender_ray.cluster.session import private_ray, session
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.pipelines.bench.online_load import (
    ANSWERED,
    DEGRADED,
    OpenLoop,
    Reply,
    Shot,
    arrivals,
    describe_load,
    overlapping,
)
from llm_blender_ray.pipelines.bench.online_service import SERVICE_PATIENCE_S, Running

_POLL_S = 0.1
RECOVERY_S = 120.0  # after that a part counts as lost
STEADY = 5  # answers before the first kill
_APPLICATION = "blend"
GATEWAY_NAME = "gateway"
AUTH_MODE = "RAY_AUTH_MODE"


class Client:
    """OpenAI's client with its defaults; see `online_load`."""

    def __init__(self, url: str, prompts: Sequence[str]) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=SERVICE_PATIENCE_S)
        self._prompts = prompts

    async def __call__(self, number: int) -> Reply:
        """See `online_load.ChatClient`."""
        prompt = f"{number}. {self._prompts[number % len(self._prompts)]}"
        try:
            response = await self._client.chat.completions.with_raw_response.create(
                model="blend", messages=[{"role": "user", "content": prompt}]
            )
        except openai.APIStatusError as error:
            return Reply(f"HTTP {error.status_code}")
        except openai.APIConnectionError as error:
            return Reply(type(error).__name__)
        return Reply(describe_load(json.loads(response.content)), retries=response.retries_taken)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


@dataclass
class Deaths:
    """Deaths of one part's replicas.

    Attributes:
        recovery_s: Seconds until each was replaced; None: it was not.
        shots: Requests under way meanwhile.
    """

    recovery_s: list[float | None] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)

    def account(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        outcomes = Counter(shot.reply.outcome for shot in self.shots)
        return {
            "killed": len(self.recovery_s),
            "recovery_s": [seconds if seconds is None else round(seconds, 1) for seconds in self.recovery_s],
            "requests": len(self.shots),
            "failed": sum(not answered(shot) for shot in self.shots),
            "retried": sum(shot.reply.retries > 0 for shot in self.shots),
            "outcomes": dict(outcomes),
            "slowest_s": round(max((shot.ended - shot.sent for shot in self.shots), default=0.0), 1),
        }


def answered(shot: Shot) -> bool:
    """Whether the request was answered. With a quorum, answers without the last model are degraded."""
    return shot.reply.outcome in (ANSWERED, DEGRADED)


def replicas(running: Running, part: str) -> list[psutil.Process]:
    """Processes of a part, by the titles that Ray gives them."""
    name = f"ray::ServeReplica:{_APPLICATION}:{part}"
    return [one for one in descendants(running.pid) if re.match(rf"{re.escape(name)}(\W|$)", title(one))]


def whole(running: Running, part: str, count: int) -> bool:
    """Whether a part has all its replicas.

    Ray Serve notices a lost one late, so its count is trusted only if there are as many processes.
    """
    from ray import serve

    deployment = serve.status().applications[_APPLICATION].deployments[part]
    there = len(replicas(running, part)) >= count and deployment.replica_states.get("RUNNING", 0) >= count
    return there and (part != GATEWAY_NAME or running.healthy())


async def _until(true: Callable[[], bool]) -> float | None:
    """Poll: seconds until it was so, or None after the time limit."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await asyncio.to_thread(true):
        if loop.time() > began + RECOVERY_S:
            return None
        await asyncio.sleep(_POLL_S)
    return loop.time() - began


def kill_each(
    running: Running, parts: Sequence[tuple[str, int]], prompts: Sequence[str], per_s: float
) -> tuple[dict[str, Deaths], Sequence[Shot]]:
    """Kill a replica of each part in turn, under a steady load.

    It happens in a new process, which is a driver of the service's Ray.

    Args:
        running: The service.
        parts: Names of the parts, with their numbers of replicas.
        prompts: The prompts to send.
        per_s: Requests a second.

    Returns:
        The deaths by part, and every request sent. A part that is not replaced is the last.

    Raises:
        BlendError: Nothing is answered before the first kill.
    """
    before = os.environ.get(AUTH_MODE)
    os.environ[AUTH_MODE] = before or "token"  # of a Ray on one machine; read when Ray is imported
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_connected, running, parts, prompts, per_s).result()
    finally:
        os.environ.pop(AUTH_MODE)
        if before is not None:
            os.environ[AUTH_MODE] = before


def _connected(
    running: Running, parts: Sequence[tuple[str, int]], prompts: Sequence[str], per_s: float
) -> tuple[dict[str, Deaths], Sequence[Shot]]:
    raylets = (re.search(r"raylet/raylet .*--gcs-address=(\S+)", title(one)) for one in descendants(running.pid))
    address = next((found[1] for found in raylets if found), None)
    if address is None:
        raise BlendError("the service runs no Ray of its own")
    with private_ray(), session(RayCluster(address=address)):
        return asyncio.run(_kill_each(running, parts, prompts, per_s))


async def _kill_each(
    running: Running, parts: Sequence[tuple[str, int]], prompts: Sequence[str], per_s: float
) -> tuple[dict[str, Deaths], Sequence[Shot]]:
    loop = asyncio.get_running_loop()
    deaths: dict[str, Deaths] = {}
    client = Client(running.url, prompts)
    async with contextlib.aclosing(client):
        load = OpenLoop(client, arrivals(per_s, math.inf))
        sending = asyncio.create_task(load.run())
        try:
            if await _until(lambda: sum(map(answered, load.shots)) >= STEADY) is None:
                raise BlendError(f"no answers: {dict(Counter(shot.reply.outcome for shot in load.shots))}")
            for part, count in parts:
                await _until(lambda: bool(load.under_way))
                killed_at = loop.time()
                replicas(running, part)[0].kill()
                took = await _until(partial(whole, running, part, count))
                back_at = loop.time()
                print(f"{part} killed, " + (f"whole after {took:.1f} s" if took else "not back"), file=sys.stderr)
                if meanwhile := set(load.under_way):
                    await asyncio.wait(meanwhile)
                hit = deaths.setdefault(part, Deaths())
                hit.recovery_s.append(took)
                hit.shots += overlapping(load.shots, killed_at, back_at)
                if took is None:
                    break
        finally:
            load.stop()
            await sending
    return deaths, load.shots
