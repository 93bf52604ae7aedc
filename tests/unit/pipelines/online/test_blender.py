"""The flow of one prompt over parts that behave badly, in virtual time; and over the real miniature."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from virtual_time import run

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, Refusal
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig, ComparisonSettings, SamplingOverrides
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.events import (
    AnswerDelta,
    Answered,
    BlendResult,
    Event,
    Fusing,
    MemberDelta,
    Ranked,
    usage_by_part,
)
from llm_blender_ray.pipelines.online.protocols import BlendRequest, NoAnswerError, Timeouts
from llm_blender_ray.pipelines.rows.readers import read_rows

PROMPT = Prompt("p", "What is it?")


@dataclass
class FakeMember:
    """Answers `text` after `seconds`, or fails."""

    name: str
    text: str | None = "an answer"
    seconds: float = 1.0
    raises: Exception | None = None
    refused: Refusal | None = None
    samples: int = 1
    asked: list[tuple[int, SamplingOverrides | None]] = field(default_factory=list)
    cancelled: int = 0

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        self.asked.append((sample, change))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.raises:
            raise self.raises
        if self.text is None:
            return Candidate(self.name, error="too long", refused=self.refused)
        return Candidate(
            self.name, f"{self.text} {sample}", finish_reason="stop", prompt_tokens=3, completion_tokens=2
        )

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        candidate = await self.answer(prompt, sample, change)
        for word in (candidate.text or "").split():
            yield word + " "
        yield candidate


@dataclass
class FakeRanker:
    """Prefers the last candidate that has text; a round takes `seconds`."""

    seconds: float = 0.5
    rounds_made: int = 2
    raises: Exception | None = None
    usage: TokenUsage = field(default_factory=TokenUsage)  # of a round

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        return [ranking async for ranking in self.rounds(prompt, candidates, budget_s)][-1]

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        order = tuple(i for i in reversed(range(len(candidates))) if candidates[i].text is not None)
        scores = tuple(None if c.text is None else float(i) for i, c in enumerate(candidates))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for made in range(1, self.rounds_made + 1):
            await asyncio.sleep(self.seconds)
            if self.raises:
                raise self.raises
            late = budget_s is not None and loop.time() - began >= budget_s
            used = sum([self.usage] * made, TokenUsage())
            yield Ranking(order, scores, (), made, complete=made == self.rounds_made, usage=used)
            if late:
                return


@dataclass
class FakeFuser:
    """Joins what it is given; breaks before or after some words."""

    seconds: float = 0.1
    breaks_after: int | None = None
    cancelled: int = 0
    reads: int | None = None  # of the candidates; None: all

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        async for piece in self.stream(prompt, candidates, change):
            if isinstance(piece, Completion):
                return piece
        raise AssertionError

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Completion, None]:
        words = " + ".join(candidates[: self.reads]).split()
        try:
            for at, word in enumerate(words):
                await asyncio.sleep(self.seconds)
                if at == self.breaks_after:
                    raise BlendError("the fuser broke")
                yield word + " "
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        yield Completion(" ".join(words), "stop", 7, len(words), candidates_read=self.reads)


def blender(
    *members: FakeMember, ranker: FakeRanker | None = None, fuser: FakeFuser | None = None, **timeouts
) -> Blender:
    return Blender(members, ranker or FakeRanker(), fuser or FakeFuser(), top_k=2, timeouts=Timeouts(**timeouts))


async def events_of(blend: Blender, ask: BlendRequest) -> list[Event]:
    return [event async for event in blend.events(ask)]


def outcome_of(blend: Blender, **ask) -> BlendResult:
    return run(blend.outcome(BlendRequest(PROMPT, **ask)))


def test_all_answer() -> None:
    outcome = outcome_of(blender(FakeMember("a"), FakeMember("b", "better")))
    assert [c.text for c in outcome.blend.candidates] == ["an answer 0", "better 0"]
    assert outcome.blend.fused_from == (1, 0)
    assert outcome.blend.fused == outcome.answer.text == "better 0 + an answer 0"
    assert outcome.degraded == ()
    assert outcome.usage == TokenUsage(3, 0, 3 + 3 + 7, 0, 2 + 2 + 6, 0)
    assert outcome.seconds == pytest.approx({"generate": 1.0, "rank": 1.0, "fuse": 0.6})


def test_events_come_in_order_and_as_they_happen() -> None:
    blend = blender(FakeMember("slow", seconds=2), FakeMember("quick", "first", seconds=1))
    events = run(events_of(blend, BlendRequest(PROMPT, follow=True, follow_members=True)))
    kinds = [type(event) for event in events]
    assert kinds == [
        *(MemberDelta, MemberDelta, Answered),
        *(MemberDelta, MemberDelta, MemberDelta, Answered),
        *(Ranked, Ranked, Fusing),
        *[AnswerDelta] * 6,
        BlendResult,
    ]
    assert [event.index for event in events if isinstance(event, Answered)] == [1, 0]
    assert [event.ranking.complete for event in events if isinstance(event, Ranked)] == [False, True]
    outcome = events[-1]
    assert isinstance(outcome, BlendResult)
    assert "".join(e.text for e in events if isinstance(e, AnswerDelta)).strip() == outcome.answer.text


JUDGED = TokenUsage(2, 0, 100, 0, 10, 0)
LOST = TokenUsage(1, 1)  # a call that was given up


@pytest.mark.parametrize("follow", [False, True])
def test_usage_is_of_every_call_whatever_it_ended_in(follow: bool) -> None:
    blend = blender(
        FakeMember("a"),
        FakeMember("late", seconds=9),
        FakeMember("bad", raises=BlendError("down").with_usage(JUDGED)),
        ranker=FakeRanker(usage=JUDGED),
        fuser=FakeFuser(seconds=9),
        deadline_s=10.0,
    )
    (*_, outcome) = run(events_of(blend, BlendRequest(PROMPT, follow=follow, follow_members=follow)))
    assert isinstance(outcome, BlendResult)
    assert usage_by_part(outcome.blend) == {
        "a": TokenUsage(1, 0, 3, 0, 2, 0),
        "late": LOST,
        "bad": JUDGED,
        "ranker": JUDGED + JUDGED,
        "fuser": LOST,
    }
    assert outcome.usage == TokenUsage(9, 2, 303, 0, 32, 0)


def test_calls_of_a_ranker_that_failed_count() -> None:
    ranker = FakeRanker(raises=BlendError("no verdict").with_usage(JUDGED))
    assert outcome_of(blender(FakeMember("a"), ranker=ranker)).blend.ranking_usage == JUDGED


@pytest.mark.parametrize("model", ["blend", "a"])
def test_calls_count_where_there_is_no_answer(model: str) -> None:
    blend = blender(FakeMember("a", raises=BlendError("down").with_usage(JUDGED)))
    with pytest.raises(NoAnswerError) as caught:
        outcome_of(blend, model=model)
    assert caught.value.usages == {"a": JUDGED}


def test_the_best_alone() -> None:
    outcome = outcome_of(blender(FakeMember("a"), FakeMember("b", "better")), model="blend-best")
    assert outcome.answer.text == "better 0" and outcome.blend.fused_from == (1,)
    assert outcome.usage.completion_tokens == 4  # nobody fused


@pytest.mark.parametrize("follow", [False, True])
def test_a_member_alone(follow: bool) -> None:
    other = FakeMember("b")
    blend = blender(FakeMember("a", samples=3), other)
    events = run(events_of(blend, BlendRequest(PROMPT, model="a", follow=follow, choice=2)))
    outcome = events[-1]
    assert isinstance(outcome, BlendResult)
    assert outcome.answer.text == "an answer 2" and outcome.blend.ranking is None
    assert [e.text for e in events if isinstance(e, AnswerDelta)] == (["an ", "answer ", "2 "] if follow else [])
    assert not other.asked


def test_choices_are_further_samples() -> None:
    member = FakeMember("a", samples=2)
    change = SamplingOverrides(seed=7)
    outcome = outcome_of(blender(member), choice=1, change=change)
    assert member.asked == [(2, change), (3, change)]
    assert len(outcome.blend.candidates) == 2


def test_who_has_answered_is_not_asked() -> None:
    member = FakeMember("a")
    outcome = outcome_of(blender(member, FakeMember("b")), given=(Candidate("a", "given"),))
    assert not member.asked
    assert [c.text for c in outcome.blend.candidates] == ["given", "an answer 0"]


def test_a_given_candidate_that_is_an_error_is_asked_for_again_and_keeps_its_place() -> None:
    given = (Candidate("x", error="another's"), Candidate("a", error="was down"), Candidate("b", "given"))
    outcome = outcome_of(blender(FakeMember("a"), FakeMember("b")), given=given)
    assert [c.text or c.error for c in outcome.blend.candidates] == ["another's", "an answer 0", "given"]


def test_members_that_fail_are_candidates_less() -> None:
    blend = blender(FakeMember("a"), FakeMember("b", text=None), FakeMember("c", raises=OSError("gone")))
    outcome = outcome_of(blend)
    assert outcome.blend.fused == "an answer 0"
    assert outcome.degraded == ("b: too long", "c: OSError: gone")
    assert [c.error for c in outcome.blend.candidates] == [None, "too long", "OSError: gone"]


def test_nobody_answers() -> None:
    with pytest.raises(NoAnswerError, match="no candidate: a: too long; b: OSError: gone") as caught:
        outcome_of(blender(FakeMember("a", text=None, refused="other"), FakeMember("b", raises=OSError("gone"))))
    assert caught.value.refused is None


@pytest.mark.parametrize("model", ["blend", "a"])
@pytest.mark.parametrize("refused", ["too long", "other"])
def test_everybody_refuses_the_prompt(model: str, refused: Refusal) -> None:
    with pytest.raises(NoAnswerError) as caught:
        outcome_of(blender(FakeMember("a", text=None, refused=refused)), model=model)
    assert caught.value.refused == refused


def test_a_shorter_prompt_may_do_where_it_is_too_long_for_one() -> None:
    members = [FakeMember("a", text=None, refused="other"), FakeMember("b", text=None, refused="too long")]
    with pytest.raises(NoAnswerError) as caught:
        outcome_of(blender(*members))
    assert caught.value.refused == "too long"


def test_a_quorum_is_enough_and_the_rest_is_cancelled() -> None:
    slow = FakeMember("slow", seconds=1000)
    outcome = outcome_of(blender(FakeMember("a"), slow, FakeMember("b"), quorum=2))
    assert outcome.seconds["generate"] == pytest.approx(1.5)  # half as long again is the others' grace
    assert slow.cancelled == 1
    assert outcome.degraded == ("slow: not waited for: 2 others had answered",)


def test_a_quorum_counts_models_that_answered() -> None:
    failed = FakeMember("failed", text=None, seconds=0.1)
    outcome = outcome_of(blender(failed, FakeMember("a", seconds=1), FakeMember("b", seconds=5), quorum=2))
    assert outcome.seconds["generate"] == pytest.approx(5)


def test_generation_has_its_share_of_the_deadline() -> None:
    slow = FakeMember("slow", seconds=1000)
    outcome = outcome_of(blender(FakeMember("a"), slow, deadline_s=100, generation_share=0.3))
    assert outcome.seconds["generate"] == pytest.approx(30)
    assert outcome.degraded == ("slow: no answer within 30 s",)


def test_time_in_the_queue_counts() -> None:
    slow = FakeMember("slow", seconds=1000)
    outcome = outcome_of(
        blender(FakeMember("a"), slow, deadline_s=100, generation_share=0.5), waited_s=80, deadline_s=90
    )
    assert outcome.seconds["generate"] == pytest.approx(5)


def test_the_only_answer_may_use_the_whole_deadline() -> None:
    outcome = outcome_of(blender(FakeMember("late", seconds=9.5), deadline_s=12, generation_share=0.5))
    assert outcome.answer.text == "an answer 0"
    assert outcome.seconds["generate"] == pytest.approx(9.5)


def test_no_answer_in_time() -> None:
    member = FakeMember("late", seconds=1000)
    with pytest.raises(NoAnswerError, match="late: no answer within 12 s"):
        outcome_of(blender(member, deadline_s=12))
    assert member.cancelled == 1


def test_a_member_has_its_own_timeouts() -> None:
    outcome = outcome_of(blender(FakeMember("a"), FakeMember("b", seconds=50), timeouts_s={"b": 3}))
    assert outcome.degraded == ("b: no answer within 3 s",)
    assert outcome.seconds["generate"] == pytest.approx(3)


@pytest.mark.parametrize("follow", [False, True])
def test_a_ranking_in_time_is_taken_as_far_as_it_came(follow: bool) -> None:
    ranker = FakeRanker(seconds=1, rounds_made=100)
    blend = blender(FakeMember("a"), FakeMember("b", "better"), ranker=ranker, deadline_s=100)
    outcome = outcome_of(blend, follow_members=follow)
    assert outcome.blend.fused_from == (1, 0)
    assert outcome.degraded == ("ranker: out of time; the ranking so far counts",)
    assert outcome.seconds["rank"] < 80


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("ranker", [FakeRanker(raises=BlendError("broken")), FakeRanker(seconds=1000)])
def test_without_a_ranking_the_record_so_far_decides(ranker: FakeRanker, follow: bool) -> None:
    blend = blender(FakeMember("a", "bad"), FakeMember("b", "good"), deadline_s=50)
    run(blend.outcome(BlendRequest(PROMPT)))
    blend.ranker = ranker
    outcome = outcome_of(blend, follow_members=follow)
    assert outcome.blend.fused_from == (1, 0)
    assert outcome.blend.ranking is not None and outcome.blend.ranking.comparisons == 0
    (told,) = outcome.degraded
    assert told.startswith("ranker: ") and told.endswith("the order of their models' record so far")


@pytest.mark.parametrize("follow", [False, True])
def test_fused_from_names_what_the_fuser_read(follow: bool) -> None:
    blend = blender(FakeMember("a"), FakeMember("b", "better"), fuser=FakeFuser(reads=1))
    assert outcome_of(blend, follow=follow).blend.fused_from == (1,)


@pytest.mark.parametrize("follow", [False, True])
def test_without_a_fuser_the_best_candidate_is_the_answer(follow: bool) -> None:
    blend = blender(FakeMember("a"), FakeMember("b", "better"), fuser=FakeFuser(breaks_after=0))
    outcome = outcome_of(blend, follow=follow)
    assert outcome.answer.text == outcome.blend.fused == "better 0"
    assert outcome.blend.fused_from == (1,)
    assert outcome.degraded == ("fuser: the fuser broke; the best candidate instead",)


def test_a_fusion_that_breaks_off_stays_as_it_is() -> None:
    blend = blender(FakeMember("a"), fuser=FakeFuser(breaks_after=1))
    events = run(events_of(blend, BlendRequest(PROMPT, follow=True)))
    outcome = events[-1]
    assert isinstance(outcome, BlendResult)
    assert outcome.answer == Completion("an ", "length")
    assert outcome.degraded == ("fuser: the fuser broke; the answer is what was written by then",)


def test_a_slow_fuser_ends_at_the_deadline() -> None:
    fuser = FakeFuser(seconds=1000)
    outcome = outcome_of(blender(FakeMember("a"), fuser=fuser, deadline_s=20))
    assert outcome.answer.text == "an answer 0"
    assert sum(outcome.seconds.values()) == pytest.approx(20)
    assert fuser.cancelled == 1


def test_a_slow_reader_is_nobodys_timeout() -> None:
    """The deadline may pass while the caller holds an event: what it does must not be cancelled by that."""

    async def main() -> BlendResult:
        blend = blender(FakeMember("a"), fuser=FakeFuser(seconds=0.1), deadline_s=10)
        async with contextlib.aclosing(blend.events(BlendRequest(PROMPT, follow=True))) as events:
            async for event in events:
                if isinstance(event, AnswerDelta):
                    await asyncio.sleep(100)
                if isinstance(event, BlendResult):
                    return event
        raise AssertionError

    outcome = run(main())
    assert outcome.answer == Completion("an ", "length")


@pytest.mark.parametrize("until", [Answered, Ranked, Fusing, AnswerDelta])
def test_who_goes_away_cancels_everything(until: type) -> None:
    members = [FakeMember("a"), FakeMember("b", seconds=1000)]
    fuser = FakeFuser()

    async def main() -> int:
        blend = blender(*members, fuser=fuser, quorum=None if until is Answered else 1)
        async with contextlib.aclosing(
            blend.events(BlendRequest(PROMPT, follow=True, follow_members=True))
        ) as events:
            async for event in events:
                if isinstance(event, until):
                    break
        return len(asyncio.all_tasks())

    assert run(main()) == 1
    assert members[1].cancelled == 1
    assert fuser.cancelled == (until is AnswerDelta)


def test_reranking_and_comparing_say_what_is_compared() -> None:
    asked: list[ComparisonSettings | None] = []

    class Noting(FakeRanker):
        async def rank_one(self, prompt, candidates, budget_s=None, comparing=None) -> Ranking:
            asked.append(comparing)
            return await super().rank_one(prompt, candidates)

    texts = [Candidate(None, f"text {i}") for i in range(20)]
    blend = blender(FakeMember("a"), ranker=Noting())
    run(blend.compare(PROMPT, texts[:2]))
    run(blend.rerank(PROMPT, texts))
    run(blend.rerank(PROMPT, texts, 3))
    run(blend.rerank(PROMPT, texts[:4]))
    kinds = [(one.strategy.kind, one.top_k) for one in asked if one and one.strategy]
    assert kinds == [("full", None), ("sparse", None), ("focus", 3), ("full", None)]


def test_the_miniature_is_as_its_stages() -> None:
    """What streams and what doesn't is the same answer, and it is the one of the bulk path's stages."""
    from llm_blender_ray.actors.stages import Fuse, Generate, Rank

    config = load(PRESETS / "demo.yaml", BlendConfig)
    row = next(iter(read_rows(str(PRESETS / "miniature" / "heldout.jsonl"), 1)))
    prompt = Prompt("x", row["instruction"], row["input"] or "")

    async def main() -> None:
        blend = Blender.local(config)
        plain = await blend.outcome(BlendRequest(prompt))
        events = await events_of(blend, BlendRequest(prompt, follow=True, follow_members=True))
        followed = events[-1]
        assert isinstance(followed, BlendResult)
        assert followed.blend == plain.blend
        assert followed.answer == plain.answer
        assert "".join(e.text for e in events if isinstance(e, AnswerDelta)) == plain.answer.text
        for at, candidate in enumerate(plain.blend.candidates):
            said = "".join(e.text for e in events if isinstance(e, MemberDelta) and e.index == at)
            assert said == candidate.text
        blends = [type(plain.blend)(prompt, ())]
        for model in config.models:
            blends = await Generate(model)(blends)
        assert config.fuser is not None
        blends = await Fuse(config.fuser)(await Rank(config.placing_ranker)(blends))
        assert blends[0] == plain.blend

    asyncio.run(main())
