"""A bulk run from its start, or wherever it was killed, to its end: the same call goes on until all is written."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import RESULT_COLUMNS
from llm_blender_ray.cluster.plan import Capacity, Placement, Plan
from llm_blender_ray.cluster.replicas import look_for
from llm_blender_ray.cluster.session import LOCAL_ADDRESS, address_of, capacity, check_variables
from llm_blender_ray.configs.identity import differences, settings_digest
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT, INDEX, RECORD, Index, Store, folder_of
from llm_blender_ray.pipelines.bulk.checksums import DamagedError
from llm_blender_ray.pipelines.bulk.executor import actors, reason, run_wave, running, told_by
from llm_blender_ray.pipelines.bulk.input import READ, fingerprint, read_input
from llm_blender_ray.pipelines.bulk.keys import result_keys, run_identity, scorer_key
from llm_blender_ray.pipelines.bulk.manifest import InputRecord, Manifest, OutputRecord, versions
from llm_blender_ray.pipelines.bulk.output import assemble
from llm_blender_ray.pipelines.bulk.own_outputs import own_outputs
from llm_blender_ray.pipelines.bulk.planning import announce
from llm_blender_ray.pipelines.bulk.progress import ShownStage, shown
from llm_blender_ray.pipelines.bulk.repair import damaged_files, mend, named, sweep_output, tell, tell_damaged
from llm_blender_ray.pipelines.bulk.retry import attempt_of, can_retry, to_do
from llm_blender_ray.pipelines.bulk.stages import Step, Work
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.bulk.tracker import Snapshot, a_board
from llm_blender_ray.pipelines.rows.columns import Layout
from llm_blender_ray.pipelines.rows.storage import sweep
from llm_blender_ray.pipelines.rows.uris import filesystem
from llm_blender_ray.pipelines.rows.writers import (
    COMPARE_COLUMNS,
    BlendShape,
    FileRecord,
    PreferenceShape,
    Sink,
    check_output,
)

TableFunction = Callable[[pa.Table], pa.Table]
_TRIES = 3  # to make what is damaged again, in one session: storage that damages more isn't to be trusted


@dataclass(frozen=True)
class Run:
    """What a command does to its rows.

    Attributes:
        planned: The pools on a given cluster.
        parts: Settings of the parts by the names of their placements, in the order of their stages.
        llms: Names in the order of their candidates.
        results: Columns that the run adds.
        keep: Result columns of the input that are written where rows have them.
        settings: What the manifest shows.
        identity: Those settings that decide what is written.
    """

    command: str
    input: str
    output: str
    cluster: RayCluster
    planned: Callable[[Capacity], Plan]
    results: Sequence[str]
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: Mapping[str, PartSettings] = field(default_factory=dict)
    llms: tuple[str, ...] = ()
    keep: Sequence[str] = ()
    limit: int | None = None
    rows_per_block: int = 1024
    format: str = "parquet"
    preferences: Preferences | None = None
    prepare: TableFunction | None = None
    finish: TableFunction | None = None


def execute(run: Run, *, overwrite: bool = False, update: bool = False, retry_failed: bool = False) -> Summary:
    """Do the run, or what is left of it.

    Nothing at the output is touched before the plan is known to fit.

    Args:
        run: What to do.
        overwrite: Whatever is at the output is replaced, and nothing that was kept is used; but this very run goes
            on when it was killed.
        update: The config or the input may have changed since the output was begun; what was kept counts where it
            still holds.
        retry_failed: What failed is asked again, the rest keeps its results (`pipelines.bulk.retry`).

    Returns:
        What was written.

    Raises:
        BlendError: One line.
    """
    run = replace(run, identity=run_identity(run.identity, run.parts))
    taken = [uri for uri in outputs_of(run) if check_output(uri, overwrite)]
    store = Store(folder_of(absolute(run.output)))
    damaged = store.damaged()
    own = own_outputs(run.input, outputs_of(run), store.run)
    mark = fingerprint(run.input, run.limit, own)
    state = _state(run, store, mark, damaged, taken, overwrite=overwrite, update=update)
    if state.finished and state.fingerprint == mark and (done := _finished(run, store)):
        if not retry_failed:
            return done
        if not can_retry(done.manifest):
            return replace(done, nothing_failed=True)
    check_variables(run.cluster, *run.parts.values())
    if state.there:
        tell_damaged(store, damaged)
    for output in outputs_of(run):
        sweep_output(absolute(output))
    with running(run.cluster):
        plan = run.planned(capacity(run.cluster))
        announce(plan)
        with a_board() as board, told_by(board):
            look_for([placement for wave in plan.waves[1:] for placement in wave])
            if state.there:
                sweep(store.root)
            elif overwrite or state.other_format:
                store.clear()
            if address_of(run.cluster) == LOCAL_ADDRESS:
                store.make_private()
            started = state.started or datetime.now(UTC)
            sessions = state.sessions + 1
            record = {
                "identity": {**run.identity},
                "fingerprint": mark,
                "started": started.isoformat(),
                "sessions": sessions,
                **_attempt(state, store, retry=retry_failed),
            }
            index = _input(run, store, mark, board, own, update=update or state.gone or not state.there)
            work, waves = _work(run, plan, store, record["attempt"], state.record)
            record |= {name: {step.name: getattr(step, of) for step in work.steps} for name, of in _STEPS.items()}
            store.save_run(record)
            store.save_manifest(None)
            check = state.there
            for tries_left in reversed(range(_TRIES)):
                if check:
                    read_again = functools.partial(_read_again, run, store, mark, board, own)
                    index = mend(store, index, work, read_again)
                try:
                    _through(run, store, index, work, waves, board)
                    return _written(run, store, index, work, waves, board, record)
                except Exception as error:
                    if not tries_left or not isinstance(reason(error, board), DamagedError):
                        raise
                    ray.get(board.reset.remote())
                check = True  # what is found is made again
    raise AssertionError("unreachable")


def _through(run: Run, store: Store, index: Index, work: Work, waves: list[list[Step]], board: Any) -> None:
    """Bring all blocks that lack something through all waves."""
    for number, wave in enumerate(waves, 1):
        todo = to_do(store, index, work, wave)
        stages = [ShownStage(step.name, actors(step, len(todo[step.name]))) for step in wave]
        title = f"wave {number} of {len(waves)}" if len(waves) > 1 else run.command
        with shown(functools.partial(_look, board), stages, total=index.rows, title=title):
            run_wave(store, index, work, wave, todo, board)


# In `run.json`: of each step the folder of its results, and of its results before the config was changed.
_STEPS = {"steps": "key", "previous": "previous"}


def _attempt(state: "_State", store: Store, *, retry: bool) -> dict[str, Any]:
    """Which attempt this session works on, for `run.json`."""
    text = store.manifest() if state.there else None
    number = attempt_of(state.record, Manifest.parse(text) if text else None, retry=retry)
    again = retry or (text is None and state.record.get("retrying", False))
    return {"attempt": number, "retrying": again}


@dataclass(frozen=True)
class _State:
    """What is known of earlier sessions."""

    there: bool = False
    other_format: bool = False  # nothing in the work folder is used
    gone: bool = False  # the output of a finished run, but not what it kept
    finished: bool = False
    fingerprint: str = ""
    started: datetime | None = None
    sessions: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)


def _state(
    run: Run,
    store: Store,
    mark: str,
    damaged: Sequence[str],
    taken: Sequence[str],
    *,
    overwrite: bool,
    update: bool,
) -> _State:
    """What earlier sessions left, some of it damaged, at outputs of which some are `taken`.

    Raises:
        BlendError: This run mustn't go on from it.
    """
    found = store.format()
    if found not in (None, FORMAT):
        if update or overwrite:
            return _State(other_format=True)
        raise BlendError(
            f"{store.root}: work folder of another release (format {found}, expected {FORMAT}); --update or "
            "--overwrite computes everything again"
        )
    record = store.run()
    if RECORD in damaged and not overwrite:
        return _unrecorded(run, store, taken, update=update)
    if record is None:
        if taken and not overwrite:
            raise BlendError(f"{taken[0]}: exists already; --overwrite replaces it")
        return _State()
    changed = differences(record["identity"], run.identity)
    finished = store.manifest() is not None
    if overwrite and (changed or record["fingerprint"] != mark or finished):
        return _State()
    if INDEX in damaged and record["fingerprint"] != mark and not update:
        raise BlendError(
            f"{store.root}/{INDEX}: damaged, and {run.input} has changed since it was read; --update keeps what "
            "still holds, --overwrite begins anew"
        )
    gone = finished and run.output not in taken  # somebody removed it: nothing stands in the way of another
    if changed and not update and not gone:
        more = f", and {len(changed) - 2} more" if len(changed) > 2 else ""
        was = "exists already, made" if finished else "was begun"
        raise BlendError(
            f"{run.output}: {was} with another config ({'; '.join(changed[:2])}{more}); --update keeps what still "
            "holds of it, --overwrite begins anew"
        )
    return _State(
        there=True,
        gone=gone,
        finished=finished and not changed,
        fingerprint=record["fingerprint"],
        started=datetime.fromisoformat(record["started"]),
        sessions=record["sessions"],
        record=record,
    )


def _unrecorded(run: Run, store: Store, taken: Sequence[str], *, update: bool) -> _State:
    """The state of a run whose record is damaged: what was kept says by its names what it is good for."""
    text = store.manifest()
    if taken and not update and text is not None and Manifest.parse(text).config != _as_json(run.settings):
        raise BlendError(
            f"{store.root}/{RECORD}: damaged, and {run.output} was made with another config; --update keeps what "
            "still holds of it, --overwrite begins anew"
        )
    attempt = Manifest.parse(text).attempt if text is not None else 0
    return _State(there=True, gone=True, record={"attempt": attempt})


def _as_json(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def outputs_of(run: Run) -> list[str]:
    """Where the run writes."""
    return [run.output, *([run.preferences.output] if run.preferences else [])]


def _finished(run: Run, store: Store) -> Summary | None:
    """The summary of a run that is complete; None when it isn't, or some of its files are gone or damaged."""
    text = store.manifest()
    if text is None:
        return None
    manifest = Manifest.parse(text)
    if (manifest.preferences is None) != (run.preferences is None):
        return None
    pairs = None
    for record, output in zip((manifest.output, manifest.preferences), outputs_of(run), strict=False):
        assert record is not None
        if bad := damaged_files(record, absolute(output)):
            kept = "from what was kept" if store.stages() else f"anew, for what was kept ({store.root}) is gone"
            tell(f"{output}: {named(bad)}: gone, or not as the run wrote it; written again {kept}")
            return None
        if record is manifest.preferences:
            pairs = (output, record.rows)
    return Summary(manifest, run.output, resumed=True, preferences=pairs)


