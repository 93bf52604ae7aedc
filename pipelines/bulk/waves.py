"""Session of a bulk run on Ray: the input, the waves of stages, the output, and the repair of what is damaged."""

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import ray

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.prices import token_price
from llm_blender_ray.actors.records import ON_DEMAND_TYPES, RESULT_COLUMNS
from llm_blender_ray.cluster.address import LOCAL_ADDRESS, address_of
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.cluster.placement import Placement
from llm_blender_ray.cluster.plan import Plan
from llm_blender_ray.cluster.replicas import check_all_weights, check_node_weights
from llm_blender_ray.cluster.session import capacity, running
from llm_blender_ray.configs.identity import deciding, settings_digest
from llm_blender_ray.configs.llms import BaseLLM
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.checksums import DamagedError
from llm_blender_ray.pipelines.bulk.costs import unpriced_stages, with_costs
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.executor import actor_count, reason, run_wave, translated_errors
from llm_blender_ray.pipelines.bulk.input import READ, begins_with, read_input
from llm_blender_ray.pipelines.bulk.keys import result_keys, scorer_key
from llm_blender_ray.pipelines.bulk.manifest import InputRecord, Manifest, OutputRecord, versions
from llm_blender_ray.pipelines.bulk.output import write_output
from llm_blender_ray.pipelines.bulk.planning import announce
from llm_blender_ray.pipelines.bulk.progress import PlannedStage, display_progress
from llm_blender_ray.pipelines.bulk.repair import repair_store
from llm_blender_ray.pipelines.bulk.resume import EarlierState, attempt_record, kept_results, listed_changes
from llm_blender_ray.pipelines.bulk.retry import to_do
from llm_blender_ray.pipelines.bulk.spending import RunBudget, run_budget
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec, pools
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.bulk.tracker import Snapshot, run_tracker
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.outputs import FileRecord
from llm_blender_ray.pipelines.rows.storage import remove_temporary_files
from llm_blender_ray.pipelines.rows.writers import (
    COMPARE_COLUMNS,
    COST_COLUMNS,
    BlendShape,
    PreferenceShape,
    Sink,
)

_TRIES = 3  # to repair damage, in one session: storage with more is not to be trusted


def run_waves(
    run: Run,
    store: CheckpointStore,
    state: EarlierState,
    mark: str,
    own: Sequence[str],
    *,
    overwrite: bool,
    update: bool,
    retry: bool,
) -> Summary:
    """Read the input, run all waves, and write the output, on Ray.

    Args:
        run: The work.
        store: Its work folder.
        state: What this session resumes from.
        mark: Fingerprint of the input.
        own: Files under the input that the run itself wrote.
        overwrite: See `run.execute`.
        update: See `run.execute`.
        retry: Run failed rows again.

    Raises:
        BlendError: The run failed; one line.
    """
    with running(run.cluster):
        plan = run.planned(capacity(run.cluster))
        announce(plan)
        with run_tracker() as tracker, translated_errors(tracker):
            check_node_weights(plan.placements)
            check_all_weights([placement for wave in plan.waves[1:] for placement in wave])
            if state.there:
                remove_temporary_files(store.root)
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
                **attempt_record(state, store, retry=retry),
            }
            had = store.index()
            index = _input(run, store, mark, tracker, own, state, update=update or state.gone or not state.there)
            _layout(run, index)  # refuses what it cannot write before any model runs
            work, waves = _work(run, plan, store, record["attempt"], state.record)
            if state.changes:
                kept = kept_results(work, store.stages(), state.record)
                of_rows = f", for {had.rows} of {index.rows} rows" if had and had.rows < index.rows else ""
                report_line(f"{run.output.uri}: {listed_changes(state.changes)}: {kept}{of_rows}")
            record |= {name: {step.name: getattr(step, of) for step in work.steps} for name, of in _STEPS.items()}
            store.save_run(record)
            store.save_manifest(None)
            check = state.there
            with run_budget(run.usd, store) as budget:
                for tries_left in reversed(range(_TRIES)):
                    if check:
                        read_again = functools.partial(_read_again, run, store, mark, tracker, own)
                        index = repair_store(store, index, work, read_again)
                    try:
                        _through(run, store, index, work, waves, tracker, budget)
                        return _written(run, store, index, work, waves, tracker, record, budget)
                    except Exception as error:
                        if not tries_left or not isinstance(reason(error, tracker), DamagedError):
                            raise
                        ray.get(tracker.reset.remote())
                    check = True  # repairs what it finds
    raise AssertionError("unreachable")


