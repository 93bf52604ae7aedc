"""Overhead of the service, and its behaviour under overload and when its processes are killed.

Each benchmark starts `blend serve` as a process, queries it over HTTP, ends it, and checks that nothing is left.
`latency`: six models, a ranker and a fuser without work, beside a bare Ray Serve graph of as many calls.
`overload`: the best load, ten times that, and the best load again.
`kill`: SIGKILL to a replica of each part under load.
`change`: changes of the config of a deployed service under load.
`ranking`: one request of eleven answers by the number of ranker replicas.
`first-token`: time to the first text and the last of a blend, beside each of its models alone.

    python -m llm_blender_ray.pipelines.bench.online latency --requests 500
    python -m llm_blender_ray.pipelines.bench.online overload --setting waiting --seconds 60
    python -m llm_blender_ray.pipelines.bench.online kill --rounds 1
    python -m llm_blender_ray.pipelines.bench.online change --per-s 20
    python -m llm_blender_ray.pipelines.bench.online ranking --requests 10
    python -m llm_blender_ray.pipelines.bench.online first-token --prompts 20

The last line is JSON. Exit code 1: a request failed that must not, or a target was missed.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.pipelines.bench.online_change import change_each
from llm_blender_ray.pipelines.bench.online_kill import GATEWAY_NAME, kill_each
from llm_blender_ray.pipelines.bench.online_load import (
    ANSWERED,
    DEGRADED,
    REFUSED,
    ChatClient,
    Load,
    OpenLoop,
    Shot,
    arrivals,
    closed_loop,
    connections,
    milliseconds,
)
from llm_blender_ray.pipelines.bench.online_ranking import bench_ranking
from llm_blender_ray.pipelines.bench.online_service import (
    Running,
    bare_graph,
    blend_service,
    miniature,
    model_server,
    waiting_models,
    without_models,
)

_HELDOUT = PRESETS / "miniature" / "heldout.jsonl"
TARGET_MS = {"p50": 15.0, "p99": 40.0}  # of a blend without work, one request at a time
WARMUP_REQUESTS = 50  # requests before anything counts: they set up connections, routers and caches
SETTLING_S = 5.0  # of a load, before anything counts
OVERLOAD_FACTOR = 10.0  # overload, as a multiple of the best load
QUORUM = 5  # of the miniature's six models


def read_prompts() -> list[str]:
    """The included held-out prompts."""
    return [json.loads(line)["instruction"] for line in _HELDOUT.read_text(encoding="utf-8").splitlines()]


async def _latency(running: Running, requests: int, concurrency: int) -> dict[str, Any]:
    """One request at a time, then many."""
    async with connections(running.url) as session:
        chat = ChatClient(session, read_prompts())
        await closed_loop(chat, 1, requests=WARMUP_REQUESTS)
        alone = await closed_loop(chat, 1, requests=requests)
        await closed_loop(chat, concurrency, requests=concurrency)
        before = running.cpu_s()
        together = await closed_loop(chat, concurrency, requests=max(requests, 8 * concurrency))
        cpu_ms = 1000 * (running.cpu_s() - before) / len(together.shots)
    return {
        "alone": alone.account(),
        "together": {"concurrency": concurrency, "cpu_ms_per_request": round(cpu_ms, 2), **together.account()},
    }


async def whole_blend(running: Running, models: int) -> None:
    """Check that one answer has all models, no comparison, and a fusion.

    Raises:
        BlendError: It has not.
    """
    body = {"model": "blend", "messages": [{"role": "user", "content": "Hello"}], "blend": {"details": True}}
    async with connections(running.url) as session, session.post("/v1/chat/completions", json=body) as response:
        answer = await response.json()
    blend = answer.get("blend") or {}
    texts = [candidate["text"] for candidate in blend.get("candidates", [])]
    if None in texts or len(texts) != models or blend["comparisons"] or not blend["fused_from"]:
        raise BlendError(f"not a whole blend of {models} equal answers: {json.dumps(answer)[:300]}")


def bench_latency(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the service and the bare graph, in turns."""
    turns: list[dict[str, Any]] = []
    config = without_models()
    for _ in range(given.turns):
        turn = {}
        with blend_service(config) as running:
            asyncio.run(whole_blend(running, len(config["models"])))
            turn["service"] = asyncio.run(_latency(running, given.requests, given.concurrency))
        with bare_graph() as running:
            turn["bare"] = asyncio.run(_latency(running, given.requests, given.concurrency))
        turns.append(turn)
    table = Table("", "p50, ms", "p95, ms", "p99, ms", "requests/s", f"at {given.concurrency}", "CPU, ms", "failed")
    failed = 0
    for turn in turns:
        for name, found in turn.items():
            wrong = sum(failures(found[load]["outcomes"]) for load in ("alone", "together"))
            failed += wrong
            took = found["alone"]["latency_ms"].get(ANSWERED, {})
            rates = (f"{found[load]['goodput_per_s']:.0f}" for load in ("alone", "together"))
            cpu = f"{found['together']['cpu_ms_per_request']:.1f}"
            table.add_row(name, *(f"{took.get(p, 0):.1f}" for p in ("p50", "p95", "p99")), *rates, cpu, str(wrong))
    Console(width=120).print(table)
    return {"target_ms": TARGET_MS, "turns": turns}, failed == 0


