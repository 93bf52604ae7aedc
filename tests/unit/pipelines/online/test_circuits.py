"""Parts that are down, as requests see them one after the other, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from fake_parts import FakeFuser, FakeRanker
from virtual_time import run

from llm_blender_ray.actors.circuit_breaker import NotAskedError
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError, PromptError
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.schema import ComparisonSettings, SamplingOverrides
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.events import Answered, BlendResult
from llm_blender_ray.pipelines.online.protocols import BlendRequest, NoAnswerError, Timeouts

PROMPT = Prompt("p", "What is it?")
DOWN = "https://host/v1: 503: overloaded"
NOT_ASKED = f"not asked: 3 failures in a row, the last: {DOWN}"
BREAKER = BreakerSettings(failures=3, wait_s=10, longest_wait_s=40)


class Member:
    """Takes `seconds` for `candidate`, or raises."""

    samples = 1

    def __init__(self, name: str, seconds: float = 1.0, error: str | Exception | None = None, **more: Any) -> None:
        self.name, self.seconds, self.error, self.more = name, seconds, error, more
        self.asked = self.cancelled = 0

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        self.asked += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.error, Exception):
            raise self.error
        return Candidate(self.name, None if self.error else self.name, self.error, **self.more)

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        candidate = await self.answer(prompt, sample, change)
        if candidate.text:
            yield candidate.text
        yield candidate


def blender(*members: Member, ranker: Any = None, fuser: Any = None, **timeouts: Any) -> Blender:
    return Blender(
        members,
        ranker or FakeRanker(),
        fuser or FakeFuser(),
        top_k=2,
        timeouts=Timeouts(**{"deadline_s": 100.0, **timeouts}),
        breaker=BREAKER,
    )


async def asked(blend: Blender, times: int, **ask: Any) -> BlendResult:
    """The last outcome of requests one after the other."""
    for _ in range(times):
        outcome = await blend.outcome(BlendRequest(PROMPT, **ask))
    return outcome


@pytest.mark.parametrize("error", [DOWN, BlendError(DOWN)])
@pytest.mark.parametrize("follow", [False, True])
def test_a_member_that_is_down_is_left_out_with_the_cause(error: str | Exception, follow: bool) -> None:
    down = Member("down", 5, error)

    async def main() -> None:
        blend = blender(Member("up"), down)
        outcome = await asked(blend, 3, follow_members=follow)
        assert outcome.degraded == (f"down: {DOWN}",)
        assert outcome.seconds["generate"] == pytest.approx(5)
        outcome = await asked(blend, 5, follow_members=follow)
        assert outcome.degraded == (f"down: {NOT_ASKED}",)
        assert outcome.seconds["generate"] == pytest.approx(1)
        assert down.asked == 3
        assert [candidate.error for candidate in outcome.blend.candidates] == [None, NOT_ASKED]

    run(main())


def test_who_is_left_out_is_told_at_once() -> None:
    async def main() -> None:
        blend = blender(Member("up", 7), Member("down", 1, DOWN))
        await asked(blend, 3)
        events = [event async for event in blend.events(BlendRequest(PROMPT))]
        assert events[0] == Answered(1, Candidate("down", error=NOT_ASKED), 0.0)

    run(main())


def test_a_probe_costs_a_request_its_grace_only_and_brings_the_member_back() -> None:
    """The probe goes on when its request has ended; meanwhile others leave the member out."""
    down = Member("down", 5, DOWN)

    async def main() -> None:
        blend = blender(Member("up", 1), down)
        await asked(blend, 3)
        await asyncio.sleep(10)
        down.error = None
        outcome = await asked(blend, 1)
        assert outcome.seconds["generate"] == pytest.approx(1.5)
        assert outcome.degraded == (f"down: not waited for; it failed before: {DOWN}",)
        assert (await asked(blend, 1)).degraded == (f"down: {NOT_ASKED}",)
        assert (down.asked, down.cancelled) == (4, 0)
        await asyncio.sleep(5)
        outcome = await asked(blend, 1)
        assert outcome.degraded == () and len(outcome.blend.ranking.order) == 2  # type: ignore[union-attr]

    run(main())


def test_a_probe_that_answers_in_the_grace_is_a_candidate() -> None:
    down = Member("down", 1, DOWN)

    async def main() -> None:
        blend = blender(Member("up", 2), down)
        await asked(blend, 3)
        await asyncio.sleep(10)
        down.seconds, down.error = 2.5, None
        outcome = await asked(blend, 1)
        assert outcome.degraded == () and outcome.seconds["generate"] == pytest.approx(2.5)

    run(main())


def test_a_probe_is_waited_for_where_nobody_else_answers() -> None:
    down = Member("down", 1, DOWN)

    async def main() -> None:
        blend = blender(down)
        for _ in range(3):
            with pytest.raises(NoAnswerError):
                await asked(blend, 1)
        with pytest.raises(NoAnswerError) as caught:
            await asked(blend, 1)
        assert str(caught.value) == f"no candidate: down: {NOT_ASKED}"
        assert caught.value.retry_after_s == pytest.approx(10)
        await asyncio.sleep(10)
        down.seconds, down.error = 30, None
        assert (await asked(blend, 1)).answer.text == "down"

    run(main())


def test_a_member_asked_alone_is_refused_with_the_cause_and_when_to_come_again() -> None:
    down = Member("down", 1, DOWN)

    async def main() -> None:
        blend = blender(Member("up"), down)
        await asked(blend, 3)
        await asyncio.sleep(4)
        with pytest.raises(NoAnswerError) as caught:
            await asked(blend, 1, model="down")
        assert str(caught.value) == f"down: {NOT_ASKED}"
        assert caught.value.retry_after_s == pytest.approx(6) and caught.value.refused is None
        await asyncio.sleep(6)
        down.error = None
        assert (await asked(blend, 1, model="down")).answer.text == "down"  # it is the probe, and waited for
        assert (await asked(blend, 1)).degraded == ()

    run(main())


def test_asking_alone_counts_too() -> None:
    async def main() -> None:
        blend = blender(Member("up"), Member("down", 1, DOWN))
        for _ in range(3):
            with pytest.raises(NoAnswerError):
                await asked(blend, 1, model="down")
        assert (await asked(blend, 1)).degraded == (f"down: {NOT_ASKED}",)

    run(main())


@pytest.mark.parametrize("own", [{"refused": "too long"}, {"rejected": True}])
def test_what_is_a_request_s_own_leaves_a_member_in(own: dict[str, Any]) -> None:
    async def main() -> None:
        picky = Member("picky", 1, "400: no such parameter", **own)
        await asked(blender(Member("up"), picky), 20)
        assert picky.asked == 20

    run(main())


def test_a_hung_member_costs_a_few_requests_their_share_and_then_none() -> None:
    hung = Member("hung", 10**6)

    async def main() -> None:
        blend = blender(Member("up"), hung)
        assert (await asked(blend, 3)).seconds["generate"] == pytest.approx(60)
        outcome = await asked(blend, 1)
        assert outcome.seconds["generate"] == pytest.approx(1)
        told = "not asked: 3 failures in a row, the last: no answer within 60 s"
        assert outcome.degraded == (f"hung: {told}",)
        await asyncio.sleep(10)
        assert (await asked(blend, 1)).seconds["generate"] == pytest.approx(1.5)  # the probe: a grace
        await asyncio.sleep(60)
        assert blend.circuits["hung"].status.retry_after_s == pytest.approx(20 - 1.5, abs=2)
        assert hung.asked == hung.cancelled == 4

    run(main())


@pytest.mark.parametrize(
    "short",
    [{"deadline_s": 5.0}, {"waited_s": 95.0}],
    ids=["a client's own deadline", "a wait in the queue"],
)
def test_no_request_that_is_short_of_time_opens_a_breaker(short: dict[str, float]) -> None:
    slow = Member("slow", 20)

    async def main() -> None:
        blend = blender(Member("up"), slow)
        await asked(blend, 10, **short)
        assert blend.circuits["slow"].closed and slow.cancelled == 10
        assert (await asked(blend, 1)).degraded == ()

    run(main())


def test_a_member_s_own_timeout_counts() -> None:
    async def main() -> None:
        blend = blender(Member("up"), Member("slow", 20), timeouts_s={"slow": 3.0})
        await asked(blend, 3)
        assert not blend.circuits["slow"].closed

    run(main())


def test_clients_that_go_away_open_nothing() -> None:
    async def main() -> None:
        blend = blender(Member("up"), Member("slow", 20))
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await asked(blend, 1)
        assert all(status.state == "closed" for status in blend.circuits.status().values())

    run(main())


def test_the_quorum_leaves_others_a_grace_and_drops_nobody_for_good() -> None:
    healthy, slow = Member("healthy", 2.9), Member("slow", 50)

    async def main() -> None:
        blend = blender(Member("a", 1), Member("b", 2), healthy, slow, quorum=2)
        outcome = await asked(blend, 10)
        assert outcome.seconds["generate"] == pytest.approx(3)
        assert outcome.degraded == ("slow: not waited for: 3 others had answered",)
        assert slow.asked == slow.cancelled == 10 and blend.circuits["slow"].closed

    run(main())


@pytest.mark.parametrize(("grace", "seconds"), [(0.0, 2.0), (0.25, 2.5), (3.0, 8.0), (1000.0, 60.0)], ids=str)
def test_the_grace_is_a_setting_and_bounded_by_the_deadline(grace: float, seconds: float) -> None:
    slow = Member("slow", 10**6)
    blend = blender(Member("a", 1), Member("b", 2), slow, quorum=2, quorum_grace=grace)
    assert run(asked(blend, 1)).seconds["generate"] == pytest.approx(seconds)


def test_the_quorum_waits_for_nobody_who_is_left_out() -> None:
    async def main() -> None:
        blend = blender(Member("a", 2), Member("down", 1, DOWN), quorum=1)
        await asked(blend, 3)
        assert (await asked(blend, 1)).seconds["generate"] == pytest.approx(2)

    run(main())


class Ranker(FakeRanker):
    """Takes `seconds` to rank, or to fail."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        super().__init__(error)
        self.seconds, self.asked = seconds, 0

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return await super().rank_one(prompt, candidates, budget_s, comparing)


