"""The stage of a judge over a real HTTP server: which pairs it is asked for, and what becomes of its replies."""

import asyncio
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
from endpoint_server import EndpointServer, completion

from llm_blender_ray.actors.judged_pairs import FUSED, JudgedPair, JudgeReply
from llm_blender_ray.actors.judging import JudgePairs, Replies, pair_key
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.configs.judges import JudgeConfig, PairwiseJudge

PROMPT = Prompt("1", "Which?")


def settings(url: str, **more: Any) -> PairwiseJudge:
    llm = {"engine": "endpoint", "name": "j", "model": "m", "base_url": url, "max_retries": 0, "breaker": None}
    return JudgeConfig.model_validate({"judges": [{"llm": llm}]} | more).parts["j"]


def row(*texts: str | None, fused: str | None = None, first: int = 0, models: str = "abcdef") -> Blend:
    candidates = [
        Candidate(model, text=text, error=None if text is not None else "timeout")
        for model, text in zip(models, texts, strict=False)
    ]
    n = len(candidates)
    ranking = Ranking((first, *({*range(n)} - {first})), (None,) * n, ((None,) * n,) * n, 0)
    return Blend(PROMPT, tuple(candidates), ranking, fused=fused)


def shown(text: str) -> tuple[str, str]:
    """Both answers of a judge's prompt."""
    first, _, second = text.partition("Answer A:")[2].partition("Answer B:")
    return first.split("\n")[2], second.split("\n")[2]


async def shorter(body: dict[str, Any]) -> dict[str, Any]:
    left, right = shown(body["messages"][0]["content"])
    verdict = "no idea" if "?" in left + right else "[[A]]" if len(left) < len(right) else "[[B]]"
    return completion(verdict, usage={"prompt_tokens": 7, "completion_tokens": 2})


def judged(blend: Blend, replies: Replies | None = None, **more: Any) -> tuple[Blend, Counter[tuple[str, str]]]:
    """The row after the stage, and the pairs that the judge was shown."""

    async def main() -> tuple[Blend, Counter[tuple[str, str]]]:
        async with EndpointServer(answer=shorter) as server:
            (done,) = await JudgePairs(settings(server.url, **more))([blend], replies)
            return done, Counter(shown(one.body["messages"][0]["content"]) for one in server.requests)

    return asyncio.run(main())


def sides(blend: Blend) -> list[tuple[Any, Any, Any]]:
    assert blend.judged is not None
    return [(one.left, one.right, one.preferred) for one in blend.judged.pairs]


def test_all_pairs_are_compared_in_both_orders() -> None:
    done, asked = judged(row("one", "three", None, fused="seventeen"))
    assert asked == Counter(permutations(("one", "three", "seventeen"), 2))
    assert sides(done) == [
        (0, 1, "left"),
        (0, FUSED, "left"),
        (1, 0, "right"),
        (1, FUSED, "left"),
        (FUSED, 0, "right"),
        (FUSED, 1, "right"),
    ]
    assert done.judged is not None and done.judged.usage is not None
    assert (done.judged.usage.calls, done.judged.usage.prompt_tokens, done.error) == (6, 42, None)


def test_equal_texts_are_tied_and_not_asked_about() -> None:
    done, asked = judged(row("one", "one", "three", fused="three"))
    assert asked == Counter([("one", "three"), ("three", "one")])
    found = sides(done)
    assert {(0, 2, "left"), (1, 2, "left"), (0, FUSED, "left"), (2, 1, "right")} <= set(found)
    assert {(0, 1, "tie"), (1, 0, "tie"), (2, FUSED, "tie"), (FUSED, 2, "tie")} <= set(found)
    assert len(found) == 12


def test_samples_of_one_model_are_not_compared() -> None:
    done, asked = judged(row("one", "three", "seventeen", models="aab"))
    assert not {("one", "three"), ("three", "one")} & set(asked)
    assert len(asked) == len(sides(done)) == 4


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({"baseline": "b"}, {(0, 1), (1, 0), (2, 1), (1, 2), (FUSED, 1), (1, FUSED)}),
        ({"baseline": "blend"}, {(i, FUSED) for i in range(3)} | {(FUSED, i) for i in range(3)}),
        ({"contestants": ["ranker", "blend"]}, {(2, FUSED), (FUSED, 2)}),
        ({"contestants": ["a", "c"]}, {(0, 2), (2, 0)}),
        ({"contestants": ["a", "nobody"]}, set()),
    ],
)
def test_contestants_and_a_baseline_choose_pairs(pairs: dict[str, Any], expected: set[Any]) -> None:
    done, _ = judged(row("one", "three", "seventeen", fused="twenty-one of them", first=2), pairs=pairs)
    assert {(left, right) for left, right, _ in sides(done)} == expected


def test_comparisons_of_a_row_are_limited() -> None:
    texts = [str(i) * (i + 1) for i in range(6)]
    done, asked = judged(row(*texts), pairs={"design": "focus:orders=both", "comparisons_per_row": 8})
    assert asked.total() == len(sides(done)) == 8
    assert {(right, left) for left, right in asked} == set(asked)


def test_a_row_without_the_baseline_fails_alone() -> None:
    done, asked = judged(row("one", "three"), pairs={"baseline": "z"})
    assert done.judged is not None and done.judged.error == "judging failed: no answer of the baseline z"
    assert (asked.total(), done.error) == (0, None)


def test_what_has_no_verdict_is_left_out_with_its_reason() -> None:
    done, asked = judged(row("one", "three", "why?"))
    assert done.judged is not None
    failed = [one for one in done.judged.pairs if one.error]
    assert len(failed) == 4 and all("no verdict in its reply: 'no idea'" in (one.error or "") for one in failed)
    assert sides(done)[0] == (0, 1, "left") and asked["why?", "one"] == 2  # reminded once


def test_known_replies_are_not_requested_and_new_ones_are_kept() -> None:
    blend, kept = row("one", "three"), dict[str, JudgeReply]()
    known = {pair_key(blend, "one", "three"): JudgeReply("right", "by hand")}
    done, asked = judged(blend, Replies(known, kept.__setitem__))
    assert asked == Counter([("three", "one")]) and sides(done) == [(0, 1, "right"), (1, 0, "right")]
    assert [(one.preferred, one.text) for one in kept.values()] == [("right", "[[B]]")]
    assert kept.keys() == {pair_key(blend, "three", "one")}


def test_four_way_rubrics_keep_good_and_bad_apart() -> None:
    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        first = "one" in body["messages"][0]["content"].partition("Candidate A:")[2].partition("Candidate B:")[0]
        return completion("[[Same good]]" if first else "Same bad")

    async def main() -> Blend:
        async with EndpointServer(answer=answer) as server:
            (done,) = await JudgePairs(settings(server.url, rubric="mixinstruct"))([row("one", "three")])
            return done

    assert sides(asyncio.run(main())) == [(0, 1, "both_good"), (1, 0, "both_bad")]


def test_rows_with_an_error_pass() -> None:
    bad = Blend(PROMPT, (), error="a bad row")
    assert judged(bad) == (bad, Counter())


def test_pairs_survive_their_stored_form() -> None:
    pairs = [JudgedPair(0, FUSED, "tie"), JudgedPair(FUSED, 12, None, error="HTTP 503", key="ab")]
    assert [JudgedPair.from_row(one.to_row()) for one in pairs] == pairs
