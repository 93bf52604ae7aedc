"""Losses of a bulk run whose processes are killed; JSON in the last line.

    python -m llm_blender_ray.pipelines.bench.faults --rows 2000 --kills 10

The miniature blends the same rows three times: undisturbed; while SIGKILL ends its driver, its actors or all of its
Ray at moments drawn with a seed, with the same command repeated after each death of the driver; and on a cluster of
several Ray nodes, one of which is removed without notice. Counted are rows lost and duplicated (by the input's
ids), rows that differ from the undisturbed run's (it decodes greedily, so none may), and, by what actors write to
Ray's logs, blocks computed again.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow.dataset
import yaml

from llm_blender_ray.cluster.processes import (
    descendants,
    nodes,
    remaining,
    remove_busiest,
    title,
    wait_until,
    worker_actors,
)
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk.worker import EVENT

Target = Literal["driver", "actor", "node"]
TARGETS: tuple[Target, ...] = ("driver", "actor", "node")
_HELDOUT = PRESETS / "miniature" / "heldout.jsonl"
_MODELS = 2  # of the miniature's LLMs
MAX_KILL_DELAY_S = 2.0  # between the work that a kill waits for, and the kill
_PATIENCE_S = 240.0  # for processes to end by themselves; a driver notices the loss of its Ray after a minute


class FaultError(Exception):
    """The run did not do what was to be measured."""


@dataclass(frozen=True)
class Kill:
    """Kill of a target `delay_s` after a number of results (of a stage for a block) were stored."""

    target: Target
    results: int
    delay_s: float


@dataclass(frozen=True)
class Counted:
    """Fate of the rows, and the work for them.

    begun: computations of a block by a stage that an actor began; in_flight: those of them that were not stored,
    because something was killed; again: those that had been begun before. saved_twice: stored more than once.
    """

    rows: int
    lost: int
    doubled: int
    different: int
    results: int
    begun: int
    in_flight: int
    again: int
    saved_twice: int


@dataclass(frozen=True)
class Job:
    """One `blend run`. Its Ray has its session in `folder`, which must have a short path."""

    folder: Path
    config: Path
    input: Path
    address: str | None = None

    @property
    def output(self) -> Path:
        """Folder of the output."""
        return self.folder / "out"

    @property
    def results(self) -> Path:
        """Folder of each stage's results of each block."""
        return self.output / ".blend" / "results"

    def start(self) -> subprocess.Popen[Any]:
        """Start the command; its output goes to `log`."""
        command = [sys.executable, "-m", "llm_blender_ray", "run", str(self.config)]
        command += ["--input", str(self.input), "--output", str(self.output)]
        environment = os.environ | {"RAY_TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        if self.address:
            environment["RAY_ADDRESS"] = self.address
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @property
    def log(self) -> Path:
        """File of the command's output."""
        return self.folder / "log"

    def kept(self) -> int:
        """Number of results."""
        return sum(1 for _ in self.results.glob("*/*.parquet"))

    def rows(self) -> list[dict[str, Any]]:
        """The rows written."""
        return list(pyarrow.dataset.dataset(self.output, format="parquet").to_table().to_pylist())

    def events(self) -> Iterator[tuple[str, str, str]]:
        """Events in the actors' logs: stage, block, event."""
        for file in self.folder.glob("ray/session_2*/logs/worker-*.err"):
            for event in EVENT.finditer(file.read_text(errors="replace")):
                yield event["stage"], event["block"], event["what"]


def _count(job: Job, ids: Sequence[str], reference: Sequence[dict[str, Any]] | None = None) -> Counted:
    """Compare a finished job's rows with its input's ids and with another run's rows."""
    rows = job.rows()
    found = Counter(row["id"] for row in rows)
    expected = {row["id"]: row for row in reference or rows}
    begun, saved = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for stage, block, what in job.events():
        (begun if what == "begun" else saved)[stage, block] += 1
    return Counted(
        rows=len(rows),
        lost=(Counter(ids) - found).total(),
        doubled=(found - Counter(ids)).total(),
        different=sum(row != expected.get(row["id"]) for row in rows),
        results=job.kept(),
        begun=begun.total(),
        in_flight=(begun - saved).total(),
        again=begun.total() - len(begun),
        saved_twice=saved.total() - len(saved),
    )


def draw_fault(seed: int, kills: int, results: int) -> list[Kill]:
    """Draw kills spread over a run of `results` results: a third of them of each target, in random order."""
    draw = random.Random(seed)
    targets = [TARGETS[i % len(TARGETS)] for i in range(kills)]
    draw.shuffle(targets)
    moments = sorted(draw.randrange(results) for _ in range(kills))
    return [
        Kill(target, at, draw.uniform(0, MAX_KILL_DELAY_S)) for target, at in zip(targets, moments, strict=True)
    ]


def kill_target(target: Target, process: subprocess.Popen[Any], draw: random.Random) -> bool:
    """Kill a target; False when the run ended before.

    Raises:
        FaultError: A driver without its Ray does not end, or processes stay behind.
    """
    there: list[psutil.Process] = []

    def found() -> bool:
        there[:] = descendants(process)
        if target == "actor":
            there[:] = worker_actors(there)
        return any("raylet/raylet" in title(one) for one in there) if target == "node" else bool(there)

    if not wait_until(found, process):
        return False
    if target == "actor":
        draw.choice(there).kill()
        return True
    for one in there if target == "node" else [process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise FaultError(f"the driver didn't end within {_PATIENCE_S:g} s of its Ray") from None
    if left := remaining(there):
        raise FaultError(f"left behind: {', '.join(map(title, left))}")
    return True


def run_undisturbed(job: Job) -> float:
    """Run the job once; seconds.

    Raises:
        FaultError: It fails.
    """
    begin = time.perf_counter()
    finish(job, job.start())
    return time.perf_counter() - begin


def finish(job: Job, process: subprocess.Popen[Any]) -> None:
    """Wait for the end of a driver.

    Raises:
        FaultError: It failed.
    """
    if process.wait() != 0:
        raise FaultError(f"exit {process.returncode}: {job.log.read_text(errors='replace')[-2000:]}")


def run_with_kills(job: Job, kills: Sequence[Kill], seed: int) -> tuple[list[Target], int]:
    """Complete the job through kills.

    Returns:
        The kills, and the number of commands.

    Raises:
        FaultError: A command ended other than by a kill or by completing.
    """
    draw = random.Random(seed)
    process, starts = job.start(), 1
    struck: list[Target] = []
    try:
        for kill in kills:
            if not wait_until(lambda kill=kill: job.kept() >= kill.results, process):  # type: ignore[misc]
                break
            time.sleep(kill.delay_s)
            if process.poll() is not None or not kill_target(kill.target, process, draw):
                break
            struck.append(kill.target)
            print(f"{kill.target} killed at {job.kept()} results", file=sys.stderr)
            if process.poll() is not None:
                process, starts = job.start(), starts + 1
        finish(job, process)
    finally:
        if process.poll() is None:
            process.kill()
    return struck, starts


def write_job(folder: Path, rows: int, seed: int) -> tuple[Path, Path, list[str]]:
    """Write the config and the input: held-out prompts, repeated in other orders; returns the input's ids too."""
    config = load(PRESETS / "demo.yaml", BlendConfig)
    config = config.model_copy(update={"models": config.models[:_MODELS]})
    given = [json.loads(line) for line in _HELDOUT.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    while len(made) < rows:  # in another order: equal blocks would be computed once
        made += [row | {"id": f"{row['id']}-{len(made)}"} for row in given]
        draw.shuffle(given)
    made = made[:rows]
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder / "config.yaml", folder / "in.jsonl", [row["id"] for row in made]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all three runs, print the counts, JSON last. Exit code 1: rows are lost, duplicated or different."""
    parser = argparse.ArgumentParser(prog="python -m llm_blender_ray.pipelines.bench.faults", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child processes
    # a short path: the paths of Ray's sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="bf", ignore_cleanup_errors=True) as name:
        report = measure_faults(Path(name), given.rows, given.kills, given.seed)
    for part in ("kills", "node_removed"):
        print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in report[part].items()))
    print(json.dumps(report))
    if any(report[part][name] for part in ("kills", "node_removed") for name in ("lost", "doubled", "different")):
        sys.exit(1)


def measure_faults(folder: Path, rows: int, kills: int, seed: int) -> dict[str, Any]:
    """Do all three runs and count."""
    config, source, ids = write_job(folder, rows, seed)

    def job(name: str, address: str | None = None) -> Job:
        (folder / name).mkdir(exist_ok=True)
        return Job(folder / name, config, source, address)

    plain = job("a")
    seconds = run_undisturbed(plain)
    reference = plain.rows()
    report: dict[str, Any] = {"rows": rows, "seed": seed}
    report["undisturbed"] = {"seconds": round(seconds, 1), **asdict(_count(plain, ids))}
    print(f"undisturbed: {seconds:.0f} s", file=sys.stderr)

    hit = job("b")
    begin = time.perf_counter()
    struck, starts = run_with_kills(hit, draw_fault(seed, kills, plain.kept()), seed)
    report["kills"] = {
        "killed": dict(Counter(struck)),
        "starts": starts,
        "seconds": round(time.perf_counter() - begin, 1),
        **asdict(_count(hit, ids, reference)),
    }

    print(f"kills: {report['kills']}", file=sys.stderr)

    os.environ["RAY_TMPDIR"] = str(folder / "c")  # for the cluster's nodes
    with nodes((1, 1, 1)) as cluster:
        spread = job("c", cluster.address)
        begin = time.perf_counter()
        process = spread.start()
        try:
            if not wait_until(lambda: spread.kept() >= plain.kept() // 3, process):
                finish(spread, process)
                raise FaultError("the run was over before a node was removed")
            actors_lost = remove_busiest(cluster)
            finish(spread, process)
        finally:
            if process.poll() is None:
                process.kill()
        took = time.perf_counter() - begin
    report["node_removed"] = {
        "nodes": 3,
        "actors_lost": actors_lost,
        "seconds": round(took, 1),
        **asdict(_count(spread, ids, reference)),
    }
    return report


if __name__ == "__main__":
    main()
