"""What stages do with failures: one row's stays its own, and a blend with an error is left alone.

And how many answers an LLM is asked for; it stands behind a real HTTP server. What fuses is the golden fuser.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, completion, respond
from paths import GOLDEN

from llm_blender_ray.actors.ranker import blanks_last
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.actors.stages import Fuse, Generate, TakeBest, margin, no_candidate, select_best
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import EndpointModel, GenFuser, LLMFuser, Sampling

FUSIONS = json.loads((GOLDEN / "genfuser.json").read_text())
PROMPT = Prompt("id", "a question")
ANSWERS = (Candidate("a", "good"), Candidate("b", error="timed out"), Candidate("c", "better"))
RANKED = Blend(PROMPT, ANSWERS, Ranking((2, 0), (0.1, None, 0.2), ((None,) * 3,) * 3, 2))


def generated(
    blends: Sequence[Blend], samples: int, *faults: Fault, seed: int | None = None, together: int = 1
) -> tuple[list[Blend], EndpointServer]:
    """The blends with the answers of an LLM "far" to which each answer is new; `together` are asked for at once."""

    async def main() -> tuple[list[Blend], EndpointServer]:
        barrier = asyncio.Barrier(together)

        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            await barrier.wait()
            return completion(f"{body['messages'][0]['content']} {body.get('seed')}")

        async with EndpointServer(faults, answer) as server:
            sampling = Sampling(temperature=0.7, seed=seed)
            settings = EndpointModel(
                name="far",
                engine="endpoint",
                model="m",
                base_url=server.url,
                max_retries=0,
                sampling=sampling,
                samples=samples,
            )
            return await Generate(settings)(blends), server

    return asyncio.run(main())


def test_an_llm_is_asked_for_all_samples_of_all_rows_at_once() -> None:
    """The server answers nobody before all six are there: fewer in flight would hang."""
    blends = [Blend(Prompt("1", "one"), ()), Blend(Prompt("2", "two"), ANSWERS)]
    (one, two), server = generated(blends, 3, seed=5, together=6)
    assert one.candidates == tuple(Candidate("far", f"one {seed}", finish_reason="stop") for seed in (5, 6, 7))
    assert two.candidates[:3] == ANSWERS
    assert [candidate.text for candidate in two.candidates[3:]] == ["two 5", "two 6", "two 7"]
    assert len(server.requests) == 6


def test_only_missing_samples_are_asked_for() -> None:
    """With the seeds they would have had; one that failed counts as missing, unless the prompt was refused."""
    failed = Candidate("far", error="timed out")
    given = [
        (),
        (Candidate("far", "old"),),
        (Candidate("far", "old"), failed),
        (failed, Candidate("far", "old")),
        (Candidate("far", error="too long", refused="too long"), Candidate("far", "old")),
    ]
    blends = [Blend(PROMPT, candidates) for candidates in (*given, (Candidate("far", "old"),) * 3)]
    done, server = generated(blends, 2, seed=5)
    new = [[c.text for c in after.candidates[len(b.candidates) :]] for b, after in zip(blends, done, strict=True)]
    assert new == [["a question 5", "a question 6"], ["a question 6"], ["a question 6"], ["a question 5"], [], []]
    assert len(server.requests) == 5


def test_without_a_seed_the_llm_draws() -> None:
    _, server = generated([Blend(PROMPT, ())], 2)
    assert [request.body.get("seed") for request in server.requests] == [None, None]


def test_a_sample_that_fails_leaves_the_others() -> None:
    refused = respond(400, {"error": {"message": "refused"}})
    (blend,), _ = generated([Blend(PROMPT, ())], 3, refused)
    assert [candidate.model for candidate in blend.candidates] == ["far"] * 3
    assert sorted(candidate.error is None for candidate in blend.candidates) == [False, True, True]


def test_a_bad_row_is_not_asked() -> None:
    bad = Blend(PROMPT, (), error="bad row")
    done, server = generated([bad], 3)
    assert done == [bad] and not server.requests


def test_why_nothing_can_be_ranked() -> None:
    assert no_candidate(RANKED) is None
    assert no_candidate(Blend(PROMPT, ())) == "no candidates"
    failed = (Candidate("a", error="refused"), Candidate("b", error="timed out"))
    assert no_candidate(Blend(PROMPT, failed)) == "no candidate: a: refused; b: timed out"


@pytest.mark.parametrize(("top_k", "expected"), [(1, (2,)), (2, (2, 0)), (5, (2, 0))])
def test_the_best_are_chosen(top_k: int, expected: tuple[int, ...]) -> None:
    assert select_best(RANKED, top_k).fused_from == expected


def test_without_a_ranking_the_given_order_counts() -> None:
    assert select_best(replace(RANKED, ranking=None), 3).fused_from == (0, 2)
    assert select_best(replace(RANKED, ranking=None, candidates=()), 3).error == "no candidates"


def test_nothing_is_fused_of_what_has_an_error() -> None:
    bad = replace(RANKED, error="bad row")
    assert select_best(bad, 3) is bad
    assert TakeBest()([bad, RANKED]) == [bad, replace(RANKED, fused="better", fused_from=(2,))]


def test_the_best_are_fused() -> None:
    """Of a block together; what has an error, or nothing to fuse, takes no part."""
    case = FUSIONS["cases"][0]
    candidates = tuple(Candidate(str(i), text) for i, text in enumerate(case["candidates"]))
    order = tuple(range(len(candidates)))
    blend = Blend(Prompt("1", case["instruction"], case["input"]), candidates, Ranking(order, (), (), 0))
    bad = replace(RANKED, error="bad row")
    fuse = Fuse(
        GenFuser(
            model=str(GOLDEN / "checkpoints" / "gen_fuser"),
            device="cpu",
            top_k=len(candidates),
            max_new_tokens=FUSIONS["max_new_tokens"],
            max_length=FUSIONS["max_length"],
            candidate_max_length=FUSIONS["candidate_maxlength"],
        )
    )

    async def main() -> list[Blend]:
        done = await fuse([blend, bad, Blend(PROMPT, ()), blend])
        await fuse.check_health()
        return done

    fused = replace(blend, fused=case["fused_beam4_max24"], fused_from=order)
    assert asyncio.run(main()) == [fused, bad, Blend(PROMPT, (), error="no candidates"), fused]


def test_fused_from_names_what_the_fuser_read() -> None:
    """Twelve long candidates are more than the fuser's input holds."""
    order = tuple(range(12))
    blend = Blend(PROMPT, tuple(Candidate(str(i), "word " * 500) for i in order), Ranking(order, (), (), 0))
    model = str(GOLDEN / "checkpoints" / "gen_fuser")
    fuse = Fuse(GenFuser(model=model, device="cpu", top_k=len(order), max_new_tokens=4, num_beams=1))
    (done,) = asyncio.run(fuse([blend]))
    assert done.fused is not None
    assert 1 < len(done.fused_from) < len(order) and done.fused_from == order[: len(done.fused_from)]