def _through(
    run: Run,
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    waves: list[list[StageSpec]],
    tracker: Any,
    budget: RunBudget | None,
) -> None:
    """Run all incomplete blocks through all waves."""
    for number, wave in enumerate(waves, 1):
        todo = to_do(store, index, work, wave)
        stages = [PlannedStage(step.name, actor_count(steps, todo)) for steps in pools(wave) for step in steps]
        title = f"wave {number} of {len(waves)}" if len(waves) > 1 else run.command
        with display_progress(functools.partial(_look, tracker), stages, total=index.rows, title=title):
            run_wave(store, index, work, wave, todo, tracker, budget)


# In `run.json`: each step's folder of results, that of its results before the config was changed, and its scorer.
_STEPS = {"steps": "key", "previous": "previous", "scorers": "scorer"}


def _input(
    run: Run,
    store: CheckpointStore,
    mark: str,
    tracker: Any,
    own: Sequence[str],
    state: EarlierState,
    *,
    update: bool,
) -> Index:
    """Blocks of the input: the stored ones, or newly read.

    Raises:
        BlendError: The input has changed.
    """
    index = store.index()
    if index is not None and index.fingerprint == mark:
        return index
    new = _read(run, store, tracker, own)
    if index is not None and not update and not _same_but_for_limit(store, (index, state.limit), (new, run.limit)):
        store.keep_rows(index.fingerprint)
        was = "was begun" if store.manifest() is None else "exists already, made"
        raise BlendError(
            f"{run.output.uri}: {was} with other rows ({index.rows} were read, now {run.input} has {new.rows}, "
            "not the same); --update keeps what still holds, --overwrite starts over"
        )
    store.save_index(new)
    store.keep_rows(new.fingerprint)
    return new


def _same_but_for_limit(store: CheckpointStore, *inputs: tuple[Index, int | None]) -> bool:
    """Whether two inputs, each with its limit, have the same rows, as far as their limits let them.

    Raises:
        BlendError: The rows of one are lost.
    """
    (short, limit), (long, _) = sorted(inputs, key=lambda one: one[0].rows)
    try:
        return short.digest == long.digest or (short.rows == limit and begins_with(store, long, short))
    except DamagedError as error:
        raise BlendError(
            f"{error}, so that rows cannot be compared; --update keeps what still holds, --overwrite starts over"
        ) from error


def _read(run: Run, store: CheckpointStore, tracker: Any, own: Sequence[str]) -> Index:
    with display_progress(functools.partial(_look, tracker), [PlannedStage(READ, 1)], total=0, title="reading"):
        return read_input(store, run.input, run.limit, run.rows_per_block, tracker, own, also_seen=run.reads)


def _read_again(
    run: Run, store: CheckpointStore, mark: str, tracker: Any, own: Sequence[str], lost: Sequence[str]
) -> Index:
    """Blocks of the input after some were lost.

    Raises:
        BlendError: The input has changed.
    """
    if fingerprint(run.input, run.limit, own) != mark:
        raise BlendError(
            f"{store.root}/{lost[0]}: gone or damaged, and {run.input} has changed since it was read; --update "
            "keeps what still holds, --overwrite starts over"
        )
    index = _read(run, store, tracker, own)
    store.save_index(index)
    return index


