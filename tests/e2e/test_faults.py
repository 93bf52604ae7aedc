"""Runs that are killed, hit or changed: what was kept counts, nothing is lost, nothing doubled.

Models are echoes of the prompt cut to some words, so that a run takes seconds and each answer is known; where a
process has to die of its work, its stage ends it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
import ray
import yaml
from fault_models import POISON, dying_worker
from faulty_proxy import FaultyProxy, lose_answer, refuse, reset

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.processes import (
    PROCESS_POLL_S,
    descendants,
    nodes,
    remaining,
    remove_busiest,
    wait_until,
    worker_actors,
)
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk import executor
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.rows.outputs import Output

PATIENCE_S = 120.0
RANKER = {"kind": "echo", "num_cpus": 0.1}


def echo(name: str, words: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "engine": "echo", "model": "none", "sampling": {"max_tokens": words}, **more}


def config(source: Path, output: Path | str, *models: dict[str, Any], **more: Any) -> BlendConfig:
    settings = {"models": models or [echo("one", 3)], "ranker": RANKER, "rows_per_block": 8, "ray": {"num_cpus": 2}}
    return BlendConfig.model_validate(settings | more | {"input": str(source), "output": str(output)})


def prompts(file: Path, count: int, first: int = 0) -> Path:
    """Rows with ids that differ and prompts of eight words, after those that are there."""
    lines = [
        {"id": f"r{i}", "prompt": f"number {i} of many questions in one file"} for i in range(first, first + count)
    ]
    with file.open("a") as sink:
        sink.writelines(json.dumps(line) + "\n" for line in lines)
    return file


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def manifest_of(output: Path) -> Manifest:
    text = CheckpointStore(Output(str(output)).work_folder).manifest()
    assert text is not None
    return Manifest.parse(text)


def kept(output: Path) -> dict[str, tuple[int, int]]:
    """The results that are there, by stage and block: which file, and when it was written."""
    files = Path(Output(str(output)).work_folder, "results").glob("*/*.parquet")
    return {f"{file.parent.name}/{file.stem}": (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def blocks(results: dict[str, Any], stage: str) -> list[str]:
    return [name for name in results if name.startswith(stage)]


class Command:
    """`blend run` of a config in a process of its own."""

    def __init__(self, folder: Path, settings: BlendConfig, *options: str, address: str | None = None) -> None:
        self._file = folder / "config.yaml"
        self._file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
        self._options = options
        self._environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llm_blender_ray", "run", str(self._file), *self._options]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self._environment)

    def kill_when(self, true: Callable[[], bool], poll_s: float = PROCESS_POLL_S) -> None:
        """SIGKILL as soon as something is so, and see that no process stays; then the same command again."""
        assert wait_until(true, self.process, poll_s), self.end()
        started = descendants(self.process.pid)
        self.process.kill()
        self.process.communicate()
        assert not remaining(started)
        self.process = self._start()

    def end(self) -> tuple[int, str]:
        """Exit code and the last line."""
        _, told = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, told.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_driver_killed_while_it_reads_blends_and_writes(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 6000)
    output = tmp_path / "out.jsonl"
    work = Path(Output(str(output)).work_folder)
    command = Command(tmp_path, config(source, output, rows_per_block=128))
    command.kill_when(lambda: any(work.glob("rows/*/*.parquet")))
    assert not (work / "index.parquet").exists()
    command.kill_when(lambda: len(kept(output)) > 2)
    before = kept(output)
    assert not output.exists()
    command.kill_when(lambda: any(tmp_path.glob(".out.jsonl.*.tmp")))
    assert not output.exists()
    code, told = command.end()
    assert (code, told) == (0, f"6000 rows: {output}")
    assert before.items() <= kept(output).items()
    assert manifest_of(output).sessions == 3  # the first got no further than reading

    undisturbed = tmp_path / "undisturbed.jsonl"
    run_blend(config(source, undisturbed, rows_per_block=128))
    assert output.read_bytes() == undisturbed.read_bytes()
    assert [row["id"] for row in rows_of(output)] == [f"r{i}" for i in range(6000)]


@pytest.mark.usefixtures("ray_session")
def test_an_actor_killed_at_work(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 600)
    output = tmp_path / "out.jsonl"
    struck: list[int] = []

    def strike() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not struck:
            if blocks(kept(output), "rank") and (found := worker_actors(descendants(os.getpid()))):
                for one in found:
                    one.kill()
                    struck.append(len(kept(output)))
            time.sleep(0.01)

    striking = threading.Thread(target=strike)
    striking.start()
    summary = run_blend(config(source, output))
    striking.join()
    assert struck and struck[0] < len(kept(output))  # the ranker's at least, in the midst of it
    assert (summary.manifest.output.rows, summary.manifest.output.errors) == (600, 0)
    assert [row["fused"] for row in rows_of(output)] == [f"number {i} of" for i in range(600)]


@pytest.mark.slow
def test_a_node_that_goes_without_notice(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("n")
    source = prompts(folder / "in.jsonl", 2000)
    output = folder / "out.jsonl"
    with nodes((1, 1, 1)) as cluster:
        # as many actors as CPUs: some are on every node, and fit on two
        spread = echo("one", 3, num_cpus=0.5, replicas={"min": 2, "max": 2})
        settings = config(source, output, spread, rows_per_block=16)
        command = Command(folder, settings, address=cluster.address)
        assert wait_until(lambda: len(kept(output)) > 2, command.process), command.end()
        remove_busiest(cluster)
        at = len(kept(output))
        code, told = command.end()
    assert (code, told) == (0, f"2000 rows: {output}")
    assert at < len(kept(output))
    assert [row["fused"] for row in rows_of(output)] == [f"number {i} of" for i in range(2000)]


@pytest.mark.usefixtures("ray_session")
class TestPoison:
    def test_rows_that_kill_their_process_get_an_error_and_no_other_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two in one block, side by side, and blocks before and after it."""
        source = prompts(tmp_path / "in.jsonl", 11)
        with source.open("a") as sink:
            for name in ("p1", "p2"):
                sink.write(json.dumps({"id": name, "prompt": f"{POISON} {name} three four"}) + "\n")
        prompts(source, 11, first=11)
        output = tmp_path / "out.jsonl"
        monkeypatch.setattr(executor, "Worker", dying_worker("dying", "on poison"))
        summary = run_blend(config(source, output, echo("dying", 2), echo("echo", 3)))
        rows = rows_of(output)
        assert [row["id"] for row in rows] == [
            *(f"r{i}" for i in range(11)),
            "p1",
            "p2",
            *(f"r{i}" for i in range(11, 22)),
        ]
        for row in rows:
            ours, other = row["candidates"]
            if row["id"] in ("p1", "p2"):
                assert ours["text"] is None
                assert ours["error"].startswith("the process died each time on this row")
                assert row["fused"] == f"{POISON} {row['id']} three"
            else:
                assert ours["error"] is None and ours["text"] is not None
            assert other["error"] is None and row["error"] is None
        (stage,) = [one for one in summary.manifest.stages if one.name == "dying"]
        assert (stage.rows, stage.failed) == (24, 2)

    def test_a_model_that_always_dies_at_work_ends_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = prompts(tmp_path / "in.jsonl", 40)
        monkeypatch.setattr(executor, "Worker", dying_worker("dying", "working"))
        with pytest.raises(
            BlendError, match=r"^dying: its process died \d+ times and finished nothing in between$"
        ):
            run_blend(config(source, tmp_path / "out.jsonl", echo("dying", 2), rows_per_block=32))
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_model_that_dies_while_it_loads_ends_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = prompts(tmp_path / "in.jsonl", 1)
        monkeypatch.setattr(executor, "Worker", dying_worker("dying", "loading"))
        with pytest.raises(BlendError, match="dying") as caught:
            run_blend(config(source, tmp_path / "out.jsonl", echo("dying", 2)))
        assert "\n" not in str(caught.value)
        assert "load" in str(caught.value)
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_model_of_a_later_wave_that_is_not_there_stops_the_run_before_the_first(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 3)
    gone = {"name": "gone", "engine": "transformers", "model": str(tmp_path / "nothing"), "num_cpus": 1}
    with pytest.raises(BlendError, match="nothing: no such folder"):
        run_blend(config(source, tmp_path / "out.jsonl", echo("first", 3, num_cpus=1), gone))
    assert not (tmp_path / ".out.jsonl.blend").exists()


