"""Last lines of a run: failed models, by cause; bad rows; rankers that are constant or contradict themselves.

Everything comes from the manifest, so that an already complete run has the same lines.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.quality.error_kinds import OTHER_ERRORS
from llm_blender_ray.pipelines.quality.ranker_signs import constant_sign, contradiction_sign, order_agreement

CAUSES = 5  # of one model, the most frequent ones
AGAIN = "--retry-failed retries what failed, and keeps the rest"
_VERBS = {"generate": "no answer on", **{kind: stage.failure_verb for kind, stage in ROW_STAGES.items()}}


def failure_lines(manifest: Manifest) -> list[str]:
    """One line for each failed model and each kind of problem."""
    lines = [line for stage in manifest.stages for line in _of_stage(stage)]
    bad = manifest.input
    if bad.bad:
        lines.insert(0, f"bad rows: {_share(bad.bad, bad.rows)}{_causes(bad.errors)}")
    if others := _other_errors(manifest):
        lines.append(f"no model ran on {_share(sum(others.values()), manifest.output.rows)}{_causes(others)}")
    if any(stage.retryable for stage in manifest.stages):
        lines.append(AGAIN)
    return lines


def _other_errors(manifest: Manifest) -> Counter[str]:
    """Errors of rows that are neither bad nor a model's failure, such as rows without candidates, by kind."""
    if any(stage.kind == "generate" for stage in manifest.stages):
        return Counter()  # a row that no model has answered
    explained = sum((Counter(stage.errors) for stage in manifest.stages), Counter(manifest.input.errors))
    return Counter(manifest.errors) - explained


def problems(stages: Sequence[StageRecord]) -> list[str]:
    """Reasons for exit code 1: models that failed more often than allowed."""
    failed = [(stage, stage.failed, stage.asked, "rows") for stage in stages]
    failed += [
        (stage, stage.left_out, stage.comparisons + stage.left_out, "comparisons")
        for stage in stages
        if stage.kind == "judge"
    ]
    return [
        f"{stage.name} failed on {_share(count, all_of, what)}, more than its max_error_rate "
        f"{stage.max_error_rate:g} allows"
        for stage, count, all_of, what in failed
        if count > stage.max_error_rate * all_of
    ]


def budget_problem(manifest: Manifest) -> str | None:
    """Reason for exit code 1: calls that were not made for lack of money."""
    if manifest.budget is None or not manifest.unpaid:
        return None
    short = [f"{stage.name} lacks {stage.unpaid:,}" for stage in manifest.stages if stage.unpaid]
    return (
        f"budget.usd_per_run {manifest.budget.usd_per_run:g} has no room for more calls "
        f"(${manifest.budget.spent_usd:.4g} spent): {', '.join(short)} rows; the same command with a "
        "higher one makes them"
    )


def _of_stage(stage: StageRecord) -> Iterator[str]:
    if stage.kind == "judge":
        yield from _of_judge(stage)
        return
    if stage.failed:
        rows = _share(stage.failed, stage.asked or stage.rows)
        own = stage.failed - stage.retryable
        refused = f"; {own:,} because of the prompt itself" if stage.kind == "generate" and own > 0 else ""
        yield f"{stage.name}: {_VERBS[stage.kind]} {rows}{_causes(stage.errors)}{refused}"
    if stage.without_reference:
        yield f"{stage.name}: no reference in {_share(stage.without_reference, stage.rows)}"
    if stage.left_out:
        some = "1 comparison" if stage.left_out == 1 else f"{stage.left_out:,} comparisons"
        unpaid = ", or the budget had no room" if stage.unpaid else ""
        yield f"{stage.name}: {some} left out, for which it gave no readable answer{unpaid}"
    sign = constant_sign(stage.constant, stage.ranked) or contradiction_sign(stage.agreeing, stage.both_orders)
    if sign:
        yield f"{stage.name}: {sign}"
    elif stage.scorer == "judge" and stage.both_orders:
        yield f"{stage.name}: position consistency: {order_agreement(stage.agreeing, stage.both_orders)}"


def _of_judge(stage: StageRecord) -> Iterator[str]:
    if stage.left_out:
        none = f", on {stage.failed:,} of {stage.asked:,} rows none at all" if stage.failed else ""
        share = _share(stage.left_out, stage.comparisons + stage.left_out, "comparisons")
        yield f"{stage.name}: no verdict on {share}{none}{_causes(stage.errors)}"
    elif stage.failed:
        yield f"{stage.name}: no verdict on {_share(stage.failed, stage.asked)}{_causes(stage.errors)}"
    if stage.both_orders:
        sign = contradiction_sign(stage.agreeing, stage.both_orders)
        agreement = f"position consistency: {order_agreement(stage.agreeing, stage.both_orders)}"
        yield f"{stage.name}: {sign or agreement}"


def _share(count: int, all_of: int, what: str = "rows") -> str:
    return f"{count:,} of {all_of:,} {what} ({count / max(all_of, 1):.{0 if count in (0, all_of) else 1}%})"


def _causes(kinds: Mapping[str, int]) -> str:
    """The most frequent kinds with their counts: ` 3 x HTTP 503`."""
    if not kinds:
        return ""
    ordered = sorted(kinds.items(), key=lambda item: (item[0] == OTHER_ERRORS, -item[1], item[0]))
    told = [f"{count:,} x {kind}" for kind, count in ordered[:CAUSES]]
    if rest := sum(count for _, count in ordered[CAUSES:]):
        told.append(f"{rest:,} x other causes")
    return f": {'; '.join(told)}"
