"""One prompt's blend, step by step, in asyncio: what the service runs, and the reference of the bulk path.

Trouble degrades an answer in steps and is told in it: a member that fails or is late is a candidate
less; a ranker that fails leaves the order to the members' record so far; a fuser that fails leaves the best
candidate. Only when nobody answers there is no answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Self, TypeVar

from actors.engines import Completion
from actors.errors import BLANK, one_line
from actors.fusers import Fuser, load_fuser
from actors.generator import Generator
from actors.ranker import Ranker, blanks_last
from actors.records import Blend, Candidate, Prompt, Ranking, Refusal, is_blank
from actors.stages import best_of
from actors.standing import Standing
from configs.schema import BlendConfig, Comparing
from configs.strategies import Focus, Full, Sparse, Strategy
from pipelines.asking import (
    BEST,
    BLEND,
    Answered,
    Ask,
    Event,
    FuserPart,
    Fusing,
    Member,
    MemberPiece,
    NoAnswerError,
    Outcome,
    Patience,
    Piece,
    Ranked,
    RankerPart,
)

_T = TypeVar("_T")

FOR_EVER = Patience()
ALL_PAIRS = 8  # up to so many candidates a whole order comes from all pairs; above, from a part of them


class Blender:
    """Members, a ranker and a fuser, wherever they are."""

    def __init__(
        self,
        members: Sequence[Member],
        ranker: RankerPart,
        fuser: FuserPart | None,
        *,
        top_k: int = 1,
        patience: Patience = FOR_EVER,
    ) -> None:
        """top_k: how many of the best the fuser reads; without a fuser the best one is the answer."""
        self.members = {member.name: member for member in members}
        self.ranker, self.fuser, self.top_k = ranker, fuser, top_k
        self.patience = patience
        self.standing = Standing(list(self.members))

    @classmethod
    def local(cls, config: BlendConfig) -> Self:
        """Everything in this process. Raises ModelLoadError when a model can't be used."""
        members = [Generator(model) for model in config.models]
        ranker = Ranker(config.placing_ranker)
        fuser: Fuser | None = load_fuser(config.fuser) if config.fuser else None
        return cls(members, ranker, fuser, top_k=config.fuser.top_k if config.fuser else 1)

    async def blend(self, prompt: Prompt, given: Sequence[Candidate] = ()) -> Blend:
        """The blend of one prompt; an LLM that already has a candidate in `given` is not asked again."""
        try:
            return (await self.outcome(Ask(prompt, given=tuple(given)))).blend
        except NoAnswerError as error:
            return Blend(prompt, tuple(given), error=str(error))

    async def compare(self, prompt: Prompt, candidates: Sequence[Candidate]) -> Ranking:
        """Every pair in both orders, as `blend compare` does. Raises what the ranker raises, and TimeoutError."""
        return await self._ranked(prompt, candidates, Comparing(strategy=Full()))

    async def rerank(self, prompt: Prompt, candidates: Sequence[Candidate], top_n: int | None = None) -> Ranking:
        """An order whose first `top_n` places matter, or all. Raises what the ranker raises, and TimeoutError."""
        strategy: Strategy
        if top_n is not None and top_n < len(candidates):
            strategy = Focus()
        else:
            strategy = Full() if len(candidates) <= ALL_PAIRS else Sparse()
        return await self._ranked(prompt, candidates, Comparing(strategy=strategy, top_k=top_n))

    async def _ranked(self, prompt: Prompt, candidates: Sequence[Candidate], comparing: Comparing) -> Ranking:
        limits = (self.patience.deadline_s, self.patience.timeouts_s.get("ranker"))
        async with asyncio.timeout(min((limit for limit in limits if limit is not None), default=None)):
            ranking = await self.ranker.rank_one(prompt, candidates, None, comparing)
            return blanks_last(ranking, candidates)

    async def outcome(self, ask: Ask) -> Outcome:
        """How it ends. Raises NoAnswerError."""
        async with contextlib.aclosing(self.events(ask)) as events:
            async for event in events:
                if isinstance(event, Outcome):
                    return event
        raise AssertionError("no outcome")

    async def events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """What happens until the answer is there; the last is the `Outcome`. Raises NoAnswerError.

        Closing the iterator, or cancelling who waits for it, cancels all work that was begun for it.
        """
        course = _Course(self, ask)
        for step in course.steps():
            async with contextlib.aclosing(step) as events:
                async for event in events:
                    yield event
        yield course.outcome()