def _input(run: Run, store: Store, mark: str, board: Any, own: Sequence[str], *, update: bool) -> Index:
    """The input's blocks: those that are there, or as they are read now. Raises BlendError when they changed."""
    index = store.index()
    if index is not None and index.fingerprint == mark:
        return index
    new = _read(run, store, board, own)
    if index is not None and new.digest != index.digest and not update:
        store.keep_rows(index.fingerprint)
        was = "was begun" if store.manifest() is None else "exists already, made"
        raise BlendError(
            f"{run.output}: {was} with other rows ({index.rows} were read, now {run.input} has {new.rows}, "
            "not the same); --update keeps what still holds, --overwrite begins anew"
        )
    store.save_index(new)
    store.keep_rows(new.fingerprint)
    return new


def _read(run: Run, store: Store, board: Any, own: Sequence[str]) -> Index:
    with shown(functools.partial(_look, board), [ShownStage(READ, 1)], total=0, title="reading"):
        return read_input(store, run.input, run.limit, run.rows_per_block, board, own)


def _read_again(run: Run, store: Store, mark: str, board: Any, own: Sequence[str], lost: Sequence[str]) -> Index:
    """The input's blocks once more, after some were lost. Raises BlendError when the input has changed."""
    if fingerprint(run.input, run.limit, own) != mark:
        raise BlendError(
            f"{store.root}/{lost[0]}: gone or damaged, and {run.input} has changed since it was read; --update "
            "keeps what still holds, --overwrite begins anew"
        )
    index = _read(run, store, board, own)
    store.save_index(index)
    return index


