"""The last lines of a run: what failed is named, by cause, and what is fine is not mentioned."""

from typing import Any

import pytest
from manifests import manifest_of_stages

from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.pipelines.bulk.accounts import account_of
from llm_blender_ray.pipelines.bulk.failures import failure_lines, problems
from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.bulk.results import columns_of, finished

PROMPT = Prompt("id", "a question")


def stage(name: str = "a", kind: Any = "generate", **more: Any) -> StageRecord:
    return StageRecord(**{"rows": 20, "failed": 0, "seconds": 0.0} | {"runs": "", "wave": 1, "replicas": 1} | more,
                       name=name, kind=kind)  # fmt: skip


def manifest(*stages: StageRecord, bad: dict[str, int] | None = None) -> Manifest:
    return manifest_of_stages(*stages, rows=20, bad=bad)


def test_nothing_failed_and_nothing_is_said() -> None:
    assert failure_lines(manifest(stage(asked=20), stage("ranker", "rank", asked=20, ranked=20, constant=19))) == []


def test_a_model_is_named_with_its_causes_most_frequent_first() -> None:
    model = stage(asked=20, failed=15, retryable=15, errors={"503: busy": 4, "401: no key": 11})
    line, again = failure_lines(manifest(model))
    assert again.startswith("--retry-failed ")
    assert line == "a: no answer on 15 of 20 rows (75.0%): 11 x 401: no key; 4 x 503: busy"


def test_causes_beyond_the_most_frequent_are_one() -> None:
    errors = {f"cause {chr(97 + i)}": 9 - i for i in range(8)}
    (line, _) = failure_lines(manifest(stage(asked=50, failed=44, retryable=44, errors=errors)))
    assert line.endswith("5 x cause e; 9 x other causes") and "cause f" not in line


def test_bad_rows_rankers_and_fusers_have_lines_of_their_own() -> None:
    lines = failure_lines(
        manifest(
            stage("ranker", "rank", asked=18, failed=2, errors={"ranking failed: x": 2}, left_out=3),
            stage("fuser", "fuse", asked=16, failed=16),
            bad={"no prompt": 2},
        )
    )
    assert lines[:4] == [
        "bad rows: 2 of 20 rows (10.0%): 2 x no prompt",
        "ranker: no ranking of 2 of 18 rows (11.1%): 2 x ranking failed: x",
        "ranker: 3 comparisons left out, for which it gave no readable answer",
        "fuser: nothing fused of 16 of 16 rows (100%)",
    ]


def test_rows_without_candidates_are_told_where_no_model_answers() -> None:
    ranked = stage("ranker", "rank", asked=16, failed=1, errors={"ranking failed: x": 1})
    errors = {"no prompt": 1, "no candidates": 3, "ranking failed: x": 1}
    lines = failure_lines(manifest_of_stages(ranked, rows=20, bad={"no prompt": 1}, errors=errors))
    assert lines[-1] == "no model ran on 3 of 20 rows (15.0%): 3 x no candidates"
    answered = stage(asked=3, failed=3, errors={"503": 3})
    all_failed = manifest_of_stages(answered, rows=20, errors={"no candidate: a: 503": 3})
    assert [line for line in failure_lines(all_failed) if "no candidate" in line] == []


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"both_orders": 10, "agreeing": 7, "scorer": "judge"}, "position consistency: both orders of 7 of 10 "),
        ({"both_orders": 10, "agreeing": 0, "scorer": "judge"}, "contradicts itself: both orders of 0 of 10 pairs"),
        ({"both_orders": 10, "agreeing": 4, "scorer": "pairranker"}, "contradicts itself: "),
        (
            {"both_orders": 100, "agreeing": 55, "scorer": "judge"},
            "hardly consistent: both orders of 55 of 100 pairs",
        ),
        ({"both_orders": 9, "agreeing": 0, "ranked": 30, "constant": 29}, "constant: on 29 of 30 rows no two "),
        ({"both_orders": 10, "agreeing": 10, "ranked": 5, "constant": 5, "scorer": "pairranker"}, "constant: "),
    ],
)
def test_a_ranker_that_can_not_be_trusted_is_one_line(numbers: dict[str, Any], told: str) -> None:
    (line,) = failure_lines(manifest(stage("ranker", "rank", asked=20, **numbers)))
    assert line.startswith(f"ranker: {told}")