@pytest.mark.parametrize("follow", [False, True])
def test_a_ranker_that_is_down_costs_nothing_and_comes_back(follow: bool) -> None:
    async def main() -> None:
        ranker = Ranker(4, BlendError(DOWN))
        blend = blender(Member("long answer"), Member("b"), ranker=ranker)
        await asked(blend, 3, follow_members=follow)
        outcome = await asked(blend, 1, follow_members=follow)
        assert outcome.seconds["rank"] == 0 and ranker.asked == 3
        assert outcome.degraded == (
            f"ranker: {NOT_ASKED}; answers stand in the order of their models' record so far",
        )
        await asyncio.sleep(10)
        ranker._error = None
        outcome = await asked(blend, 1, follow_members=follow)  # the probe: its grace is half of what was so far
        assert outcome.seconds["rank"] == pytest.approx(0.5)
        assert f"ranker: not waited for; it failed before: {DOWN}; " in outcome.degraded[0]
        await asyncio.sleep(4)
        assert (await asked(blend, 1, follow_members=follow)).degraded == ()

    run(main())


def test_a_hung_ranker_opens_its_breaker() -> None:
    async def main() -> None:
        blend = blender(Member("a"), Member("b"), ranker=Ranker(10**6))
        assert (await asked(blend, 3)).seconds["rank"] > 20
        outcome = await asked(blend, 1)
        assert outcome.seconds["rank"] == 0 and "no answer within 20 s" in outcome.degraded[0]

    run(main())


