"""Account of one stage on one block: rows, failures by kind, usage, comparisons; stored with the block's results.

The manifest's `StageRecord` is the sum of a stage's accounts over the whole run, whichever session ran which block.
An account is computed from all rows of its block; after a retry, from its new rows, and the usage of all attempts.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from llm_blender_ray.actors.errors import UNPAID
from llm_blender_ray.actors.records import Blend, Candidate, Ranking
from llm_blender_ray.actors.stages import lacks_answer, no_candidate
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.quality.error_kinds import ErrorKinds
from llm_blender_ray.pipelines.quality.ranker_signs import all_equal, orders_agree

_RANKED = ("comparisons", "full", "both_orders", "agreeing", "left_out", "ranked", "constant")


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
    asked = [had.error is None and no_candidate(had) is None for had in before]
    errors = failed or [done.error for done in after]
    failures = [[error] if had and error else [] for had, error in zip(asked, errors, strict=True)]
    left_out = [bool(done.ranking and not done.error and done.ranking.unreadable) for done in after]
    retryable = sum(bool(one) or some for one, some in zip(failures, left_out, strict=True))
    account = {"rows": len(after), "asked": sum(asked), **_failed(failures), "retryable": retryable}
    usages = [done.ranking_usage if kind == "rank" else done.fusing_usage for done in after]
    account |= sum((usage for usage in usages if usage is not None), TokenUsage()).to_row()
    account["uncounted"] = usages.count(None)
    if kind == "rank":
        account |= dict.fromkeys(_RANKED, 0)
        for blend in after:
            if blend.ranking is not None and blend.error is None:
                account["unpaid"] += blend.ranking.unpaid > 0
                for name, number in _ranked(blend, blend.ranking).items():
                    account[name] += number
    return account


def _failed(failures: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Rows with errors, and the number of them by kind of error."""
    kinds, failed, unpaid = ErrorKinds(), 0, 0
    for errors in failures:
        failed += bool(errors)
        unpaid += any(UNPAID in error for error in errors)
        for error in dict.fromkeys(errors):  # samples of one row with the same error count once
            kinds.add(error)
    return {"failed": failed, "unpaid": unpaid, "errors": kinds.counts}


def _ranked(blend: Blend, ranking: Ranking) -> dict[str, int]:
    """Count one ranking. Copies of one text count once; two logits of 0 agree."""
    firsts = list({c.text: i for i, c in reversed([*enumerate(blend.candidates)]) if c.text is not None}.values())
    pairs = [(ranking.logits[i][j], ranking.logits[j][i]) for i, j in combinations(firsts, 2)]
    both = [(forward, back) for forward, back in pairs if forward is not None and back is not None]
    in_one_order = [
        forward if back is None else back for forward, back in pairs if (forward is None) != (back is None)
    ]
    leads = [(forward - back) / 2 for forward, back in both] + [lead for lead in in_one_order if lead is not None]
    return {
        "comparisons": ranking.comparisons,
        "full": len(firsts) * (len(firsts) - 1),
        "both_orders": len(both),
        "agreeing": sum(orders_agree(*logits) for logits in both),
        "left_out": ranking.unreadable,
        "ranked": len(firsts) > 1,
        "constant": len(firsts) > 1 and all_equal(leads),
    }
