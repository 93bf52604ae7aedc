"""Stage of `blend judge`: an LLM judge compares pairs of the answers of each row.

A tournament chooses the pairs (`actors.tournaments`), so every strategy of rankers is a design. Equal texts are one
player: a judge is not asked about them, and they are tied. A pair without a verdict is left out, with its error.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import ClassVar

from llm_blender_ray.actors.errors import RowError, one_line
from llm_blender_ray.actors.judged_pairs import FUSED, Answer, JudgedAnswers, JudgedPair, JudgeReply
from llm_blender_ray.actors.records import Blend, Comparison, Matchup, digest
from llm_blender_ray.actors.scorers.judge import LLMJudge
from llm_blender_ray.actors.scorers.verdicts import FOUR_WAY, SCORES, THREE_WAY
from llm_blender_ray.actors.tournaments import Pair, tournament
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.judges import (
    ALL_MODELS,
    BLEND_CONTESTANT,
    RANKER_CONTESTANT,
    PairDesign,
    PairwiseJudge,
)
from llm_blender_ray.configs.rubrics import Rubric
from llm_blender_ray.configs.strategies import Strategy, ToReference

JUDGING_FAILED = "judging failed: "


class Replies:
    """Replies of a judge to rows, so that no pair is paid for twice: known ones, and a place for new ones."""

    def __init__(
        self,
        known: Mapping[str, JudgeReply] | None = None,
        keep: Callable[[str, JudgeReply], None] | None = None,
    ) -> None:
        """Take known replies.

        Args:
            known: Replies by the keys of their pairs (`JudgedPair.key`).
            keep: Called in a thread with every new reply of the judge, before it counts.
        """
        self._known = dict(known or {})
        self._keep = keep

    def get(self, key: str) -> JudgeReply | None:
        """The reply to a pair; None if it has to be requested."""
        return self._known.get(key)

    async def add(self, key: str, reply: JudgeReply) -> None:
        """Keep a new reply; one that is no text, as of a server that is down, is requested again later."""
        if self._keep and reply.text is not None:
            await asyncio.to_thread(self._keep, key, reply)


class JudgePairs:
    """Lets one LLM judge the answers of every row pairwise. A row with an error passes through."""

    results_version: ClassVar[int] = 1  # raise it when equal rows get other pairs, or other columns of them

    def __init__(self, settings: PairwiseJudge) -> None:
        """Load the LLM.

        Raises:
            ModelLoadError: The LLM can't be used.
        """
        rubric = settings.rubric or Rubric()
        self._pairs = settings.pairs or PairDesign()
        self._judge = LLMJudge(settings.llm, rubric, FOUR_WAY if rubric.four_way else THREE_WAY)
        # No call begins before an earlier reply is kept: a killed process repeats no more calls than run at once.
        self._slots = asyncio.Semaphore(settings.llm.width)

    async def __call__(self, blends: Sequence[Blend], replies: Replies | None = None) -> list[Blend]:
        """Run the stage on these blends, all at once.

        Args:
            blends: The rows.
            replies: Those that need no call.
        """
        known = replies or Replies()
        return list(await asyncio.gather(*(self._one(blend, known) for blend in blends)))

    async def check_health(self) -> None:
        """Check that the LLM can still answer.

        Raises:
            BlendError: It cannot, for any prompt.
        """
        await self._judge.check_health()

    def fail(self, blend: Blend, why: str) -> Blend:
        """The blend as it is when judging it can't be tried any more."""
        return blend if blend.error else replace(blend, judged=JudgedAnswers(error=f"{JUDGING_FAILED}{why}"))

    async def _one(self, blend: Blend, known: Replies) -> Blend:
        if blend.error is not None:
            return blend
        try:
            return replace(blend, judged=await self._judged(blend, known))
        except RowError as error:
            return self.fail(blend, one_line(error))

    async def _judged(self, blend: Blend, known: Replies) -> JudgedAnswers:
        players = players_of(blend, self._pairs)
        texts = list(players)
        game = tournament(
            strategy_of(blend, self._pairs, texts), texts, top_k=self._pairs.top_k, salt=digest(blend.prompt).hex()
        )
        replies: dict[Pair, JudgeReply] = {}
        usage = TokenUsage()
        while asked := game.ask():
            game.skip(own := [pair for pair in asked if _of_one_model(blend, *(players[texts[i]] for i in pair))])
            asked = [pair for pair in asked if pair not in own]
            made = await asyncio.gather(*(self._reply(blend, texts[i], texts[j], known) for i, j in asked))
            for pair, reply in zip(asked, made, strict=True):
                replies[pair], usage = reply, usage + reply.usage
                if reply.preferred is None:
                    game.skip([pair])
                else:
                    game.tell([Comparison(*pair, SCORES[reply.preferred])])
        pairs = [
            JudgedPair(left, right, reply.preferred, reply.text, reply.error, pair_key(blend, texts[i], texts[j]))
            for (i, j), reply in sorted(replies.items())
            for left in players[texts[i]]
            for right in players[texts[j]]
            if not _of_one_model(blend, [left], [right])
        ]
        equal = [JudgedPair(*two, "tie") for same in players.values() for two in permutations(same, 2)]
        tied = [one for one in equal if not _of_one_model(blend, [one.left], [one.right])]
        return JudgedAnswers((*pairs, *tied), usage=usage)

    async def _reply(self, blend: Blend, left: str, right: str, known: Replies) -> JudgeReply:
        key = pair_key(blend, left, right)
        if (had := known.get(key)) is not None:
            return had
        async with self._slots:
            reply = await self._judge.decide(Matchup(blend.prompt, left, right))
            await known.add(key, reply)
        return reply