class _Course:
    """One request under way."""

    def __init__(self, blender: Blender, ask: Ask) -> None:
        self._parts, self._ask = blender, ask
        self._alone = ask.model not in (BLEND, BEST)
        self._members = [blender.members[ask.model]] if self._alone else list(blender.members.values())
        self._slots: list[tuple[Member, int]] = []  # of the candidates behind the given ones
        for member in self._members:
            samples = 1 if self._alone else member.samples
            had = sum(candidate.model == member.name for candidate in ask.given)
            self._slots += [(member, ask.choice * samples + i) for i in range(had, samples)]
        self._candidates: list[Candidate | None] = [*ask.given, *(None for _ in self._slots)]
        self._ranking: Ranking | None = None
        self._fused_from: tuple[int, ...] = ()
        self._answer = Completion("", "stop")
        self._seconds: dict[str, float] = {}
        self._degraded: list[str] = []
        self._patience = blender.patience
        deadline = ask.deadline_s if ask.deadline_s is not None else self._patience.deadline_s
        self._began = asyncio.get_running_loop().time()
        self._deadline_s = None if deadline is None else max(deadline - ask.waited_s, 0.0)

    def steps(self) -> Iterator[AsyncGenerator[Event, None]]:
        if self._alone:
            yield self._answer_alone()
            return
        yield self._generate()
        yield self._rank()
        yield self._fuse()

    def outcome(self) -> Outcome:
        """After all steps."""
        fused = None if self._alone else self._answer.text
        blend = Blend(self._ask.prompt, self._known(), self._ranking, fused, self._fused_from)
        return Outcome(blend, self._answer, self._seconds, tuple(self._degraded))

    def _known(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self._candidates if candidate is not None)

    def _left(self, share: float = 1.0) -> float | None:
        """Seconds until so much of the deadline is over; None: no deadline."""
        if self._deadline_s is None:
            return None
        return max(self._began + share * self._deadline_s - asyncio.get_running_loop().time(), 0.0)

    def _patient_with(self, name: str, left: float | None) -> float | None:
        own = self._patience.timeouts_s.get(name)
        return min((limit for limit in (own, left) if limit is not None), default=None)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._seconds[stage] = loop.time() - began

    async def _answer_alone(self) -> AsyncGenerator[Event, None]:
        """One member's own answer: that of a candidate, but its pieces are the answer's."""
        ((member, sample),) = self._slots
        limit = self._patient_with(member.name, self._left())
        said: Candidate | None = None
        with self._timed("generate"):
            async with contextlib.aclosing(self._asked(member, sample, self._ask.follow, limit)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield Piece(piece)
                    else:
                        said = piece
        assert said is not None  # every stream ends with it
        if said.text is None:
            raise NoAnswerError(f"{member.name}: {said.error}", said.refused)
        self._candidates = [said]
        self._answer = Completion(said.text, "length" if said.finish_reason == "length" else "stop")

    async def _generate(self) -> AsyncGenerator[Event, None]:
        happened: asyncio.Queue[MemberPiece | Answered] = asyncio.Queue()
        first = len(self._ask.given)
        with self._timed("generate"):
            tasks = [
                asyncio.create_task(self._one(first + at, member, sample, happened))
                for at, (member, sample) in enumerate(self._slots)
            ]
            try:
                while (why := self._enough()) is None:
                    try:
                        async with asyncio.timeout(self._left(self._until())):
                            event = await happened.get()
                    except TimeoutError:
                        continue  # `_enough` knows what that means
                    if isinstance(event, Answered):
                        self._candidates[event.index] = event.candidate
                    yield event
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for at, (member, _) in enumerate(self._slots, first):
            if self._candidates[at] is None:
                self._candidates[at] = Candidate(member.name, error=why)
        for candidate in self._known():
            if candidate.text is None:
                self._degraded.append(f"{candidate.model}: {candidate.error}")
        if all(candidate.text is None for candidate in self._known()):
            told = "; ".join(self._degraded) or "no candidates"
            raise NoAnswerError(f"no candidate: {told}", self._refused())

    def _refused(self) -> Refusal | None:
        """Why no model will ever answer; None: one might."""
        reasons = [candidate.refused for candidate in self._known()]
        if not reasons or None in reasons:
            return None
        return "too long" if "too long" in reasons else "other"

    async def _one(
        self, index: int, member: Member, sample: int, happened: asyncio.Queue[MemberPiece | Answered]
    ) -> None:
        """Ask one member for one candidate, and put what happens into the queue."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = self._patience.timeouts_s.get(member.name)
        said: Candidate | None = None
        async with contextlib.aclosing(self._asked(member, sample, self._ask.follow_members, limit)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    happened.put_nowait(MemberPiece(index, member.name, piece))
                else:
                    said = piece
        assert said is not None  # every stream ends with it
        happened.put_nowait(Answered(index, said, loop.time() - began))

    async def _asked(
        self, member: Member, sample: int, follow: bool, limit: float | None
    ) -> AsyncGenerator[str | Candidate, None]:
        """Pieces of a member's answer if they are followed, then its candidate, whatever goes wrong."""
        try:
            if follow:
                stream = member.stream(self._ask.prompt, sample, self._ask.change)
                async with contextlib.aclosing(_in_time(stream, limit)) as pieces:
                    async for piece in pieces:
                        yield piece
            else:
                async with asyncio.timeout(limit):
                    candidate = await member.answer(self._ask.prompt, sample, self._ask.change)
                yield candidate
        except TimeoutError:
            yield Candidate(member.name, error=f"no answer within {limit:g} s")
        except Exception as error:  # whatever the way to a replica raises
            yield Candidate(member.name, error=one_line(error))

    def _until(self) -> float:
        """The share of the deadline that generation may take: all of it while there is no answer at all."""
        answered = any(candidate.text is not None for candidate in self._known())
        return self._patience.generation_share if answered else 1.0

    def _enough(self) -> str | None:
        """Why no further answer is waited for, as those are told whose is missing; None: it is."""
        if all(candidate is not None for candidate in self._candidates):
            return "answered"
        answered = {candidate.model for candidate in self._known() if candidate.text is not None}
        if self._patience.quorum is not None and len(answered) >= self._patience.quorum:
            return f"not waited for: {len(answered)} others had answered"
        if self._left(self._until()) == 0.0:
            return f"no answer within {self._until() * (self._deadline_s or 0.0):.3g} s"
        return None

    async def _rank(self) -> AsyncGenerator[Event, None]:
        candidates = self._known()
        share = self._patience.generation_share + self._patience.ranking_share
        limit = self._patient_with("ranker", self._left(share))
        if limit == 0.0:  # the only answer came late: there is nothing to compare, and time for it
            limit = self._left()
        budget = None if limit is None else 0.8 * limit  # the round that runs then should still end in time
        why = "out of time"
        with self._timed("rank"):
            try:
                if self._ask.follow_members:
                    stream = self._parts.ranker.rounds(self._ask.prompt, candidates, budget)
                    async with contextlib.aclosing(_in_time(stream, limit)) as rounds:
                        async for ranking in rounds:
                            self._ranking = blanks_last(ranking, candidates)
                            yield Ranked(self._ranking, candidates)
                else:
                    async with asyncio.timeout(limit):
                        ranking = await self._parts.ranker.rank_one(self._ask.prompt, candidates, budget)
                        self._ranking = blanks_last(ranking, candidates)
            except TimeoutError:
                why = f"no ranking within {limit:g} s"
            except Exception as error:  # whatever the ranker, or the way to it, raises
                why = one_line(error)
        told = self._ranking if self._ask.follow_members else None
        if self._ranking is not None and self._ranking.complete:
            self._parts.standing.add(candidates, self._ranking)
        elif self._ranking is not None and self._ranking.comparisons:
            self._degraded.append(f"ranker: {why}; the ranking so far counts")
        else:
            self._ranking = blanks_last(self._parts.standing.ranking(candidates), candidates)
            self._degraded.append(f"ranker: {why}; answers stand in the order of their models' record so far")
        if self._ranking is not told:
            yield Ranked(self._ranking, candidates)

    async def _fuse(self) -> AsyncGenerator[Event, None]:
        ranking, candidates = self._ranking, self._known()
        assert ranking is not None
        best = candidates[ranking.order[0]]
        fuser = self._parts.fuser if self._ask.model == BLEND else None
        if fuser is None:
            if is_blank(best.text or ""):
                raise NoAnswerError(BLANK)
            self._take(best, ranking.order[:1])
            yield Piece(self._answer.text)
            return
        self._fused_from = best_of(ranking.order, candidates, self._parts.top_k)
        yield Fusing(self._fused_from)
        texts = [candidates[at].text or "" for at in self._fused_from]
        limit = self._patient_with("fuser", self._left())
        written = ""
        with self._timed("fuse"):
            try:
                if self._ask.follow:
                    stream = fuser.stream(self._ask.prompt, texts, self._ask.change)
                    async with contextlib.aclosing(_in_time(stream, limit)) as pieces:
                        async for piece in pieces:
                            if isinstance(piece, str):
                                written += piece
                                yield Piece(piece)
                            else:
                                self._answer = piece
                else:
                    async with asyncio.timeout(limit):
                        self._answer = await fuser.fuse(self._ask.prompt, texts, self._ask.change)
                    yield Piece(self._answer.text)
                self._fused_from = self._fused_from[: self._answer.candidates_read]
                return
            except TimeoutError:
                why = f"no answer within {limit:g} s"
            except Exception as error:  # whatever the fuser, or the way to it, raises
                why = one_line(error)
        if written:
            self._degraded.append(f"fuser: {why}; the answer is what was written by then")
            self._answer = Completion(written, "length")
            return
        self._degraded.append(f"fuser: {why}; the best candidate instead")
        self._take(best, ranking.order[:1])
        yield Piece(self._answer.text)

    def _take(self, best: Candidate, at: tuple[int, ...]) -> None:
        """The best candidate is the answer; its tokens count as the candidate's."""
        self._fused_from = at
        self._answer = Completion(best.text or "", "length" if best.finish_reason == "length" else "stop")


async def _in_time(items: AsyncGenerator[_T, None], limit: float | None) -> AsyncGenerator[_T, None]:
    """The items, as long as they come within `limit` seconds; then TimeoutError. `items` is closed in any case.

    `asyncio.timeout` must not be open while an item is out: it would cancel whoever works on that.
    """
    until = None if limit is None else asyncio.get_running_loop().time() + limit
    async with contextlib.aclosing(items):
        while True:
            async with asyncio.timeout_at(until):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item
