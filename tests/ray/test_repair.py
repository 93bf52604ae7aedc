"""What is damaged in a work folder or an output is noticed, named in one line, and made again."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.schema import BlendConfig, EchoModel, PairRanker
from llm_blender_ray.pipelines.bulk import output
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT, CheckpointStore, Index, Result
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.manifest import Manifest, OutputRecord
from llm_blender_ray.pipelines.bulk.repair import repair_store
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.storage import get, put
from llm_blender_ray.pipelines.rows.writers import FileRecord

RANKER = {"kind": "echo", "num_cpus": 0.1}
ROWS = 24


def emptied(data: bytes) -> bytes:
    return b""


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Finished:
    """A complete run of three blocks, two LLMs and a ranker, that writes rows and pairs."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output, self.pairs = folder / "in.jsonl", folder / "out.jsonl", folder / "pairs.jsonl"
        self.write_input(ROWS)
        self.run()
        self.work = Path(Output(str(self.output)).work_folder)
        self.expected, self.expected_pairs = self.output.read_bytes(), self.pairs.read_bytes()
        self.kept = self.files()

    def write_input(self, rows: int) -> None:
        lines = [{"id": f"r{i}", "prompt": f"number {i} of many questions in one file"} for i in range(rows)]
        self.source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, words: int = 5, *, update: bool = False) -> Summary:
        models = [
            {"name": name, "engine": "echo", "model": "none", "sampling": {"max_tokens": number}}
            for name, number in (("three", 3), ("five", words))
        ]
        settings: dict[str, Any] = {
            "models": models,
            "ranker": RANKER | {"strategy": {"kind": "full"}},
            "rows_per_block": 8,
            "ray": {"num_cpus": 2},
            "input": str(self.source),
            "output": str(self.output),
            "preferences": {"output": str(self.pairs), "margin": 0},
        }
        return run_blend(BlendConfig.model_validate(settings), update=update)

    def files(self) -> dict[str, bytes]:
        return {str(file.relative_to(self.work)): file.read_bytes() for file in self.work.rglob("*.*")}

    def restore(self) -> None:
        shutil.rmtree(self.work)
        for name, data in self.kept.items():
            put(str(self.work / name), data)
        self.output.write_bytes(self.expected)
        self.pairs.write_bytes(self.expected_pairs)

    def one_of(self, part: str) -> Path:
        return min(self.work.glob(f"{part}*/*.parquet")) if "/" in part else self.work / part

    def whole(self) -> bool:
        written = (self.output.read_bytes(), self.pairs.read_bytes())
        return written == (self.expected, self.expected_pairs) and self.run().resumed


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Finished) -> Finished:
    finished.restore()
    return finished


PARTS = ["run.json", "index.parquet", "manifest.json", "rows/", "results/generate-five", "results/rank"]
OTHERS = [part for part in PARTS if part != "rows/"]  # with a damaged index all rows are read again