def two_llms(source: Path, output: Path, *more: dict[str, Any], words: int = 5) -> BlendConfig:
    ranker = RANKER | {"strategy": {"kind": "full"}}
    return config(source, output, echo("three", 3), echo("five", words), *more, ranker=ranker)


@pytest.fixture(scope="class")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An input of three blocks, and its run of two LLMs; the tests of a class go on from one another."""
    folder = tmp_path_factory.mktemp("changes")
    source, output = prompts(folder / "in.jsonl", 24), folder / "out.jsonl"
    summary = run_blend(two_llms(source, output))
    assert (summary.resumed, len(kept(output))) == (False, 9)
    return source, output


class TestChanges:
    """What a second session does when something is other than in the first."""

    def test_nothing_to_do_starts_no_ray(self, finished: tuple[Path, Path], tmp_path: Path) -> None:
        source, output = finished
        written = output.stat()
        command = Command(tmp_path, two_llms(source, output), address="127.0.0.1:1")  # where nothing is
        code, told = command.end()
        assert (code, told) == (0, f"24 rows: {output} (complete already; --overwrite does it again)")
        assert (output.stat().st_ino, output.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)

    def test_another_config_is_refused(self, finished: tuple[Path, Path]) -> None:
        source, output = finished
        before = output.stat().st_ino
        with pytest.raises(BlendError, match=r"sampling\.max_tokens of five: 5 -> 4\); --update.*--overwrite"):
            run_blend(two_llms(source, output, words=4))
        assert output.stat().st_ino == before

    def test_an_input_that_was_only_touched_is_the_same(self, finished: tuple[Path, Path]) -> None:
        source, output = finished
        before = kept(output)
        os.utime(source)
        summary = run_blend(two_llms(source, output))
        assert (summary.resumed, kept(output)) == (False, before)

    def test_one_more_model_is_all_that_is_generated(self, finished: tuple[Path, Path]) -> None:
        source, output = finished
        before = kept(output)
        assert {row["comparisons"] for row in rows_of(output)} == {2}
        run_blend(two_llms(source, output, echo("seven", 7)), update=True)
        after = kept(output)
        assert before.items() <= after.items()
        new = Counter(name.split("-")[0] for name in after.keys() - before.keys())
        assert new == {"generate": 3, "rank": 3}
        assert len(blocks(after, "generate-seven")) == 3
        rows = rows_of(output)
        assert {tuple(c["model"] for c in row["candidates"]) for row in rows} == {("three", "five", "seven")}
        assert {row["comparisons"] for row in rows} == {4}  # of six pairs those with the new one

    def test_an_input_that_has_grown(self, finished: tuple[Path, Path]) -> None:
        source, output = finished
        before = kept(output)
        three = two_llms(source, output, echo("seven", 7))
        prompts(source, 5, first=24)
        with pytest.raises(
            BlendError, match=r"(begun|made) with other rows \(24 were read, now .* has 29, not the same\)"
        ):
            run_blend(three)
        run_blend(three, update=True)
        assert before.items() <= kept(output).items()
        assert len(kept(output)) == len(before) + 4  # one block, three LLMs and the ranker
        assert [row["id"] for row in rows_of(output)] == [f"r{i}" for i in range(29)]

    def test_overwrite_begins_anew(self, finished: tuple[Path, Path]) -> None:
        source, output = finished
        before = kept(output)
        run_blend(two_llms(source, output), overwrite=True)
        assert len(kept(output)) == 4 * 3
        assert not before.items() & kept(output).items()
        assert manifest_of(output).sessions == 1


@pytest.mark.usefixtures("ray_session")
def test_bad_rows_beyond_the_rate_are_written_first(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 1)
    source.write_text(source.read_text() + "{broken\n" * 3)
    output = tmp_path / "out.jsonl"
    settings = config(source, output, max_error_rate=0.7)
    for _ in range(2):  # a complete run fails again
        with pytest.raises(BlendError, match=r"^4 rows, 3 of them with an error.*max_error_rate 0\.7"):
            run_blend(settings)
        assert [row["error"] is None for row in rows_of(output)] == [True, False, False, False]
    assert run_blend(settings.model_copy(update={"max_error_rate": 0.75})).resumed


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("written", ["parquet", "jsonl"])
def test_a_folder_is_read_by_what_reads_such_folders(written: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    source = prompts(tmp_path / "in.jsonl", 20)
    run_blend(config(source, output, format=written))
    expected = [f"r{i}" for i in range(20)]
    arrow = pyarrow.dataset.dataset(output, format="parquet" if written == "parquet" else "json").to_table()
    assert arrow.column("id").to_pylist() == expected
    read = ray.data.read_parquet if written == "parquet" else ray.data.read_json
    assert sorted(row["id"] for row in read(str(output)).take_all()) == sorted(expected)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_on_a_bucket_that_has_faults(s3_bucket: str, s3_faults: FaultyProxy, tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 500)
    output = f"{s3_bucket}/out"
    store = CheckpointStore(Output(output).work_folder)
    s3_faults.plan(refuse(500, "InternalError"), "GET", r"/results/", times=1)
    s3_faults.plan(reset, "PUT", r"/rows/", times=1)
    s3_faults.plan(lose_answer, "PUT", r"/results/", times=1)
    ours = ray.get_runtime_context().gcs_address  # a Ray of its own dies with the driver on local files above
    command = Command(tmp_path, config(source, output, rows_per_block=64), address=ours)
    # a look is several requests, which this process serves, too
    command.kill_when(lambda: any(store.done(stage) for stage in store.stages()), poll_s=0.1)
    assert store.manifest() is None
    assert command.end() == (0, f"500 rows: {output}")
    rows = ray.data.read_parquet(output).take_all()
    assert Counter(row["id"] for row in rows) == {f"r{i}": 1 for i in range(500)}
    assert all(row["fused"] == f"number {row['id'][1:]} of" for row in rows)
