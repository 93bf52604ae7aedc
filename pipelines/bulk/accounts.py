"""Account of one stage on one block: rows, failures by kind, usage, comparisons; stored with the block's results.

The manifest's `StageRecord` is the sum of a stage's accounts over the whole run, whichever session ran which block.
An account is computed from all rows of its block; after a retry, from its new rows, and the usage of all attempts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from llm_blender_ray.actors.errors import UNPAID
from llm_blender_ray.actors.records import Blend, Candidate
from llm_blender_ray.actors.stages import lacks_answer
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.quality.error_kinds import ErrorKinds


def added(before: Sequence[Blend], after: Sequence[Blend]) -> list[tuple[Candidate, ...]]:
    """Candidates added to each blend."""
    return [done.candidates[len(had.candidates) :] for had, done in zip(before, after, strict=True)]


def account_of(
    kind: Stage, before: Sequence[Blend], after: Sequence[Blend], failed: Sequence[str | None] = ()
) -> dict[str, Any]:
    """Account of a block.

    Args:
        kind: Of the stage.
        before: The block's rows before the stage.
        after: The same rows after it.
        failed: Of a ranker or fuser, the error of each row's last attempt, if that is not the row's own error
            because it keeps an earlier result.

    Returns:
        Fields of `tracker.Count` and `manifest.StageRecord`.
    """
    if kind == "generate":
        new = added(before, after)
        failures = [[c.error for c in answers if c.error is not None] for answers in new]
        return {
            "rows": len(after),
            "asked": sum(map(bool, new)),
            **_failed(failures),
            "retryable": sum(any(map(lacks_answer, answers)) for answers in new),
            **sum((c.known_usage for answers in new for c in answers), TokenUsage()).to_row(),
            "uncounted": sum(any(c.usage is None for c in answers) for answers in new),
        }
    stage = ROW_STAGES[kind]
    asked = [stage.asks(had) for had in before]
    errors = failed or [stage.error(done) for done in after]
    failures = [[error] if had and error else [] for had, error in zip(asked, errors, strict=True)]
    left_out = [stage.left_out(done) > 0 for done in after]
    retryable = sum(bool(one) or some for one, some in zip(failures, left_out, strict=True))
    account = {"rows": len(after), "asked": sum(asked), **_failed(failures), "retryable": retryable}
    usages = [stage.usage(done) for done in after]
    account |= sum((usage for usage in usages if usage is not None), TokenUsage()).to_row()
    account["uncounted"] = usages.count(None)
    account["unpaid"] += sum(stage.unpaid(done) > 0 for done in after)
    return account | stage.numbers(after)


def _failed(failures: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Rows with errors, and the number of them by kind of error."""
    kinds, failed, unpaid = ErrorKinds(), 0, 0
    for errors in failures:
        failed += bool(errors)
        unpaid += any(UNPAID in error for error in errors)
        for error in dict.fromkeys(errors):  # samples of one row with the same error count once
            kinds.add(error)
    return {"failed": failed, "unpaid": unpaid, "errors": kinds.counts}