def _work(
    run: Run, plan: Plan, store: Store, attempt: int, record: Mapping[str, Any]
) -> tuple[Work, list[list[Step]]]:
    """What is made of every block, and the steps of each wave."""
    weights, versions_before = run.identity["weights"], record.get("identity", {}).get("stage_versions", {})
    keys = result_keys(run.parts, weights, run.llms, run.prepare.__name__ if run.prepare else "")
    there = store.stages()

    def step(placement: Placement) -> Step:
        kind = placement.settings.stage
        key = f"{kind}-{_slug(placement.name)}-{keys[placement.name]}"
        rankings = sorted(one for one in there if one.startswith("rank-") and one != key)
        was = record.get("steps", {}).get(placement.name)
        previous = was if was != key else record.get("previous", {}).get(placement.name)
        if versions_before.get(kind) != run.identity["stage_versions"][kind]:
            previous = None  # its columns may have changed
        if kind != "rank":
            return Step(placement, key, previous=previous)
        scorer = scorer_key(placement.settings, weights.get(placement.name))
        return Step(placement, key, tuple(rankings), previous, scorer)

    waves = [[step(placement) for placement in wave] for wave in plan.waves]
    steps = tuple(one for wave in waves for one in wave)
    return Work(steps, run.llms, run.prepare, run.finish, attempt), waves


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:40]


