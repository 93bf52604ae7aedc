"""Overhead of the bulk path: whole runs without an LLM, and vLLM in a run against vLLM alone.

`noop` does whole runs of generated rows with an engine that answers at once: rows a second, and the driver's
memory meanwhile. Each is a process of its own, so that runs do not share memory.
`vllm` has the same prompts answered by the bare engine and by the generate stage of a run, in turns: questions,
texts and code of 5 to 370 words (`prompts.jsonl`), or rows of a file of yours; answers are sampled.

    python -m llm_blender_ray.pipelines.bench.bulk noop --rows 10000 100000
    python -m llm_blender_ray.pipelines.bench.bulk vllm --model FOLDER --rows 160
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.engines import Completion, load_engine
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Prompt, read_prompt
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import BlendConfig, Sampling, VLLMModel
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows

MINIATURE = PRESETS / "miniature"
PROMPTS = Path(__file__).with_name("prompts.jsonl")
SAMPLE_EVERY_S = 0.25
MIB = 2**20

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of a run's phases, from its work folder.

    Attributes:
        reading: The input into blocks.
        loading: Until the first block is at a model.
        stages: From then until the last block has passed all stages.
        writing: The output and its manifest.
    """

    reading: float
    loading: float
    stages: float
    writing: float

    @property
    def steady(self) -> float:
        """All phases whose time grows with the rows: without the start of Ray and the models."""
        return self.reading + self.stages + self.writing


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Resident memory of the driver, and CPU seconds of it and all its descendants, at a time."""

    at: float
    driver_mib: float
    cpu_s: float


@contextmanager
def watching(samples: list[MemorySample]) -> Iterator[None]:
    """Append samples of this process and its descendants within the block, a few times a second."""
    over, driver = threading.Event(), psutil.Process()
    cpu: dict[tuple[int, float], float] = {}  # including processes that have ended

    def watch() -> None:
        while not over.wait(SAMPLE_EVERY_S):
            for process in [driver, *driver.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    cpu[process.pid, process.create_time()] = times.user + times.system
            samples.append(MemorySample(time.time(), driver.memory_info().rss / MIB, sum(cpu.values())))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def spans(store: CheckpointStore) -> dict[str, list[tuple[float, float]]]:
    """Start and end of the work on each block, by the folder of a stage's results."""
    found: dict[str, list[tuple[float, float]]] = {}
    for stage in sorted(store.stages()):
        folder = Path(store.root) / "results" / stage
        accounts = [json.loads(pq.read_metadata(file).metadata[b"blend"]) for file in folder.glob("*.parquet")]
        found[stage] = [(account["started"], account["ended"]) for account in accounts]
    return found


def phases(store: CheckpointStore) -> Phases:
    """Phases of a run that was completed in one session."""
    manifest = Manifest.parse(store.manifest() or b"")
    began, ended = manifest.started.timestamp(), manifest.finished.timestamp()
    read = (Path(store.root) / "index.parquet").stat().st_mtime
    work = [span for stage in spans(store).values() for span in stage]
    first, last = min(start for start, _ in work), max(end for _, end in work)
    return Phases(read - began, first - read, last - first, ended - last)


def make_bulk_rows(count: int, file: Path) -> None:
    """Write rows: the included prompts repeated, each with a number, since equal blocks are computed once."""
    prompts = [json.loads(line) for line in (MINIATURE / "heldout.jsonl").read_text("utf-8").splitlines()]
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            row = prompts[number % len(prompts)]
            row = {**row, "id": str(number), "instruction": f"{number}. {row['instruction']}"}
            lines.write(json.dumps(row) + "\n")


def repeat_prompts(prompts: Path, count: int, file: Path) -> None:
    """Write rows of JSON lines, from the first again after the last, under ids of their own."""
    rows = [json.loads(line) for line in prompts.read_text("utf-8").splitlines()]
    with file.open("w", encoding="utf-8") as lines:
        for number, row in zip(range(count), itertools.cycle(rows), strict=False):
            lines.write(json.dumps({**row, "id": str(number)}) + "\n")


def bench_noop(count: int) -> dict[str, Any]:
    """Measure one whole run of `count` rows: rows a second, its phases, and this process's memory.

    One LLM that answers with the prompt, and a ranker that has nothing to compare.
    """
    with tempfile.TemporaryDirectory() as scratch:
        make_bulk_rows(count, given := Path(scratch) / "in.jsonl")
        config = _config(given, model={"name": "echo", "engine": "echo", "model": "echo", "num_cpus": 0})
        samples: list[MemorySample] = []
        begin = time.perf_counter()
        with watching(samples):
            manifest = _run(config)
        wall = time.perf_counter() - begin
        took = phases(_store(config))
    begun = manifest.started.timestamp() + took.reading + took.loading
    stages = [sample for sample in samples if begun <= sample.at <= begun + took.stages]
    memory = [sample.driver_mib for sample in samples if sample.at >= begun]
    return {
        "rows": count,
        "wall_s": wall,
        "rows_per_s": {"whole": count / wall, "steady": count / took.steady},
        "phases_s": asdict(took),
        "stages_cpu_us_per_row": (stages[-1].cpu_s - stages[0].cpu_s) / count * 1e6,
        "driver_mib": {"first": memory[0], "last": memory[-1], "most": max(memory)},
        "load": os.getloadavg()[0],
    }