def failures(outcomes: dict[str, int], but: Sequence[str] = (ANSWERED,)) -> int:
    """Number of requests with other outcomes than these."""
    return sum(count for outcome, count in outcomes.items() if outcome not in but)


async def overload(running: Running, levels: Sequence[int], step_s: float, seconds: float) -> dict[str, Any]:
    """The best goodput of several closed loops, an open loop of ten times that, and the best one again."""
    async with connections(running.url) as session:
        chat = ChatClient(session, read_prompts())

        async def closed(concurrency: int) -> Load:
            return await closed_loop(chat, concurrency, seconds=step_s, settling_s=SETTLING_S)

        await closed_loop(chat, max(levels), requests=WARMUP_REQUESTS)
        loads = {concurrency: await closed(concurrency) for concurrency in levels}
        concurrency, best = max(loads.items(), key=lambda pair: pair[1].goodput)
        if not best.goodput:
            raise BlendError(f"no answers at all: {dict(best.outcomes)}")
        due = arrivals(OVERLOAD_FACTOR * best.goodput, SETTLING_S + seconds)
        over = await OpenLoop(chat, due).run(SETTLING_S)
        after = await closed(concurrency)
    return {
        "levels": {str(concurrency): load.account() for concurrency, load in loads.items()},
        "best": {"concurrency": concurrency, "goodput_per_s": round(best.goodput, 2)},
        "overload": {"per_s": round(OVERLOAD_FACTOR * best.goodput, 1), **over.account()},
        "after": after.account(),
        "goodput_kept": round(over.goodput / best.goodput, 3),
        "goodput_after": round(after.goodput / best.goodput, 3),
        "lost": failures(over.outcomes, (ANSWERED, DEGRADED, REFUSED)),
    }