def _work(
    run: Run, plan: Plan, store: CheckpointStore, attempt: int, record: Mapping[str, Any]
) -> tuple[StageGraph, list[list[StageSpec]]]:
    """Work on every block, and the steps of each wave."""
    weights, versions_before = run.identity["weights"], record.get("identity", {}).get("stage_versions", {})
    keys = result_keys(run.parts, weights, run.llms, getattr(run.prepare, "__name__", ""))
    there = store.stages()

    def step(placement: Placement, pool: Placement) -> StageSpec:
        kind = placement.settings.stage
        price = token_price(placement.name, placement.settings, run.prices)
        key = f"{kind}-{_slug(placement.name)}-{keys[placement.name]}"
        scorer = scorer_key(placement.settings, weights.get(placement.name))
        others = sorted(one for one in there if one.startswith(f"{kind}-") and one != key) if scorer else ()
        was = record.get("steps", {}).get(placement.name)
        previous = was if was != key else record.get("previous", {}).get(placement.name)
        if versions_before.get(kind) != run.identity["stage_versions"][kind]:
            previous = None  # its columns may have changed
        shared = pool if len(pool.parts) > 1 else None
        return StageSpec(placement, key, tuple(others), previous, scorer, price, shared)

    waves = [[step(placement, pool) for pool in wave for placement in pool.parts] for wave in plan.waves]
    steps = tuple(one for wave in waves for one in wave)
    return StageGraph(steps, run.llms, run.prepare, run.finish, attempt), waves


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:40]


def _written(
    run: Run,
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    waves: list[list[StageSpec]],
    tracker: Any,
    record: Mapping[str, Any],
    budget: RunBudget | None,
) -> Summary:
    """Write the output of all results, and the manifest."""
    layout = _layout(run, index)
    mark = settings_digest(
        [index.digest, [step.key for step in work.steps], layout.schema().to_string(), run.output.format]
    )
    sinks = [Sink(run.output, BlendShape(layout), mark)]
    if run.preferences:
        shape = PreferenceShape(run.preferences, layout)
        of_pairs = settings_digest([mark, deciding(run.preferences)])
        sinks.append(Sink(run.outputs[1], shape, of_pairs))
    for sink in sinks:
        sink.clear()
    account, files = write_output(
        store, index, work, sinks, tracker, costs=not COST_COLUMNS.keys().isdisjoint(run.results)
    )
    numbers = {step.name: number for number, wave in enumerate(waves, 1) for step in wave}
    stages = account.stages(work, numbers)
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
        output=OutputRecord(uri=run.output.uri, rows=account.rows, errors=account.errors, files=tuple(files[0])),
        preferences=_pairs_record(run.preferences, files[1]) if run.preferences else None,
        unpriced=unpriced_stages(stages, work, run.prices),
        budget=budget.record() if budget else None,
        stages=with_costs(stages, work, run.prices),
        errors=dict(account.kinds.most_common()),
    )
    store.save_manifest(manifest.json_text())
    pairs = (manifest.preferences.uri, manifest.preferences.rows) if manifest.preferences else None
    return Summary(manifest, run.output.uri, preferences=pairs)


def _layout(run: Run, index: Index) -> Layout:
    """Columns of the output.

    Raises:
        BlendError: Preference pairs are to carry a column that it does not have.
    """
    types = {name: (RESULT_COLUMNS | COMPARE_COLUMNS | COST_COLUMNS)[name] for name in run.results}
    asked = {name for part in run.parts.values() if isinstance(part, BaseLLM) for name in part.candidate_fields}
    on_demand = [name for name in ON_DEMAND_TYPES if name in asked]
    layout = Layout.of(index.seen, types, run.keep, on_demand, run.adds, run.candidate_adds)
    if run.preferences:
        layout.check_columns(run.preferences.columns, "preferences.columns")
    return layout


def _pairs_record(settings: Preferences, files: Sequence[FileRecord]) -> OutputRecord:
    return OutputRecord(uri=settings.output, rows=sum(file.rows for file in files), errors=0, files=tuple(files))


def _look(tracker: Any) -> Snapshot:
    return ray.get(tracker.snapshot.remote())
