"""Usage in stored results: what each row's calls used, over all attempts, and unknown where it was not stored."""

from dataclasses import replace

import pyarrow as pa
import pytest

from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.actors.usage import USAGE_FIELDS, TokenUsage
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.bulk.accounts import account_of
from llm_blender_ray.pipelines.bulk.results import (
    USAGE,
    columns_of,
    finished,
    merge_results,
    results_from_other_blocks,
    usages_of,
    without_usage,
)

PROMPT = Prompt("id", "a question")
CALL, OTHER = TokenUsage(1, 0, 30, 5, 20, 10), TokenUsage(2, 1, 3, 0, 2, 0)
BEFORE = Blend(PROMPT, (Candidate("a", "x"), Candidate("b", "y")))
RANKING = Ranking((1, 0), (0.1, 0.2), ((None, 1.0), (2.0, None)), 2)


def after(kind: Stage, usage: TokenUsage, *, fails: bool = False) -> Blend:
    """The blend after a stage that has used so much."""
    if kind == "generate":
        new = Candidate("c", None if fails else "z", error="down" if fails else None, usage=usage, prompt_tokens=30)
        return replace(BEFORE, candidates=(*BEFORE.candidates, new))
    error = "it failed" if fails else None
    if kind == "rank":
        return replace(BEFORE, ranking=None if fails else RANKING, error=error, ranking_usage=usage)
    return replace(BEFORE, fused=None if fails else "z", fused_from=(1, 0), error=error, fusing_usage=usage)


def stored(kind: Stage, usage: TokenUsage, *, fails: bool = False) -> pa.Table:
    return columns_of(kind, [BEFORE], [after(kind, usage, fails=fails)])


def account(kind: Stage, table: pa.Table) -> dict[str, int]:
    """Usage in the account of a block with this result."""
    found = account_of(kind, [BEFORE], finished([BEFORE], kind, table))
    return {name: found[name] for name in (*USAGE_FIELDS, "uncounted")}


KINDS: tuple[Stage, ...] = ("generate", "rank", "fuse")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_usage_of_a_row_is_stored_whether_or_not_it_failed(kind: Stage, fails: bool) -> None:
    table = stored(kind, CALL, fails=fails)
    assert usages_of(kind, table) == [CALL]
    assert account(kind, table) == CALL.to_row() | {"uncounted": 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_a_retried_row_has_used_all_its_attempts(kind: Stage, fails: bool) -> None:
    merged = merge_results(kind, [0], stored(kind, CALL, fails=True), stored(kind, OTHER, fails=fails))
    assert usages_of(kind, merged) == [CALL + OTHER]
    assert account(kind, merged) == (CALL + OTHER).to_row() | {"uncounted": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_without_usage_is_unknown_also_after_a_retry(kind: Stage) -> None:
    old = stored(kind, CALL, fails=True).drop_columns([USAGE])
    assert usages_of(kind, old) == [None]
    assert account(kind, old)["uncounted"] == 1
    merged = merge_results(kind, [0], old, stored(kind, OTHER))
    assert usages_of(kind, merged) == [None]
    assert account(kind, merged)["uncounted"] == 1


def test_the_answer_of_an_earlier_version_counts_with_its_own_tokens() -> None:
    found = account("generate", stored("generate", CALL).drop_columns([USAGE]))
    assert found["prompt_tokens"] == 30 and found["uncounted"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_result_is_no_call(kind: Stage) -> None:
    copy = without_usage(stored(kind, CALL))
    assert copy.drop_columns([USAGE]).equals(stored(kind, CALL).drop_columns([USAGE]))
    assert usages_of(kind, copy) == [TokenUsage()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_new_in_a_block_has_used_nothing_before(kind: Stage) -> None:
    new = replace(BEFORE, prompt=Prompt("new", "another question"))
    had = results_from_other_blocks(kind, [BEFORE, new], [stored(kind, CALL)])
    assert had is not None
    made = columns_of(kind, [new], [replace(after(kind, OTHER), prompt=new.prompt)])
    assert usages_of(kind, merge_results(kind, [1], had, made)) == [CALL, OTHER]
