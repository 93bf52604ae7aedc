"""Latency of a request whose comparisons are spread over several ranker replicas.

One request at a time, of eleven different answers, every pair in both orders. More replicas than this machine has
CPUs are simulated: a comparison takes a fixed time in them, while queueing, sharing and Ray Serve's calls are real.
"""

import argparse
import asyncio
import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bench.online_load import ANSWERED, ChatClient, closed_loop, connections
from llm_blender_ray.pipelines.bench.online_service import Running, blend_service, miniature, model_server

CANDIDATES = 11  # as in the paper
RANKED_PAIRS = CANDIDATES * (CANDIDATES - 1)
TARGET_SHARE = 0.8  # of the ideal speedup, which is the number of replicas
TARGET_TIMES = 1.6  # speedup of two replicas with a model, on a CPU each
WARMUP_RANKINGS = 3  # requests before anything counts


def ranking_config(url: str, ranker: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """A service of one endpoint with many answers, and a number of replicas of this ranker."""
    llm = {"engine": "endpoint", "base_url": url, "model": "waiting", "name": "waiting"}
    return {
        "models": [{**llm, "samples": CANDIDATES, "sampling": {"temperature": 1.0}, "num_cpus": 0.1}],
        "ranker": {**ranker, "strategy": {"kind": "full"}, "replicas": replicas},
        "serve": {"gateway": {"num_cpus": 0.1}},
        "ray": {**miniature()["ray"], "num_cpus": 4},  # Ray's count, whatever this machine has
    }


async def _latency(running: Running, requests: int) -> float:
    """Median seconds of a request, one at a time.

    Raises:
        BlendError: A request fails.
    """
    async with connections(running.url) as session:
        body = {"model": "blend-best", "messages": [{"role": "user", "content": "Hi"}], "blend": {"details": True}}
        async with session.post("/v1/chat/completions", json=body) as response:
            answer = await response.json()
        if (made := (answer.get("blend") or {}).get("comparisons")) != RANKED_PAIRS:
            raise BlendError(f"a request took {made} comparisons, not {RANKED_PAIRS}: {str(answer)[:300]}")
        chat = ChatClient(session, ["Say something."], "blend-best")
        await closed_loop(chat, 1, requests=WARMUP_RANKINGS)
        load = await closed_loop(chat, 1, requests=requests)
    if wrong := {outcome: count for outcome, count in load.outcomes.items() if outcome != ANSWERED}:
        raise BlendError(f"requests that weren't answered: {wrong}")
    return statistics.median(load.latencies(ANSWERED))


def _measure(url: str, ranker: Mapping[str, Any], counts: list[int], requests: int) -> list[dict[str, float]]:
    """Latency by the number of replicas, and its share of the ideal speedup."""
    lines: list[dict[str, float]] = []
    for count in counts:
        with blend_service(ranking_config(url, ranker, count)) as running:
            seconds = asyncio.run(_latency(running, requests))
        times = (lines[0]["latency_s"] if lines else seconds) / seconds
        lines.append(
            {
                "replicas": count,
                "latency_s": round(seconds, 4),
                "times_faster": round(times, 3),
                "share_of_ideal": round(times / count, 3),
            }
        )
    return lines


def bench_ranking(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure simulated replicas, then the miniature's PairRanker on one replica and on two, of a CPU each."""
    simulated = {"kind": "echo", "comparison_s": given.comparison_s, "num_cpus": 0.1}
    with model_server(0.0) as url:
        url = url.replace("/v1", "/distinct/v1")
        found = {
            "simulated": _measure(url, simulated, [1, 2, 4], given.requests),
            "model": _measure(url, {**miniature()["ranker"], "num_cpus": 1}, [1, 2], given.requests),
        }
    table = Table("replicas", "latency, s", "times faster", "share of ideal")
    for kind, lines in found.items():
        for line in lines:
            cells = (f"{line['latency_s']:.3f}", f"{line['times_faster']:.2f}", f"{line['share_of_ideal']:.2f}")
            table.add_row(f"{line['replicas']:.0f}, {kind}", *cells)
    Console(width=100).print(table)
    good = all(line["share_of_ideal"] >= TARGET_SHARE for line in found["simulated"])
    good = good and found["model"][-1]["times_faster"] >= TARGET_TIMES
    report = {"comparisons": RANKED_PAIRS, "comparison_s": given.comparison_s, **found}
    return {**report, "target": {"share_of_ideal": TARGET_SHARE, "times_faster": TARGET_TIMES}}, good