def _written(
    run: Run,
    store: Store,
    index: Index,
    work: Work,
    waves: list[list[Step]],
    board: Any,
    record: Mapping[str, Any],
) -> Summary:
    """The output of all that was kept, and the manifest."""
    types = {name: (RESULT_COLUMNS | COMPARE_COLUMNS)[name] for name in run.results}
    layout = Layout.of(index.seen, types, run.keep)
    mark = settings_digest(
        [index.digest, [step.key for step in work.steps], layout.schema().to_string(), run.format]
    )
    sinks = [Sink(absolute(run.output), BlendShape(layout), mark, run.format)]
    if run.preferences:
        shape = PreferenceShape(run.preferences, layout)
        sinks.append(
            Sink(
                absolute(run.preferences.output),
                shape,
                settings_digest([mark, run.preferences.model_dump(mode="json")]),
                run.format,
            )
        )
    for sink in sinks:
        sink.clear()
    account, files = assemble(store, index, work, sinks, board)
    numbers = {step.name: number for number, wave in enumerate(waves, 1) for step in wave}
    manifest = Manifest(
        command=run.command,
        started=datetime.fromisoformat(record["started"]),
        finished=datetime.now(UTC),
        sessions=record["sessions"],
        attempt=record["attempt"],
        config=dict(run.settings),
        versions=versions(),
        input=InputRecord(
            uri=run.input,
            rows=index.rows,
            bad=account.bad.total(),
            digest=index.digest,
            errors=dict(account.bad.most_common()),
        ),
        output=OutputRecord(uri=run.output, rows=account.rows, errors=account.errors, files=tuple(files[0])),
        preferences=_pairs_record(run.preferences, files[1]) if run.preferences else None,
        stages=account.stages(work, numbers),
        errors=dict(account.kinds.most_common()),
    )
    store.save_manifest(manifest.json_text())
    pairs = (manifest.preferences.uri, manifest.preferences.rows) if manifest.preferences else None
    return Summary(manifest, run.output, preferences=pairs)


def _pairs_record(settings: Preferences, files: Sequence[FileRecord]) -> OutputRecord:
    return OutputRecord(uri=settings.output, rows=sum(file.rows for file in files), errors=0, files=tuple(files))


def _look(board: Any) -> Snapshot:
    return ray.get(board.snapshot.remote())


def absolute(uri: str) -> str:
    """The URI as it means the same in every process: a local path from the root."""
    return uri if "://" in uri else filesystem(uri)[1]