def test_a_row_that_the_fuser_fails_on_fails_alone() -> None:
    """A chat LLM writes; to one of three prompts its answer is none."""

    async def main() -> list[Blend]:
        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            if "the second" in body["messages"][-1]["content"]:
                return {}
            return completion("fused")

        async with EndpointServer(answer=answer) as server:
            llm = EndpointModel(name="far", engine="endpoint", model="m", base_url=server.url, max_retries=0)
            prompts = [Prompt("id", text) for text in ("the first", "the second", "the third")]
            blends = [replace(RANKED, prompt=prompt) for prompt in prompts]
            return await Fuse(LLMFuser(kind="chat", llm=llm))(blends)

    first, second, third = asyncio.run(main())
    assert [first.fused, second.fused, third.fused] == ["fused", None, "fused"]
    assert first.fused_from == (2, 0) and first.error is None
    assert second.error is not None and second.error.startswith("fusing failed: http://127.0.0.1")


def test_margin_is_free_of_position_bias() -> None:
    logits = ((None, 0.5), (0.25, None))  # the left one gains by standing left
    assert margin(Ranking((0, 1), (0.1, -0.1), logits, 2)) == 0.125


class TestBlank:
    """Two given candidates of which the first is blank; PairRankers often prefer it."""

    FIRST = (Candidate("a", " \n"), Candidate("b", "text"))

    @pytest.mark.parametrize("logits", [(2.0, -3.0), (1.0, 1.0), (-1.0, 2.0)])
    def test_it_is_never_preferred(self, logits: tuple[float, float]) -> None:
        forth, back = logits
        order = (0, 1) if forth > back else (1, 0)
        scores = ((forth - back) / 2, (back - forth) / 2)
        made = Ranking(order, scores, ((None, forth), (back, None)), 2)
        ranking = blanks_last(made, self.FIRST)
        assert ranking.order == (1, 0) and margin(ranking) < 0
        turned = Ranking(order[::-1], scores[::-1], ((None, back), (forth, None)), 2)
        assert margin(blanks_last(turned, self.FIRST[::-1])) > 0

    def test_it_is_not_fused(self) -> None:
        blend = Blend(PROMPT, self.FIRST, Ranking((1, 0), (0.0, 1.0), ((None, None),) * 2, 2))
        assert select_best(blend, 2).fused_from == (1,)
        (done,) = TakeBest()([blend])
        assert (done.fused, done.fused_from, done.error) == ("text", (1,), None)

    def test_nothing_else_is_the_row_s_error_and_still_ranked(self) -> None:
        ranking = Ranking((1, 0), (0.0, 1.0), ((None, None),) * 2, 2)
        blend = Blend(PROMPT, (Candidate("a", ""), Candidate("b", " ")), ranking)
        (done,) = TakeBest()([blend])
        assert (done.error, done.fused, done.ranking) == ("blank answer", None, ranking)


COUNTS = {"prompt_tokens": 30, "completion_tokens": 20}
CALL = TokenUsage(1, 0, 30, 0, 20, 0)


@pytest.mark.parametrize(
    ("text", "error"),
    [("Four.", None), ("<think>hm", "the answer ends within its reasoning"), (" ", "blank answer")],
)
def test_calls_of_base_llm_and_fuser_are_counted_whatever_they_end_in(text: str, error: str | None) -> None:
    async def main() -> tuple[Blend, Blend]:
        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            return completion(text, usage=COUNTS)

        async with EndpointServer((), answer) as server:
            llm = EndpointModel(name="far", engine="endpoint", model="m", base_url=server.url, max_retries=0)
            ((asked,), (fused,)) = (
                await Generate(llm)([Blend(PROMPT, ())]),
                await Fuse(LLMFuser(kind="chat", llm=llm))([RANKED]),
            )
            return asked, fused

    asked, fused = asyncio.run(main())
    (candidate,) = asked.candidates
    assert candidate.usage == fused.fusing_usage == CALL
    if error is None:
        assert candidate.text == fused.fused == text
    else:
        assert error in str(candidate.error) and error in str(fused.error)