def test_rerankings_are_refused_while_the_ranker_is_down() -> None:
    async def main() -> None:
        ranker = Ranker(1, BlendError(DOWN))
        blend = blender(Member("a"), ranker=ranker)
        texts = [Candidate(None, "one"), Candidate(None, "two")]
        for _ in range(3):
            with pytest.raises(BlendError, match=r"^https"):
                await blend.compare(PROMPT, texts)
        with pytest.raises(NotAskedError, match="503"):
            await blend.rerank(PROMPT, texts)
        await asyncio.sleep(10)
        ranker._error = None
        await blend.rerank(PROMPT, texts)
        assert blend.circuits["ranker"].closed

    run(main())


class Fuser(FakeFuser):
    """Takes `seconds` before it writes, or fails."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        super().__init__(error)
        self.seconds, self.asked = seconds, 0

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Completion, None]:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        async for piece in super().stream(prompt, candidates, change):
            yield piece


@pytest.mark.parametrize("follow", [False, True])
def test_a_fuser_that_is_down_costs_nothing_and_comes_back(follow: bool) -> None:
    async def main() -> None:
        fuser = Fuser(4, BlendError(DOWN))
        blend = blender(Member("a"), Member("longer"), fuser=fuser)
        await asked(blend, 3, follow=follow)
        outcome = await asked(blend, 1, follow=follow)
        assert outcome.seconds["fuse"] == 0 and fuser.asked == 3
        assert outcome.degraded == (f"fuser: {NOT_ASKED}; the best candidate instead",)
        assert outcome.answer.text == "longer"
        await asyncio.sleep(10)
        fuser._error, fuser.seconds = None, 0.25
        outcome = await asked(blend, 1, follow=follow)
        assert outcome.answer.text == "longer+a" and outcome.degraded == ()
        assert blend.circuits["fuser"].closed

    run(main())


def test_a_prompt_that_does_not_fit_the_fuser_is_not_its_failure() -> None:
    async def main() -> None:
        fuser = Fuser(1, PromptError("too long"))
        await asked(blender(Member("a"), Member("b"), fuser=fuser), 10)
        assert fuser.asked == 10

    run(main())


def test_changes_are_told_to_a_listener() -> None:
    told: list[tuple[str, str]] = []

    async def main() -> None:
        down = Member("down", 1, DOWN)
        blend = blender(Member("up"), down)
        blend.circuits.listen(lambda part, status: told.append((part, status.state)))
        await asked(blend, 3)
        await asyncio.sleep(10)
        down.error = None
        await asked(blend, 1)

    run(main())
    assert told == [("down", "open"), ("down", "closed")]