@pytest.mark.parametrize(
    ("damage", "parts"),
    [(flipped, PARTS[:1]), (halved, PARTS[1:2]), (flipped, PARTS[2:3]), (flipped, PARTS[3:]), (emptied, OTHERS)],
)
def test_what_is_damaged_is_named_and_made_again(
    run: Finished, damage: Callable[[bytes], bytes], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    hit = [run.one_of(part) for part in parts]
    for file in hit:
        file.write_bytes(damage(file.read_bytes()))
    run.output.unlink()  # or only the output is checked, and is complete
    run.run()
    told = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    for file in hit:
        (line,) = [one for one in told if str(file.relative_to(run.work)) in one] or [""]
        assert line.startswith(f"blend: {run.work}: "), (file, told)
    assert run.whole()
    assert {name for name in run.files() if "results" in name} == {name for name in run.kept if "results" in name}


@pytest.mark.parametrize(("file", "damage"), [("output", emptied), ("pairs", flipped)])
def test_a_damaged_output_is_no_complete_one(
    run: Finished, file: str, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    path: Path = getattr(run, file)
    path.write_bytes(damage(path.read_bytes()))
    before = {name: data for name, data in run.files().items() if "results" in name}
    assert not run.run().resumed
    assert f"blend: {path}: {path.name}: gone, or not as the run wrote it; written again" in capfd.readouterr().err
    assert before.items() <= run.files().items()
    assert run.whole()


def test_an_output_whose_results_are_gone_is_made_anew(run: Finished, capfd: pytest.CaptureFixture[str]) -> None:
    run.output.write_bytes(b"")
    shutil.rmtree(run.work / "results")
    run.one_of("rows/").unlink()
    run.run()
    assert f"written again anew, for what was kept ({run.work}) is gone" in capfd.readouterr().err
    assert run.whole()


def test_damage_after_the_check_is_mended_too(run: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is hit when all waves are through: the output isn't written without it."""
    whole = output.write_output
    hit = run.one_of("results/generate-five")

    def assemble(*arguments: Any, **options: Any) -> Any:
        if not marker.exists():
            marker.touch()
            hit.write_bytes(flipped(hit.read_bytes()))
        return whole(*arguments, **options)

    marker = run.output.with_name("marker")
    monkeypatch.setattr("llm_blender_ray.pipelines.bulk.waves.write_output", assemble)
    run.output.unlink()
    run.run()
    assert marker.exists()
    assert run.whole()


def test_damaged_rows_of_an_input_that_has_changed_are_told(run: Finished) -> None:
    run.one_of("rows/").write_bytes(b"")
    run.one_of("index.parquet").write_bytes(b"")
    source = run.source.read_bytes()
    run.write_input(ROWS + 1)
    try:
        with pytest.raises(
            BlendError, match=r"index\.parquet: damaged, and .*in\.jsonl or the limit has changed.*--update"
        ):
            run.run()
    finally:
        run.source.write_bytes(source)


def test_another_config_does_not_pass_for_the_one_that_is_damaged(run: Finished) -> None:
    run.one_of("run.json").write_bytes(b"")
    with pytest.raises(BlendError, match=r"run\.json: damaged, and .*another config; --update"):
        run.run(words=4)
    assert run.output.read_bytes() == run.expected


def test_what_an_earlier_version_kept_is_refused_and_made_again_with_update(run: Finished) -> None:
    record = json.loads(run.one_of("run.json").read_bytes())
    del record["format"], record["blake2b"]
    run.one_of("run.json").write_text(json.dumps(record, indent=2))
    with pytest.raises(BlendError, match=r"work folder of another release \(format 1, expected \d\); --update"):
        run.run()
    assert run.output.read_bytes() == run.expected
    run.run(update=True)
    assert run.whole()


def test_what_a_full_disk_and_a_kill_left_is_removed(run: Finished) -> None:
    left = [
        run.work / "results" / ".x.parquet.01234567.tmp",
        run.output.with_name(f".{run.output.name}.01234567.tmp"),
    ]
    others = run.output.with_name(".other.jsonl.01234567.tmp")
    for file in (*left, others):
        file.write_bytes(b"half")
    run.output.unlink()
    run.run()
    assert not any(file.exists() for file in left)
    assert others.exists()
    others.unlink()


def test_what_was_made_of_something_lost_goes_too(tmp_path: Path) -> None:
    """A sampled answer that is drawn again is another: a ranking of the old one would be wrong."""
    capacity = Capacity.machine(4)
    model = EchoModel(engine="echo", name="one", model="m")
    ranker = PairRanker(model="r")
    steps = (
        StageSpec(place("one", model, capacity), "generate-one"),
        StageSpec(place("two", model, capacity), "generate-two"),
        StageSpec(place("ranker", ranker, capacity), "rank"),
    )
    store = CheckpointStore(str(tmp_path))
    for step in steps:
        for block in ("a", "b", "c"):
            store.save_result(step.key, block, Result(pa.table({"n": [1]}), {}))
    damaged = tmp_path / "results" / "generate-two" / "a.parquet"
    damaged.write_bytes(flipped(damaged.read_bytes()))
    store.forget_result("generate-one", "b")
    repair_store(
        store, Index((), "mark", pa.null()), StageGraph(steps, ("one", "two")), lambda lost: pytest.fail(str(lost))
    )
    assert [store.done(step.key) for step in steps] == [{"a", "c"}, {"b", "c"}, {"c"}]


def test_a_file_is_damaged_by_size_hash_or_absence(s3_bucket: str) -> None:
    data = {"same": b"rows", "other": b"rows", "longer": b"rows"}
    files = tuple(
        FileRecord(path=name, rows=1, bytes=len(one), sha256=hashlib.sha256(one).hexdigest())
        for name, one in data.items()
    )
    gone = FileRecord(path="gone", rows=1, bytes=1, sha256="")
    for name, now in {"same": b"rows", "other": b"rowz", "longer": b"rows\n"}.items():
        put(f"{s3_bucket}/out/{name}", now)
    record = OutputRecord(uri="", rows=4, errors=0, files=(*files, gone))
    assert Output(f"{s3_bucket}/out").damaged(record.files) == ["other", "longer", "gone"]


def test_objects_of_a_bucket_are_checked_too(s3_bucket: str) -> None:
    store = CheckpointStore(f"{s3_bucket}/.blend")
    store.save_run({"identity": {}})
    assert store.run() == {"format": FORMAT, "identity": {}}
    data = get(f"{store.root}/run.json")
    assert data is not None
    put(f"{store.root}/run.json", flipped(data))
    assert (store.run(), store.damaged()) == (None, ["run.json"])


def test_a_manifest_says_what_was_written_of_pairs(run: Finished) -> None:
    text = CheckpointStore(str(run.work)).manifest()
    assert text is not None
    pairs = Manifest.parse(text).preferences
    assert pairs is not None
    assert pairs.rows == len(run.expected_pairs.splitlines())