def bench_overload(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Overload models that only wait, and the miniature, whose models use all CPUs of this machine."""
    gateway = {"max_in_flight": given.in_flight, "max_queued": given.queued}
    levels = sorted({max(1, given.in_flight // 4), given.in_flight // 2 or 1, given.in_flight, 2 * given.in_flight})
    levels = [level for level in levels if level <= given.in_flight + given.queued]
    found: dict[str, Any] = {}
    if given.setting in ("waiting", "both"):
        with model_server(given.delay_s) as url, blend_service(waiting_models(url, 2, gateway=gateway)) as running:
            found["waiting"] = asyncio.run(overload(running, levels, given.step_s, given.seconds))
    if given.setting in ("miniature", "both"):
        with blend_service(miniature(gateway=gateway)) as running:
            found["miniature"] = asyncio.run(overload(running, levels, given.step_s, given.seconds))
    table = Table("", "best/s", "sent/s", "kept", "after", "refused, ms: p50", "p99", "max", "lost")
    for name, one in found.items():
        refused = one["overload"]["latency_ms"].get(REFUSED, {})
        rates = [f"{one['best']['goodput_per_s']:.1f}", f"{one['overload']['per_s']:.0f}"]
        shares = [f"{one[share]:.0%}" for share in ("goodput_kept", "goodput_after")]
        times = [f"{refused.get(name, 0):.1f}" for name in ("p50", "p99", "max")]
        table.add_row(name, *rates, *shares, *times, str(one["lost"]))
    Console(width=120).print(table)
    return {"gateway": gateway, **found}, not any(one["lost"] for one in found.values())


def bench_kill(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Kill a replica of each part of the miniature in each round; it has two gateways, rankers and fusers."""
    config = miniature(quorum=QUORUM, gateway={"num_cpus": 0.1, "replicas": 2})
    for name in ("ranker", "fuser"):
        config[name] = {**config[name], "replicas": 2}
    names = [model["name"] for model in config["models"]]
    parts = [
        part
        for number in range(given.rounds)
        for part in ((names[number % len(names)], 1), ("ranker", 2), ("fuser", 2), (GATEWAY_NAME, 2))
    ]
    with blend_service(config) as running:
        deaths, shots = kill_each(running, parts, read_prompts(), given.per_s)
    found = {part: hit.account() for part, hit in deaths.items()}
    table = Table("killed", "times", "whole after, s", "requests meanwhile", "tried again", "failed")
    for part, hit in found.items():
        recovery = ", ".join("never" if seconds is None else f"{seconds:.0f}" for seconds in hit["recovery_s"])
        table.add_row(
            part,
            *(str(value) for value in (hit["killed"], recovery, hit["requests"], hit["retried"], hit["failed"])),
        )
    Console(width=120).print(table)
    untouched = len(shots) - sum(hit["requests"] for hit in found.values())
    report = {"quorum": QUORUM, "per_s": given.per_s, "sent": len(shots), "undisturbed": untouched, "parts": found}
    failed = sum(hit["failed"] + (part != GATEWAY_NAME) * hit["retried"] for part, hit in found.items())
    return report, not failed and all(None not in hit["recovery_s"] for hit in found.values())


def bench_change(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Change the config of a deployed service under load, in each of several ways."""
    found = change_each(read_prompts(), given.per_s)
    table = Table("changed", "update, s", "requests", "failed", "degraded", "slowest, s", "restarted")
    for name, one in found.items():
        counts = (one["update_s"], one["sent"], one["failed"], one["outcomes"].get(DEGRADED, 0), one["slowest_s"])
        table.add_row(name, *map(str, counts), ", ".join(one["restarted"]))
    Console(width=120).print(table)
    failed = sum(one["failed"] for one in found.values())
    unchanged = sum(len(one["restarted_unchanged"]) for one in found.values())
    report = {"per_s": given.per_s, "failed": failed, "restarts_of_unchanged": unchanged, "changes": found}
    return report, not failed and not unchanged


async def first_tokens(running: Running, models: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Shot]]:
    """Send every prompt to every model, one at a time; the first model changes from prompt to prompt."""
    loop = asyncio.get_running_loop()
    found: dict[str, list[Shot]] = {model: [] for model in models}
    async with connections(running.url) as session:
        chats = {model: ChatClient(session, prompts, model, stream=True) for model in models}
        for chat in chats.values():
            await closed_loop(chat, 1, requests=2)
        for number in range(len(prompts)):
            first = number % len(models)
            for model in (*models[first:], *models[:first]):
                sent = loop.time()
                reply = await chats[model](number)
                found[model].append(Shot(sent, sent, loop.time(), reply))
    return found


def bench_first_token(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the miniature; its fuser decodes greedily, so that it streams."""
    config = miniature()
    members = [model["name"] for model in config["models"]]
    with blend_service(config, "fuser.num_beams=1") as running:
        shots = asyncio.run(first_tokens(running, ["blend", *members], read_prompts()[: given.prompts]))
    found, wrong = {}, 0
    for model, asked in shots.items():
        whole = [shot for shot in asked if shot.reply.outcome == ANSWERED and shot.reply.first is not None]
        wrong += len(asked) - len(whole)
        found[model] = {
            "first_ms": milliseconds(
                [shot.reply.first - shot.sent for shot in whole if shot.reply.first is not None]
            ),
            "last_ms": milliseconds([shot.ended - shot.sent for shot in whole]),
        }
    if wrong:
        raise BlendError(f"{wrong} requests weren't answered: {json.dumps(found)}")
    slowest = max(members, key=lambda name: found[name]["last_ms"]["p50"])
    table = Table("", "first text, ms: p50", "p95", "last, ms: p50", "p95")
    for model, took in found.items():
        cells = (f"{took[when][p]:.0f}" for when in ("first_ms", "last_ms") for p in ("p50", "p95"))
        table.add_row(f"{model} (slowest)" if model == slowest else model, *cells)
    Console(width=120).print(table)
    return {"prompts": given.prompts, "slowest": slowest, "models": found}, True


def _commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llm_blender_ray.pipelines.bench.online",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("latency", help="what the service takes without models")
    command.set_defaults(bench=bench_latency)
    command.add_argument("--requests", type=int, default=500, help="one at a time")
    command.add_argument("--concurrency", type=int, default=64, help="of the other load")
    command.add_argument("--turns", type=int, default=1)
    command = commands.add_parser("overload", help="ten times the best load")
    command.set_defaults(bench=bench_overload)
    command.add_argument("--setting", choices=("waiting", "miniature", "both"), default="both")
    command.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    command.add_argument("--step-s", type=float, default=30.0, help="of each other load")
    command.add_argument("--in-flight", type=int, default=16, help="the gateway's max_in_flight")
    command.add_argument("--queued", type=int, default=16, help="the gateway's max_queued")
    command.add_argument("--delay-s", type=float, default=0.25, help="that each of the waiting models takes")
    command = commands.add_parser("kill", help="a replica of each part killed under load")
    command.set_defaults(bench=bench_kill)
    command.add_argument("--rounds", type=int, default=1)
    command.add_argument("--per-s", type=float, default=1.0, help="requests a second")
    command = commands.add_parser("change", help="the config changed under load")
    command.set_defaults(bench=bench_change)
    command.add_argument("--per-s", type=float, default=20.0, help="requests a second")
    command = commands.add_parser("ranking", help="one request on several replicas of the ranker")
    command.set_defaults(bench=bench_ranking)
    command.add_argument("--requests", type=int, default=10, help="one at a time")
    command.add_argument("--comparison-s", type=float, default=0.01, help="of a simulated replica")
    command = commands.add_parser("first-token", help="the miniature's blend beside each of its models alone")
    command.set_defaults(bench=bench_first_token)
    command.add_argument("--prompts", type=int, default=20)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measurements: a table, and everything as JSON in the last line."""
    given = _commands().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child processes
    load = os.getloadavg()[0]
    report, good = given.bench(given)
    print(json.dumps({**report, "load_before": load}))
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except BlendError as error:
        sys.exit(f"bench online: {error}")
