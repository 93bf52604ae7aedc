"""What a run makes of the sessions before it: goes on, reports that it is complete, or refuses in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.plan import Plan
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.pipelines.bulk import checkpoints
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT, RECORD, CheckpointStore
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.resume import earlier_state
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.storage import get

MARK = "0123456789abcdef"
RUN = Run(
    command="test",
    input="in.jsonl",
    output=Output("out.jsonl"),
    cluster=RayCluster(),
    planned=lambda have: Plan((), have),
    results=(),
    identity={"ranker": {"model": "a"}},
    settings={},
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """The work folder of a run that was killed."""
    made = CheckpointStore(str(tmp_path))
    made.save_run({"identity": RUN.identity, "fingerprint": MARK, "started": "2026-01-02T03:04:05", "sessions": 2})
    return made


def state(
    store: CheckpointStore, run: Run = RUN, mark: str = MARK, *, taken: bool = False, **existing: bool
) -> Any:
    options = {"overwrite": False, "update": False} | existing
    return earlier_state(run, store, mark, store.damaged(), [run.output] if taken else [], **options)


def with_ranker(model: str) -> Run:
    return replace(RUN, identity={"ranker": {"model": model}})


def test_a_first_session_finds_nothing(tmp_path: Path) -> None:
    assert not state(CheckpointStore(str(tmp_path))).there


def test_a_file_of_someone_else_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(BlendError, match=r"^out\.jsonl: exists already; --overwrite replaces it$"):
        state(CheckpointStore(str(tmp_path)), taken=True)
    assert not state(CheckpointStore(str(tmp_path)), taken=True, overwrite=True).there


def test_a_killed_run_goes_on(store: CheckpointStore) -> None:
    found = state(store)
    assert (found.there, found.finished, found.sessions, found.fingerprint) == (True, False, 2, MARK)
    assert state(store, overwrite=True).there  # a killed --overwrite is the same command again


def test_another_config_is_refused_with_what_changed(store: CheckpointStore) -> None:
    with pytest.raises(
        BlendError, match=r"was begun with another config \(ranker\.model was 'a', is 'b'\); --update"
    ):
        state(store, with_ranker("b"))
    assert state(store, with_ranker("b"), update=True).there
    assert not state(store, with_ranker("b"), overwrite=True).there


def test_a_finished_run_is_complete_only_for_its_own_config(store: CheckpointStore) -> None:
    store.save_manifest("{}\n}")
    assert state(store, taken=True).finished
    with pytest.raises(BlendError, match=r"exists already, made with another config"):
        state(store, with_ranker("b"), taken=True)
    updated = state(store, with_ranker("b"), taken=True, update=True)
    assert (updated.there, updated.finished) == (True, False)
    assert not state(store, taken=True, overwrite=True).there


def test_where_the_output_is_gone_another_config_may_use_what_holds(store: CheckpointStore) -> None:
    store.save_manifest("{}\n}")
    found = state(store, with_ranker("b"))
    assert (found.there, found.gone, found.finished) == (True, True, False)


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_a_work_folder_of_another_release_is_refused_and_never_read(
    store: CheckpointStore, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", other)
    store.save_run({"identity": {"whatever": other}})
    monkeypatch.undo()
    with pytest.raises(
        BlendError, match=rf"of another release \(format {other}, expected {FORMAT}\); --update or --overwrite"
    ):
        state(store)
    updated = state(store, update=True)
    assert (updated.there, updated.other_format, updated.record) == (False, True, {})
    assert not state(store, overwrite=True).there


def test_a_work_folder_without_checksums_is_of_format_1(store: CheckpointStore) -> None:
    record = json.loads(get(f"{store.root}/{RECORD}") or b"")
    del record["format"], record["blake2b"]
    (Path(store.root) / RECORD).write_text(json.dumps(record))
    assert store.format() == 1
    with pytest.raises(BlendError, match="format 1, expected"):
        state(store)


def test_a_damaged_record_has_no_format(store: CheckpointStore) -> None:
    path = Path(store.root) / RECORD
    path.write_bytes(path.read_bytes().replace(b'"format": %d' % FORMAT, b'"format": 9'))
    assert store.format() is None
    assert state(store).there  # results are found by their keys


def test_outputs_are_rows_and_pairs() -> None:
    assert RUN.outputs == [Output("out.jsonl")]
    pairs = replace(RUN, preferences=Preferences.model_validate({"output": "pairs.jsonl"}))
    assert pairs.outputs == [Output("out.jsonl"), Output("pairs.jsonl")]