def pair_key(blend: Blend, left: str, right: str) -> str:
    """See `JudgedPair.key`."""
    return digest(blend.prompt, left, right).hex()


def contestants_of(blend: Blend, pairs: PairDesign) -> list[Answer]:
    """Answers of a row that are compared, candidates first; those without a text are left out."""
    names = {*pairs.contestants, *([pairs.baseline] if pairs.baseline else [])}
    first = blend.ranking.order[0] if blend.ranking and blend.ranking.order else None
    found: list[Answer] = [
        i
        for i, candidate in enumerate(blend.candidates)
        if candidate.text is not None
        and (ALL_MODELS in names or candidate.model in names or (RANKER_CONTESTANT in names and i == first))
    ]
    return [*found, FUSED] if BLEND_CONTESTANT in names and blend.fused is not None else found


def strategy_of(blend: Blend, pairs: PairDesign, texts: Sequence[str]) -> Strategy:
    """Strategy of a row's tournament.

    Raises:
        RowError: The row has no answer of the baseline.
    """
    strategy: Strategy = pairs.design
    if pairs.baseline is not None:
        only = pairs.model_copy(update={"contestants": (pairs.baseline,)})
        answers = contestants_of(blend, only)
        if not answers:
            raise RowError(f"no answer of the baseline {pairs.baseline}")
        strategy = ToReference(reference=texts.index(_text(blend, answers[0])))
    if pairs.comparisons_per_row is not None:
        strategy = strategy.model_copy(update={"budget": pairs.comparisons_per_row})
    return strategy


def players_of(blend: Blend, pairs: PairDesign) -> dict[str, list[Answer]]:
    """Answers of a row that are compared, by their texts."""
    players: dict[str, list[Answer]] = {}
    for one in contestants_of(blend, pairs):
        players.setdefault(_text(blend, one), []).append(one)
    return players


def _text(blend: Blend, answer: Answer) -> str:
    return (blend.fused if answer == FUSED else blend.candidates[answer].text) or ""


def _of_one_model(blend: Blend, left: Sequence[Answer], right: Sequence[Answer]) -> bool:
    """Whether all answers of both sides are samples of one model, which no statistic compares."""
    names = {None if one == FUSED else blend.candidates[one].model for one in (*left, *right)}
    return len(names) == 1 and names != {None}