@pytest.mark.parametrize("numbers", [{"agreeing": 60}, {"agreeing": 100, "ranked": 20, "constant": 19}])
def test_a_ranker_that_decides_something_has_no_line(numbers: dict[str, Any]) -> None:
    assert failure_lines(manifest(stage("ranker", "rank", asked=20, both_orders=100, **numbers))) == []


def ranked_by(logits: tuple[tuple[float | None, ...], ...]) -> dict[str, Any]:
    blend = Blend(PROMPT, tuple(Candidate(text, text) for text in "xyz"[: len(logits)]))
    ranking = Ranking(tuple(range(len(logits))), tuple(map(float, range(len(logits)))), logits, 2)
    return account_of("rank", [blend], [Blend(PROMPT, blend.candidates, ranking)])


@pytest.mark.parametrize(
    ("logits", "constant"),
    [
        (((None, 2e-4), (3e-4, None)), 1),  # rounding
        (((None, 7.0), (7.0, None)), 1),  # place alone
        (((None, 2e-3), (-2e-3, None)), 0),
        (((None, 2e-4, None), (None, None, None), (0.0, 0.5, None)), 0),  # 1 and 2 in one order
        (((None, 2e-4, None), (None, None, None), (0.0, 5e-4, None)), 1),
    ],
)
def test_answers_are_equal_when_no_pair_has_a_winner(
    logits: tuple[tuple[float | None, ...], ...], constant: int
) -> None:
    assert ranked_by(logits)["constant"] == constant


def test_a_model_that_fails_more_than_it_may_is_a_problem() -> None:
    half = stage(asked=20, failed=10, max_error_rate=0.5)
    more = stage("b", asked=20, failed=11, max_error_rate=0.5)
    assert problems([half, more, stage("idle", asked=0, max_error_rate=0.0)]) == [
        "b failed on 11 of 20 rows (55.0%), more than its max_error_rate 0.5 allows"
    ]


def test_rows_count_once_however_many_samples_failed() -> None:
    failed = tuple(Candidate("a", error=f"http://h/v1: {status}: x") for status in (503, 503, 429))
    before = [Blend(PROMPT, ()), Blend(PROMPT, (), error="bad row"), Blend(PROMPT, ())]
    after = [Blend(PROMPT, failed), before[1], Blend(PROMPT, (Candidate("a", "yes", completion_tokens=3),))]
    account = account_of("generate", before, after)
    assert (account["rows"], account["asked"], account["failed"], account["completion_tokens"]) == (3, 2, 1, 3)
    assert account["errors"] == {"503: x": 1, "429: x": 1}


def test_a_ranker_is_not_blamed_where_nothing_could_be_ranked() -> None:
    answers = (Candidate("a", "x"), Candidate("b", "y"))
    before = [Blend(PROMPT, (Candidate("a", error="401"),)), Blend(PROMPT, answers), Blend(PROMPT, answers)]
    flat = Ranking((0, 1), (0.5, 0.5), ((None, 1.0), (1.0, None)), 2, unreadable=4)
    after = [
        Blend(PROMPT, before[0].candidates, error="no candidate: a: 401"),
        Blend(PROMPT, answers, error="ranking failed: down"),
        Blend(PROMPT, answers, flat),
    ]
    account = account_of("rank", before, after)
    assert (account["asked"], account["failed"], account["errors"]) == (2, 1, {"ranking failed: down": 1})
    assert (account["ranked"], account["constant"], account["left_out"]) == (1, 1, 4)
    assert (account["both_orders"], account["agreeing"], account["unpaid"]) == (1, 0, 0)


def test_comparisons_that_a_budget_had_no_room_for_are_missing_calls() -> None:
    answers = (Candidate("a", "x"), Candidate("b", "y"))
    half = Ranking((0, 1), (0.5, -0.5), ((None, 1.0), (None, None)), 1, unreadable=1, unpaid=1)
    before, after = [Blend(PROMPT, answers)], [Blend(PROMPT, answers, half)]
    stored = finished(before, "rank", columns_of("rank", before, after))
    account = account_of("rank", before, stored)  # as the worker does
    assert account == account_of("rank", before, after)
    assert (account["failed"], account["unpaid"], account["retryable"]) == (0, 1, 1)
    (line, *_) = failure_lines(manifest(stage("ranker", "rank", asked=1, unpaid=1, left_out=1)))
    assert line == "ranker: 1 comparison left out, for which it gave no readable answer, or the budget had no room"
