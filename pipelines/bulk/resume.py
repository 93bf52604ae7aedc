"""State of a run's earlier sessions, and whether this session may resume from it."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT, INDEX, RECORD, CheckpointStore
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.bulk.repair import listed_names
from llm_blender_ray.pipelines.bulk.retry import attempt_of
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.stages import StageGraph
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.rows.outputs import Output

_NAMED = 3  # changes in a line


@dataclass(frozen=True)
class EarlierState:
    """Results of earlier sessions that this session can use.

    Attributes:
        there: Whether there are any.
        other_format: The work folder is of another release, and not used.
        gone: The output of a finished run was removed.
        finished: The run is complete, with this config.
        changes: What is other in this config, in its words; of two limits, both.
        limit: The limit of the earlier session; None: all rows.
    """

    there: bool = False
    other_format: bool = False
    gone: bool = False
    finished: bool = False
    changes: tuple[str, ...] = ()
    limit: int | None = None
    fingerprint: str = ""
    started: datetime | None = None
    sessions: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)


def earlier_state(
    run: Run,
    store: CheckpointStore,
    mark: str,
    damaged: Sequence[str],
    taken: Sequence[Output],
    *,
    overwrite: bool,
    update: bool,
) -> EarlierState:
    """Find what earlier sessions left.

    Args:
        run: The work of this session.
        store: The run's work folder.
        mark: Fingerprint of the input.
        damaged: Damaged objects of the work folder.
        taken: Outputs that exist.
        overwrite: Whether they may be replaced.
        update: Whether the config or the input may have changed.

    Returns:
        What this session resumes from.

    Raises:
        BlendError: This session must not resume from it.
    """
    found = store.format()
    if found not in (None, FORMAT):
        if update or overwrite:
            return EarlierState(other_format=True)
        raise BlendError(
            f"{store.root}: work folder of another release (format {found}, expected {FORMAT}); --update or "
            "--overwrite computes everything again"
        )
    record = store.run()
    if RECORD in damaged and not overwrite:
        return _unrecorded(run, store, taken, update=update)
    if record is None:
        if taken and not overwrite:
            raise BlendError(f"{taken[0].uri}: exists already; --overwrite replaces it")
        return EarlierState()
    changed = describe_changes(record["identity"], run.identity)
    limit = record["identity"].get("limit")
    text = store.manifest()
    finished = text is not None
    if overwrite and (changed or record["fingerprint"] != mark or finished):
        return EarlierState()
    if INDEX in damaged and record["fingerprint"] != mark and not update:
        raise BlendError(
            f"{store.root}/{INDEX}: damaged, and {run.input} or the limit has changed since it was read; --update "
            "keeps what still holds, --overwrite starts over"
        )
    gone = finished and run.output not in taken  # it was removed: another run may write there
    if changed and not update and not gone:
        was = "exists already, made" if finished else "was begun"
        raise BlendError(
            f"{run.output.uri}: {was} with another config ({listed_changes(changed)}); --update keeps what still "
            "holds of it, --overwrite starts over"
        )
    if run.limit != limit:
        if text is not None and not update and not gone:
            _refuse_fewer_rows(run, Manifest.parse(text).output.rows)
        changed.append(f"limit: {limit or 'not set'} -> {run.limit or 'not set'}")
    return EarlierState(
        there=True,
        gone=gone,
        finished=finished and not changed,
        changes=tuple(changed),
        limit=limit,
        fingerprint=record["fingerprint"],
        started=datetime.fromisoformat(record["started"]),
        sessions=record["sessions"],
        record=record,
    )


def listed_changes(changes: Sequence[str]) -> str:
    """The first few of some changes of a config."""
    more = len(changes) - _NAMED
    return "; ".join(changes[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def kept_results(work: StageGraph, stored: Collection[str], record: Mapping[str, Any]) -> str:
    """Describe what a run with a changed config reuses, in one line.

    Args:
        work: All steps.
        stored: Folders of results from earlier sessions.
        record: Record of the last one.

    Returns:
        For example `answers of 4 models kept, ranking kept, fusion made anew`.
    """
    llms = [step for step in work.steps if step.kind == "generate"]
    new = [step.name for step in llms if step.key not in stored]
    kept = len(llms) - len(new)
    parts = [f"answers of {kept} {'model' if kept == 1 else 'models'} kept"] if kept else []
    parts += [f"answers of {', '.join(new)} generated"] if new else []
    for step in work.steps:
        if step.kind in ROW_STAGES:
            same_scorer = step.scorer and step.scorer == record.get("scorers", {}).get(step.name)
            anew = "made anew from kept comparisons" if same_scorer else "made anew"
            of_one = f" of {step.name}" if ROW_STAGES[step.kind].independent else ""
            parts.append(f"{ROW_STAGES[step.kind].made}{of_one} {'kept' if step.key in stored else anew}")
    return ", ".join(parts)


def _refuse_fewer_rows(run: Run, rows: int) -> None:
    """Refuse a limit that would take rows away from a complete output.

    Raises:
        BlendError: It has more rows.
    """
    if run.limit is not None and run.limit < rows:
        raise BlendError(
            f"{run.output.uri}: exists already, complete with {rows} rows; limit {run.limit} would leave fewer; "
            f"--update writes only the first {run.limit} and keeps the results of all, --overwrite starts over"
        )


def _unrecorded(run: Run, store: CheckpointStore, taken: Sequence[Output], *, update: bool) -> EarlierState:
    """State of a run whose record is damaged: the names of stored results show their use."""
    text = store.manifest()
    if taken and not update and text is not None and Manifest.parse(text).config != _as_json(run.settings):
        raise BlendError(
            f"{store.root}/{RECORD}: damaged, and {run.output.uri} was made with another config; --update keeps "
            "what still holds of it, --overwrite starts over"
        )
    attempt = Manifest.parse(text).attempt if text is not None else 0
    return EarlierState(there=True, gone=True, record={"attempt": attempt})


def _as_json(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def finished_summary(run: Run, store: CheckpointStore) -> Summary | None:
    """Summary of a complete run; None if it is not complete, or files are missing or damaged."""
    text = store.manifest()
    if text is None:
        return None
    manifest = Manifest.parse(text)
    if (manifest.preferences is None) != (run.preferences is None):
        return None
    pairs = None
    for record, output in zip((manifest.output, manifest.preferences), run.outputs, strict=False):
        assert record is not None
        if bad := output.damaged(record.files):
            kept = "from what was kept" if store.stages() else f"anew, for what was kept ({store.root}) is gone"
            report_line(
                f"{output.uri}: {listed_names(bad)}: gone, or not as the run wrote it; written again {kept}"
            )
            return None
        if record is manifest.preferences:
            pairs = (output.uri, record.rows)
    return Summary(manifest, run.output.uri, resumed=True, preferences=pairs)


def attempt_record(state: EarlierState, store: CheckpointStore, *, retry: bool) -> dict[str, Any]:
    """Attempt of this session, for `run.json`."""
    text = store.manifest() if state.there else None
    number = attempt_of(state.record, Manifest.parse(text) if text else None, retry=retry)
    again = retry or (text is None and state.record.get("retrying", False))
    return {"attempt": number, "retrying": again}
