"""What a run makes of the sessions before it: goes on, reports that it is complete, or refuses in one line."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.cluster.plan import Plan
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.schema import EchoModel, EchoRanker, GenFuser, RayCluster
from llm_blender_ray.pipelines.bulk import checkpoints
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT, RECORD, CheckpointStore
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.manifest import InputRecord, Manifest, OutputRecord
from llm_blender_ray.pipelines.bulk.resume import earlier_state, kept_results
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
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
OUTPUT = OutputRecord(uri="out.jsonl", rows=0, errors=0, files=())
MANIFEST = Manifest(
    command="test",
    started=datetime(2026, 1, 2),
    finished=datetime(2026, 1, 2),
    sessions=1,
    config={},
    versions={},
    input=InputRecord(uri="in.jsonl", rows=0, bad=0, digest=""),
    output=OUTPUT,
    stages=(),
    errors={},
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
    with pytest.raises(BlendError, match=r"was begun with another config \(ranker\.model: a -> b\); --update"):
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


def with_limit(limit: int | None) -> Run:
    return replace(RUN, identity={**RUN.identity, "limit": limit}, limit=limit)


@pytest.fixture
def limited(store: CheckpointStore) -> CheckpointStore:
    """The work folder of a complete run of five rows."""
    store.save_run(
        {
            "identity": {**RUN.identity, "limit": 5},
            "fingerprint": MARK,
            "started": "2026-01-02T03:04:05",
            "sessions": 2,
        }
    )
    store.save_manifest(MANIFEST.model_copy(update={"output": OUTPUT.model_copy(update={"rows": 5})}).json_text())
    return store


@pytest.mark.parametrize(("limit", "told"), [(None, "limit: 5 -> not set"), (8, "limit: 5 -> 8")])
def test_more_rows_are_no_other_config(limited: CheckpointStore, limit: int | None, told: str) -> None:
    found = state(limited, with_limit(limit), "other", taken=True)
    assert (found.there, found.finished, found.limit, found.changes) == (True, False, 5, (told,))


def test_a_limit_takes_no_rows_from_a_complete_output(limited: CheckpointStore) -> None:
    expected = (
        r"^out\.jsonl: exists already, complete with 5 rows; limit 3 would leave fewer; "
        r"--update writes only the first 3 and keeps the results of all, --overwrite starts over$"
    )
    with pytest.raises(BlendError, match=expected):
        state(limited, with_limit(3), "other", taken=True)
    assert state(limited, with_limit(3), "other", taken=True, update=True).changes == ("limit: 5 -> 3",)
    assert not state(limited, with_limit(3), "other", taken=True, overwrite=True).there
    limited.save_manifest(None)  # what is not complete loses nothing
    assert state(limited, with_limit(3), "other").there


def test_of_many_changes_the_first_are_told(store: CheckpointStore) -> None:
    many = replace(RUN, identity={"ranker": {name: name for name in ("model", "b", "c", "d", "e")}})
    expected = r"\(ranker\.model: a -> model; ranker\.b: not set -> b; ranker\.c: not set -> c; and 2 more\)"
    with pytest.raises(BlendError, match=expected):
        state(store, many)
    assert len(state(store, many, update=True).changes) == 5


def spec(settings: PartSettings, key: str, **more: Any) -> StageSpec:
    name = settings.name if isinstance(settings, EchoModel) else settings.stage
    return StageSpec(place(name, settings, Capacity.machine(2)), key, **more)


@pytest.mark.parametrize(
    ("stored", "scorer", "told"),
    [
        ({"a", "b", "r", "f"}, "s", "answers of 2 models kept, ranking kept, fusion kept"),
        ({"a", "b", "r"}, "s", "answers of 2 models kept, ranking kept, fusion made anew"),
        (
            {"a"},
            "s",
            "answers of 1 model kept, answers of b generated, ranking made anew from kept comparisons, "
            "fusion made anew",
        ),
        ({"a", "b"}, "t", "answers of 2 models kept, ranking made anew, fusion made anew"),
        (set(), "t", "answers of a, b generated, ranking made anew, fusion made anew"),
    ],
)
def test_what_is_reused_is_one_line(stored: set[str], scorer: str, told: str) -> None:
    llms = [spec(EchoModel(engine="echo", name=name, model="m"), name) for name in "ab"]
    others = [spec(EchoRanker(kind="echo"), "r", scorer=scorer), spec(GenFuser(model="org/f"), "f")]
    assert kept_results(StageGraph((*llms, *others), ("a", "b")), stored, {"scorers": {"rank": "s"}}) == told


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
