"""Execution of one blend: its members, then the ranker, then the fuser, each within its time."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

from llm_blender_ray.actors.circuit_breaker import Call, NotAskedError
from llm_blender_ray.actors.engines import Completion, Piece, ReasoningDelta
from llm_blender_ray.actors.errors import BLANK, BlendError, one_line, usage_of_error
from llm_blender_ray.actors.fusers import FuserPart
from llm_blender_ray.actors.ranker import blanks_last
from llm_blender_ray.actors.records import Blend, Candidate, Ranking, Refusal, is_blank
from llm_blender_ray.actors.stages import best_readable, missing_samples
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.online.circuits import FUSER, RANKER, ending_call, probe
from llm_blender_ray.pipelines.online.clock import in_time, least_limit, now
from llm_blender_ray.pipelines.online.events import (
    AnswerDelta,
    Answered,
    BlendResult,
    Event,
    Fusing,
    MemberDelta,
    Ranked,
    answer_of,
    delta_of,
)
from llm_blender_ray.pipelines.online.member_calls import member_pieces
from llm_blender_ray.pipelines.online.parts import Parts
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND, BlendRequest, Member, NoAnswerError
from llm_blender_ray.pipelines.online.request_time import RequestTime

_T = TypeVar("_T")


class BlendRun:
    """Execution of one `BlendRequest`."""

    def __init__(self, parts: Parts, ask: BlendRequest) -> None:
        self._parts, self._ask = parts, ask
        self._alone = ask.model not in (BLEND, BEST)
        self._members = [parts.members[ask.model]] if self._alone else list(parts.members.values())
        self._candidates: list[Candidate | None] = list(ask.given)
        self._slots: list[tuple[int, Member, int]] = []  # index of the candidate, its member, its sample
        for member in self._members:
            samples = 1 if self._alone else member.samples
            own = [at for at, candidate in enumerate(ask.given) if candidate.model == member.name]
            for sample in missing_samples([ask.given[at] for at in own], samples):
                at = own[sample] if sample < len(own) else len(self._candidates)
                self._candidates[at : at + 1] = [None]
                self._slots.append((at, member, ask.choice * samples + sample))
        self._ranking: Ranking | None = None
        self._fused_from: tuple[int, ...] = ()
        self._answer = Completion("", "stop")
        self._ranking_usage = self._fusing_usage = TokenUsage()
        self._seconds: dict[str, float] = {}
        self._degraded: list[str] = []
        self._timeouts = parts.timeouts
        self._probes: set[int] = set()  # candidates awaited no longer than the others and their grace time
        self._grace_over: float | None = None  # on the loop's clock; None: more answers are needed
        self._time = RequestTime(parts.timeouts, ask)

    def steps(self) -> Iterator[AsyncGenerator[Event, None]]:
        """Run all steps."""
        if self._alone:
            yield self._answer_alone()
            return
        yield self._generate()
        yield self._rank()
        yield self._fuse()

    def outcome(self) -> BlendResult:
        """Result after all steps."""
        return BlendResult(self.blend, self._answer, self._seconds, tuple(self._degraded))

    @property
    def blend(self) -> Blend:
        """The blend so far."""
        return Blend(
            self._ask.prompt,
            self._known(),
            self._ranking,
            None if self._alone else self._answer.text,
            self._fused_from,
            ranking_usage=self._ranking_usage,
            fusing_usage=self._fusing_usage,
        )

    def _known(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self._candidates if candidate is not None)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = now()
        try:
            yield
        finally:
            self._seconds[stage] = now() - began

    async def _answer_alone(self) -> AsyncGenerator[Event, None]:
        """One member's own answer: like a candidate's, but its pieces are the answer's."""
        ((_, member, sample),) = self._slots
        try:
            call = self._parts.circuits[member.name].begin()
        except NotAskedError as error:
            raise NoAnswerError(f"{member.name}: {error}", retry_after_s=error.retry_after_s) from error
        limit = self._time.part_left(member.name)
        said: Candidate | None = None
        with self._timed("generate"):
            async with contextlib.aclosing(self._pieces(call, member, sample, self._ask.follow, limit)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Candidate):
                        said = piece
                    else:
                        yield delta_of(piece)
        assert said is not None  # every stream ends with it
        self._candidates = [said]
        if said.text is None:
            raise NoAnswerError(f"{member.name}: {said.error}", said.refused, unpaid=said.unpaid)
        self._answer = answer_of(said)

    async def _generate(self) -> AsyncGenerator[Event, None]:
        happened: asyncio.Queue[MemberDelta | Answered] = asyncio.Queue()
        tasks: list[asyncio.Task[None]] = []
        with self._timed("generate"):
            try:
                left_out = [
                    answered
                    for at, member, sample in self._slots
                    if (answered := self._begin(at, member, sample, happened, tasks))
                ]
                for answered in left_out:
                    yield answered
                while (why := self._enough()) is None:
                    try:
                        async with asyncio.timeout(self._generation_left()):
                            event = await happened.get()
                    except TimeoutError:
                        continue  # `_enough` decides
                    if isinstance(event, Answered):
                        self._candidates[event.index] = event.candidate
                    yield event
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for at, member, _ in self._slots:
            if self._candidates[at] is None:
                cause = self._parts.circuits[member.name].status.cause if at in self._probes else None
                told = _not_waited_for(cause) if cause else why
                self._candidates[at] = Candidate(member.name, error=told, usage=TokenUsage.given_up())
        for candidate in self._known():
            if candidate.text is None:
                self._degraded.append(f"{candidate.model}: {candidate.error}")
        if all(candidate.text is None for candidate in self._known()):
            told = "; ".join(self._degraded) or "no candidates"
            later = self._parts.circuits.retry_after_s(member.name for member in self._members)
            unpaid = any(candidate.unpaid for candidate in self._known())
            raise NoAnswerError(f"no candidate: {told}", self._refused(), later, unpaid=unpaid)

    def _begin(
        self,
        index: int,
        member: Member,
        sample: int,
        happened: asyncio.Queue[MemberDelta | Answered],
        tasks: list[asyncio.Task[None]],
    ) -> Answered | None:
        """Start one member's candidate, or give its error if the member is not called."""
        circuits = self._parts.circuits
        try:
            call = circuits[member.name].begin()
        except NotAskedError as error:
            candidate = Candidate(member.name, error=str(error), usage=TokenUsage())
            self._candidates[index] = candidate
            return Answered(index, candidate, 0.0)
        work = self._one(call, index, member, sample, happened)
        if call.probe:
            self._probes.add(index)
            circuits.apart(work)
        else:
            tasks.append(asyncio.get_running_loop().create_task(work))
        return None

    def _refused(self) -> Refusal | None:
        """Reason why no model will ever answer; None: one might."""
        reasons = [candidate.refused for candidate in self._known()]
        if not reasons or None in reasons:
            return None
        return "too long" if "too long" in reasons else "other"

    async def _one(
        self,
        call: Call,
        index: int,
        member: Member,
        sample: int,
        happened: asyncio.Queue[MemberDelta | Answered],
    ) -> None:
        """Call one member for one candidate, and put its events into the queue."""
        began = now()
        limit = self._time.part_total(member.name) if call.probe else self._timeouts.timeouts_s.get(member.name)
        said: Candidate | None = None
        follow = self._ask.follow_members
        async with contextlib.aclosing(self._pieces(call, member, sample, follow, limit)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    happened.put_nowait(MemberDelta(index, member.name, piece))
                elif isinstance(piece, Candidate):
                    said = piece
        assert said is not None  # every stream ends with it
        happened.put_nowait(Answered(index, said, now() - began))

    def _pieces(
        self, call: Call, member: Member, sample: int, follow: bool, limit: float | None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        return member_pieces(self._ask, call, member, sample, follow, limit, self._time.part_total(member.name))

    def _until(self) -> float:
        """Share of the deadline for generation: all of it while there is no answer."""
        answered = any(candidate.text is not None for candidate in self._known())
        return self._timeouts.generation_share if answered else 1.0

    def _generation_left(self) -> float | None:
        """Seconds until generation ends if nothing more happens."""
        grace = None if self._grace_over is None else max(self._grace_over - now(), 0.0)
        return least_limit(self._time.left(self._until()), grace)

    def _enough(self) -> str | None:
        """Reason to stop waiting for missing answers, which becomes their error; None: wait."""
        missing = {at for at, candidate in enumerate(self._candidates) if candidate is None}
        if not missing:
            return "answered"
        answered = {candidate.model for candidate in self._known() if candidate.text is not None}
        quorum = self._timeouts.quorum is not None and len(answered) >= self._timeouts.quorum
        if self._grace_over is None and (quorum or (answered and missing <= self._probes)):
            self._grace_over = now() + self._grace_s()
        if self._grace_over is not None and now() >= self._grace_over:
            return f"not waited for: {len(answered)} others had answered"
        if self._time.left(self._until()) == 0.0:
            return f"no answer within {self._until() * (self._time.deadline_s or 0.0):.3g} s"
        return None

    def _grace_s(self) -> float:
        """Further wait for optional answers: a share of the time so far."""
        return self._timeouts.quorum_grace * self._time.elapsed

    async def _in_grace(self, part: str, work: Coroutine[Any, Any, _T], limit: float | None) -> _T:
        """Result of a probe within its grace time; the probe continues in any case.

        Raises:
            BlendError: It is late.
        """
        cause = self._parts.circuits[part].status.cause
        task = self._parts.circuits.apart(work)
        try:
            async with asyncio.timeout(least_limit(self._grace_s(), limit)):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise BlendError(_not_waited_for(cause)) from error

    async def _rank(self) -> AsyncGenerator[Event, None]:
        candidates = self._known()
        share = self._timeouts.generation_share + self._timeouts.ranking_share
        limit = self._time.part_left(RANKER, share)
        if limit == 0.0:  # one late answer: nothing to compare, and time for it
            limit = self._time.left()
        why = "out of time"
        with self._timed("rank"):
            try:
                async with contextlib.aclosing(self._rankings(candidates, limit)) as rankings:
                    async for ranking in rankings:
                        self._ranking = blanks_last(ranking, candidates)
                        self._ranking_usage = ranking.usage
                        if self._ask.follow_members:
                            yield Ranked(self._ranking, candidates)
            except TimeoutError as error:
                why = one_line(error) if limit is None else f"no ranking within {limit:g} s"
            except Exception as error:  # whatever the ranker or its replicas raise
                why = one_line(error)
                self._ranking_usage += usage_of_error(error)
        told = self._ranking if self._ask.follow_members else None
        if self._ranking is not None and self._ranking.complete:
            self._parts.leaderboard.add(candidates, self._ranking)
        elif self._ranking is not None and self._ranking.comparisons:
            self._degraded.append(f"ranker: {why}; the ranking so far counts")
        else:
            self._ranking = blanks_last(self._parts.leaderboard.ranking(candidates, self._ask.prompt), candidates)
            self._degraded.append(f"ranker: {why}; answers stand in the order of their models' record so far")
        if self._ranking is not told:
            yield Ranked(self._ranking, candidates)

    async def _rankings(
        self, candidates: tuple[Candidate, ...], limit: float | None
    ) -> AsyncGenerator[Ranking, None]:
        """The ranking after every round if they are followed, else the last."""
        ranker, prompt = self._parts.ranker, self._ask.prompt
        call, whole_s = self._parts.circuits[RANKER].begin(), self._time.part_total(RANKER)
        if call.probe:
            work = ranker.rank_one(prompt, candidates, _budget(whole_s))
            yield await self._in_grace(RANKER, probe(call, work, whole_s), limit)
            return
        with ending_call(call, whole_s) as heard:
            if self._ask.follow_members:
                stream = ranker.rounds(prompt, candidates, _budget(limit))
                async with contextlib.aclosing(in_time(stream, limit)) as rounds:
                    async for ranking in rounds:
                        heard.set()
                        yield ranking
                call.succeeded()
            else:
                async with asyncio.timeout(limit):
                    last = await ranker.rank_one(prompt, candidates, _budget(limit))
                call.succeeded()
                yield last

    async def _fuse(self) -> AsyncGenerator[Event, None]:
        ranking, candidates = self._ranking, self._known()
        assert ranking is not None
        best = candidates[ranking.order[0]]
        fuser = self._parts.fuser if self._ask.model == BLEND else None
        if fuser is None:
            if is_blank(best.text or ""):
                raise NoAnswerError(BLANK)
            for delta in self._take(best, ranking.order[:1]):
                yield delta
            return
        self._fused_from = best_readable(ranking.order, candidates, self._parts.top_k)
        yield Fusing(self._fused_from)
        texts = [candidates[at].text or "" for at in self._fused_from]
        limit = self._time.part_left(FUSER)
        written = ""
        with self._timed("fuse"):
            try:
                async with contextlib.aclosing(self._fusion(fuser, texts, limit)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Completion):
                            self._answer, self._fusing_usage = piece, piece.usage
                        else:
                            written += piece if isinstance(piece, str) else ""
                            yield delta_of(piece)
                self._fused_from = self._fused_from[: self._answer.candidates_read]
                return
            except TimeoutError as error:
                why = one_line(error) if limit is None else f"no answer within {limit:g} s"
                self._fusing_usage = TokenUsage.given_up()
            except Exception as error:  # whatever the fuser or its replicas raise
                why = one_line(error)
                self._fusing_usage = usage_of_error(error)
        if written:
            self._degraded.append(f"fuser: {why}; the answer is what was written by then")
            self._answer = Completion(written, "length")
            return
        self._degraded.append(f"fuser: {why}; the best candidate instead")
        for delta in self._take(best, ranking.order[:1]):
            yield delta

    async def _fusion(self, fuser: FuserPart, texts: list[str], limit: float | None) -> AsyncGenerator[Piece, None]:
        """The answer's text, in pieces if they are followed, then the completion."""
        prompt, change = self._ask.prompt, self._ask.change
        call, whole_s = self._parts.circuits[FUSER].begin(), self._time.part_total(FUSER)
        if call.probe:
            whole = await self._in_grace(FUSER, probe(call, fuser.fuse(prompt, texts, change), whole_s), limit)
            yield whole.text
            yield whole
            return
        with ending_call(call, whole_s) as heard:
            if self._ask.follow:
                stream = fuser.stream(prompt, texts, change)
                async with contextlib.aclosing(in_time(stream, limit)) as pieces:
                    async for piece in pieces:
                        heard.set()
                        yield piece
                call.succeeded()
            else:
                async with asyncio.timeout(limit):
                    whole = await fuser.fuse(prompt, texts, change)
                call.succeeded()
                yield whole.text
                yield whole

    def _take(self, best: Candidate, at: tuple[int, ...]) -> list[AnswerDelta | ReasoningDelta]:
        """Make the best candidate the answer."""
        self._fused_from, self._answer = at, answer_of(best)
        reasoning = [ReasoningDelta(best.reasoning)] if best.reasoning else []
        return [*reasoning, AnswerDelta(self._answer.text)]


def _budget(limit: float | None) -> float | None:
    """Time after which no round of comparisons begins, so that the last one should end in time."""
    return None if limit is None else 0.8 * limit


def _not_waited_for(cause: str | None) -> str:
    return f"not waited for; it failed before: {cause}"
