"""Cost of one endpoint that is down: rows/s of a bulk run, latency of online requests.

`bulk`: the same rows with models that answer after a fixed time, and with one more that is down: its port is
closed, or it answers 503. `online`: `blend serve` of the same models, all up, and with one that is down or never
answers; requests are timed once its circuit breaker is open, and those before are counted separately.

    python -m llm_blender_ray.pipelines.bench.outage bulk --rows 10000
    python -m llm_blender_ray.pipelines.bench.outage online --requests 200

The last line is JSON. Exit code 1: slower than the target.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset
from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.processes import free_port
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bench.bulk import make_bulk_rows, phases
from llm_blender_ray.pipelines.bench.online import read_prompts
from llm_blender_ray.pipelines.bench.online_load import ChatClient, connections
from llm_blender_ray.pipelines.bench.online_service import (
    HOST,
    blend_service,
    model_server,
    waiting_models,
)
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.rows.outputs import Output

LIVE_MODELS = 2  # models that answer
TARGET = {"bulk": 0.9, "online": 1.1}  # rows/s at least, p50 at most, as a share of the same without the outage
DOWN_MODEL = "down"  # the model's name


def urls(server: str) -> dict[str, str]:
    """Base URLs of endpoints that are down, by the kind of failure."""
    root = server.removesuffix("/v1")
    return {
        "refused": f"http://{HOST}:{free_port()}/v1",
        "503": f"{root}/unavailable/v1",
        "silent": f"{root}/silent/v1",
    }


def config_of(server: str, broken: str | None, **more: Any) -> dict[str, Any]:
    """A blend of the living models and of the one that is down at this URL, which comes first."""
    config = waiting_models(server, LIVE_MODELS)
    for model in config["models"]:
        del model["max_in_flight"]  # the default
    if broken:
        down = {"name": DOWN_MODEL, "base_url": broken, "max_error_rate": 1.0}
        config["models"].insert(0, config["models"][0] | down)
    return {**config, "fuser": None, **more}


def run_bulk(server: str, broken: str | None, rows: int) -> dict[str, Any]:
    """Do one whole run.

    Raises:
        BlendError: A model succeeded or failed on a row where the opposite is expected.
    """
    with tempfile.TemporaryDirectory(prefix="bo") as scratch:
        given, output = Path(scratch) / "in.jsonl", Path(scratch) / "out"
        make_bulk_rows(rows, given)
        config = BlendConfig.model_validate(
            config_of(server, broken, input=str(given), output=str(output), ray={"address": "local", "num_cpus": 2})
        )
        begin = time.perf_counter()
        manifest = run_blend(config).manifest
        wall = time.perf_counter() - begin
        took = phases(CheckpointStore(Output(str(output)).work_folder))
        candidates = pyarrow.dataset.dataset(output, format="parquet").to_table(["candidates"])
    errors: dict[str, int] = {}
    for row in candidates.column("candidates").to_pylist():
        for one in row:
            if one["error"]:
                errors[one["model"]] = errors.get(one["model"], 0) + 1
    if manifest.output.rows != rows or errors != ({DOWN_MODEL: rows} if broken else {}):
        raise BlendError(f"{manifest.output.rows} of {rows} rows; errors by model: {errors}")
    return {"wall_s": wall, "steady_s": took.steady, "rows_per_s": rows / took.steady}


def bench_bulk(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the run without the model, and with it down in each way."""
    with model_server(given.delay_s) as server:
        broken = {name: url for name, url in urls(server).items() if name != "silent"}  # timeouts: the defaults
        runs = {"without it": run_bulk(server, None, given.rows)}
        runs |= {name: run_bulk(server, url, given.rows) for name, url in broken.items()}
    best = runs["without it"]["rows_per_s"]
    table = Table("one endpoint", "seconds", "rows/s", "share")
    for name, run in runs.items():
        run["share"] = run["rows_per_s"] / best
        table.add_row(name, f"{run['steady_s']:.1f}", f"{run['rows_per_s']:.1f}", f"{run['share']:.3f}")
    Console(width=100).print(table)
    result = {"rows": given.rows, "delay_s": given.delay_s, "target": TARGET["bulk"], "runs": runs}
    return result, all(run["share"] >= TARGET["bulk"] for run in runs.values())


async def ask(url: str, requests: int, broken: bool) -> dict[str, Any]:
    """Latencies of requests one after the other; if a model is down, from when its circuit is open.

    Raises:
        BlendError: A request fails.
    """
    async with connections(url) as session:
        chat = ChatClient(session, read_prompts())
        before: list[float] = []
        number = 0

        async def timed() -> tuple[float, str]:
            nonlocal number
            number += 1
            begin = time.perf_counter()
            reply = await chat(number)
            return time.perf_counter() - begin, reply.outcome

        while broken:
            async with session.get("/healthz") as response:
                parts = (await response.json()).get("parts") or {}
            if parts.get(DOWN_MODEL, {}).get("state") == "open":
                break
            before.append((await timed())[0])
        for _ in range(10):  # set up connections and caches
            await timed()
        shots = [await timed() for _ in range(requests)]
    outcomes = {outcome for _, outcome in shots}
    if outcomes - {"degraded" if broken else "answered"}:
        raise BlendError(f"not what was expected of the service: {outcomes}")
    took = sorted(seconds for seconds, _ in shots)
    quantiles = statistics.quantiles(took, n=100)
    return {
        "before_ms": [round(1000 * seconds, 1) for seconds in before],
        "p50_ms": 1000 * statistics.median(took),
        "p99_ms": 1000 * quantiles[98],
        "most_ms": 1000 * took[-1],
    }


def bench_online(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the service with all models up, and with one down in each way."""
    runs: dict[str, Any] = {}
    with model_server(given.delay_s) as server:
        for name, url in {"all up": server, **urls(server)}.items():
            serve = {"deadline_s": given.deadline_s}
            with blend_service(config_of(server, url, serve=serve)) as running:
                runs[name] = asyncio.run(ask(running.url, given.requests, broken=name != "all up"))
    best = runs["all up"]["p50_ms"]
    table = Table("one endpoint", "before, ms", "p50, ms", "p99, ms", "most, ms", "share")
    for name, run in runs.items():
        run["share"] = run["p50_ms"] / best
        before = " ".join(f"{ms:.0f}" for ms in run["before_ms"])
        figures = (f"{run[key]:.1f}" for key in ("p50_ms", "p99_ms", "most_ms"))
        table.add_row(name, before, *figures, f"{run['share']:.3f}")
    Console(width=120).print(table)
    result = {"requests": given.requests, "delay_s": given.delay_s, "target": TARGET["online"], "runs": runs}
    return result, all(run["share"] <= TARGET["online"] for run in runs.values())


def main() -> None:
    """Measure, and end with JSON."""
    parser = argparse.ArgumentParser(prog="python -m llm_blender_ray.pipelines.bench.outage", description=__doc__)
    parser.add_argument("what", choices=("bulk", "online"))
    parser.add_argument(
        "--rows", type=int, default=10_000, help="of the bulk run: the first failures cost 15 s, however long it is"
    )
    parser.add_argument("--requests", type=int, default=200, help="online, of each service")
    parser.add_argument("--delay-s", type=float, default=0.25, help="until a living model answers")
    parser.add_argument("--deadline-s", type=float, default=10.0, help="serve.deadline_s: what a hung model costs")
    given = parser.parse_args()
    try:
        result, good = (bench_bulk if given.what == "bulk" else bench_online)(given)
    except BlendError as error:
        sys.exit(f"outage: {error}")
    print(json.dumps(result))
    sys.exit(not good)


if __name__ == "__main__":
    main()