def _config(given: Path, model: dict[str, Any]) -> BlendConfig:
    """A blend of one model, its output beside the input; `full` compares nothing when there is one candidate."""
    ranker = {"model": str(MINIATURE / "ranker"), "device": "cpu", "num_cpus": 0, "strategy": "full"}
    output = str(given.with_name("out"))
    return BlendConfig.model_validate(
        {"models": [model], "ranker": ranker, "input": str(given), "output": output, "ray": {"address": "local"}}
    )


def _store(config: BlendConfig) -> CheckpointStore:
    return CheckpointStore(Output(str(config.output)).work_folder)


def _run(config: BlendConfig) -> Manifest:
    """Manifest of the whole run.

    Raises:
        BlendError: A row has an error, so nothing was measured.
    """
    manifest = run_blend(config).manifest
    failed = manifest.output.errors + sum(stage.failed for stage in manifest.stages)
    if failed or manifest.output.rows != manifest.input.rows:
        raise BlendError(
            f"{manifest.output.rows} of {manifest.input.rows} rows, {failed} errors: {manifest.errors}"
        )
    return manifest


def bare_rate(model: VLLMModel, given: Path) -> float:
    """Tokens a second of the engine alone; it has all prompts at once and queues them itself."""
    engine = load_engine(model)

    async def answers(prompts: Sequence[Prompt]) -> list[Completion]:
        return await asyncio.gather(*(engine.generate(prompt.chat(), model.sampling) for prompt in prompts))

    prompts = [read_prompt(row) for row in read_rows(str(given))]
    with asyncio.Runner() as runner:
        try:
            begin = time.perf_counter()
            tokens = sum(done.completion_tokens or 0 for done in runner.run(answers(prompts)))
            return tokens / (time.perf_counter() - begin)
        finally:
            runner.run(engine.close())


def run_rate(model: VLLMModel, given: Path) -> float:
    """Tokens a second of the generate stage in a run, from the first block's start to the last one's end."""
    with tempfile.TemporaryDirectory(dir=given.parent) as scratch:
        config = _config(Path(shutil.copy(given, scratch)), model.model_dump())
        tokens = _run(config).stages[0].completion_tokens
        (work,) = (found for stage, found in spans(_store(config)).items() if stage.startswith("generate-"))
    return tokens / (max(end for _, end in work) - min(start for start, _ in work))


def bench_vllm(folder: str, prompts: Path, count: int, *, turns: int, max_tokens: int) -> dict[str, Any]:
    """Tokens a second of the bare engine and of a run, in turns, each with an engine of its own.

    Repeated prompts are work each time: answers are sampled, which blocks never share, and vLLM keeps no prefix
    of a prompt for the next.
    """
    model = VLLMModel(
        name="vllm",
        engine="vllm",
        model=folder,
        sampling=Sampling(max_tokens=max_tokens, temperature=0.7),
        engine_args={"enable_prefix_caching": False},
    )
    if not torch.cuda.is_available():
        model = model.model_copy(update={"num_gpus": 0, "num_cpus": 0})
    with tempfile.TemporaryDirectory() as scratch:
        repeat_prompts(prompts, count, given := Path(scratch) / "in.jsonl")
        rates = [(_alone(bare_rate, model, given), _alone(run_rate, model, given)) for _ in range(turns)]
    return {
        "rows": count,
        "tokens_per_s": {"bare": [bare for bare, _ in rates], "run": [run for _, run in rates]},
        "ratio": statistics.median(run / bare for bare, run in rates),
        "load": os.getloadavg()[0],
    }


def _alone(measure: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of `measure` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *args, **kwargs).result()


def main() -> None:
    """Print the measurements: a table, and everything as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    noop = commands.add_parser("noop", help="whole runs without any LLM")
    noop.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="of each run")
    vllm = commands.add_parser("vllm", help="vLLM in a run against vLLM alone")
    vllm.add_argument("--model", required=True, help="a folder that vLLM loads")
    vllm.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines, repeated as often as needed")
    vllm.add_argument("--rows", type=int, default=160)
    vllm.add_argument("--turns", type=int, default=3)
    vllm.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args()
    if given.command == "noop":
        runs = [_alone(bench_noop, count) for count in given.rows]
        table = Table(
            "rows", "rows/s", "steady", "reading, s", "loading, s", "stages, s", "writing, s", "driver, MiB"
        )
        for run in runs:
            memory = "{first:.0f} to {last:.0f}, most {most:.0f}".format(**run["driver_mib"])
            rates = (f"{rate:.0f}" for rate in run["rows_per_s"].values())
            table.add_row(str(run["rows"]), *rates, *(f"{s:.1f}" for s in run["phases_s"].values()), memory)
        Console(width=120).print(table)
        print(json.dumps({"runs": runs}))
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in Ray's actors: both sides must have the same
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, where there is no GPU
        result = bench_vllm(given.model, given.prompts, given.rows, turns=given.turns, max_tokens=given.max_tokens)
        table = Table("turn", "alone, tokens/s", "in a run, tokens/s", "ratio")
        rates = result["tokens_per_s"]
        for turn, (bare, run) in enumerate(zip(rates["bare"], rates["run"], strict=True), 1):
            table.add_row(str(turn), f"{bare:.0f}", f"{run:.0f}", f"{run / bare:.3f}")
        Console().print(table)
        print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except BlendError as error:
        sys.exit(f"bench bulk: {error}")
