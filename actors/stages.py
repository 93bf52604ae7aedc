"""Stages of a blend as small classes: each maps blends to blends with one more result.

The bulk path runs them over Ray Data (`pipelines.bulk.executor`); the service and the sequential reference run the
same models one prompt at a time (`pipelines.online.blender`). A stage never raises for a row: a failure is the
`error` of its candidate or blend, and blends that already have an error pass through unchanged.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from llm_blender_ray.actors.engines import Engine
from llm_blender_ray.actors.errors import BLANK, one_line, usage_of_error
from llm_blender_ray.actors.fusers import load_fuser
from llm_blender_ray.actors.generator import Generator
from llm_blender_ray.actors.ranker import Ranker, blanks_last
from llm_blender_ray.actors.records import Blend, Candidate, Ranking, is_blank
from llm_blender_ray.configs.schema import FuserSettings as FuserSettings
from llm_blender_ray.configs.schema import ModelSettings
from llm_blender_ray.configs.schema import RankerSettings as RankerSettings

# How the errors of rows begin that a stage failed on; a later run that has the stage, too, tries them again.
NOTHING_TO_RANK, RANKING_FAILED, FUSING_FAILED = "no candidate", "ranking failed: ", "fusing failed: "


class Generate:
    """Adds one base LLM's candidates to every blend that lacks them: as many as its `samples` says, all at once.

    A candidate of its own that has an error counts as missing, unless the error is the prompt's own: the new one
    takes its place (`with_new`).
    """

    results_version: ClassVar[int] = 1  # raise it when equal rows get other candidates, or other columns of them

    def __init__(self, settings: ModelSettings, shared: Engine | None = None) -> None:
        """Load the model.

        Args:
            settings: Settings of the LLM.
            shared: See `engines.load_engine`.

        Raises:
            ModelLoadError: The LLM can't be used.
        """
        self._generator = Generator(settings, shared)
        self._samples = settings.samples

    async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
        """Run the stage on these blends, all at once."""
        return await asyncio.gather(*map(self._one, blends))

    async def check_health(self) -> None:
        """Check that the LLM can still answer.

        Raises:
            BlendError: It cannot, for any prompt.
        """
        await self._generator.check_health()

    async def _one(self, blend: Blend) -> Blend:
        if blend.error is not None:
            return blend
        asked = (self._generator.answer(blend.prompt, sample) for sample in self._missing(blend))
        answers = await asyncio.gather(*asked)
        return replace(blend, candidates=(*blend.candidates, *answers))

    def fail(self, blend: Blend, why: str) -> Blend:
        """The blend as it is when asking the LLM can't be tried any more."""
        if blend.error is not None:
            return blend
        failed = [Candidate(self._generator.name, error=why) for _ in self._missing(blend)]
        return replace(blend, candidates=(*blend.candidates, *failed))

    def _missing(self, blend: Blend) -> list[int]:
        """The samples that the blend lacks."""
        own = [candidate for candidate in blend.candidates if candidate.model == self._generator.name]
        return missing_samples(own, self._samples)


class Rank:
    """Ranks every blend's candidates; those without text are left out. None at all is the blend's error."""

    results_version: ClassVar[int] = 1  # raise it when equal rows get other rankings, or other columns of them

    def __init__(self, settings: RankerSettings) -> None:
        """Load the model.

        Raises:
            ModelLoadError: The ranker can't be used.
            CacheError: Its cache can't be used.
        """
        self._ranker = Ranker(settings)

    async def __call__(self, blends: Sequence[Blend], known: Mapping[bytes, float] = {}) -> list[Blend]:
        """known: see `Ranker.rank`."""
        done = [replace(blend, error=blend.error or no_candidate(blend)) for blend in blends]
        todo = [i for i, blend in enumerate(done) if blend.error is None]
        rankings = await self._ranker.rank([(done[i].prompt, done[i].candidates) for i in todo], known)
        for i, ranking in zip(todo, rankings, strict=True):
            if isinstance(ranking, Exception):
                usage = usage_of_error(ranking)
                done[i] = replace(done[i], error=f"{RANKING_FAILED}{one_line(ranking)}", ranking_usage=usage)
            else:
                ranking = blanks_last(ranking, done[i].candidates)
                done[i] = replace(done[i], ranking=ranking, ranking_usage=ranking.usage)
        return done

    @property
    def identity(self) -> str | None:
        """Identifies this scorer's scores (`Traits.identity`)."""
        return self._ranker.identity

    def fail(self, blend: Blend, why: str) -> Blend:
        """The blend as it is when ranking it can't be tried any more."""
        return blend if blend.error else replace(blend, error=f"{RANKING_FAILED}{why}")

    async def check_health(self) -> None:
        """Check that the scorer can still score.

        Raises:
            BlendError: It cannot, for any row.
        """
        await self._ranker.check_health()


class Fuse:
    """Writes one answer from every blend's best candidates."""

    results_version: ClassVar[int] = 1  # raise it when equal rows get other fusions, or other columns of them

    def __init__(self, settings: FuserSettings) -> None:
        """Load the model.

        Raises:
            ModelLoadError: The fuser can't be used.
        """
        self._fuser = load_fuser(settings)
        self._top_k = settings.top_k

    async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
        """Run the stage on these blends, all at once."""
        return await asyncio.gather(*map(self._one, blends))

    async def check_health(self) -> None:
        """Check that the fuser can still write.

        Raises:
            BlendError: It cannot, for any row.
        """
        await self._fuser.check_health()

    async def _one(self, blend: Blend) -> Blend:
        blend = select_best(blend, self._top_k)
        if blend.error is not None:
            return blend
        texts = [blend.candidates[at].text or "" for at in blend.fused_from]
        try:
            answer = await self._fuser.fuse(blend.prompt, texts)
        except Exception as error:  # whatever a model raises for a row; CancelledError passes
            return replace(self.fail(blend, one_line(error)), fusing_usage=usage_of_error(error))
        read = blend.fused_from[: answer.candidates_read]
        return replace(blend, fused=answer.text, fused_from=read, fusing_usage=answer.usage)

    def fail(self, blend: Blend, why: str) -> Blend:
        """The blend as it is when fusing it can't be tried any more."""
        return blend if blend.error else replace(blend, error=f"{FUSING_FAILED}{why}")


class TakeBest:
    """Stage in place of a fuser: the answer is the best candidate's."""

    def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
        """Run the stage on these blends."""
        return [self._one(select_best(blend, 1)) for blend in blends]

    def _one(self, blend: Blend) -> Blend:
        if blend.error is not None:
            return blend
        best = blend.candidates[blend.fused_from[0]].text or ""
        return replace(blend, error=BLANK) if is_blank(best) else replace(blend, fused=best)


def lacks_answer(candidate: Candidate) -> bool:
    """Whether the model is to be asked again: the candidate is an error, and not the prompt's own."""
    return candidate.text is None and candidate.refused is None


def missing_samples(own: Sequence[Candidate], samples: int) -> list[int]:
    """Indexes of a model's samples that are missing or failed, given its own candidates."""
    return [i for i in range(samples) if i >= len(own) or lacks_answer(own[i])]


def with_new(
    candidates: Sequence[Candidate], new: Mapping[str, Sequence[Candidate]], models: Sequence[str]
) -> tuple[Candidate, ...]:
    """Put the candidates that models have added to a blend into its list.

    Args:
        candidates: Those that the blend had.
        new: What each model was asked for, by its name.
        models: The order in which candidates are appended that take no other's place.

    Returns:
        The list; a new candidate stands where the same model's candidate without an answer stood.
    """
    left = {model: list(made) for model, made in new.items()}
    listed = [
        left[one.model].pop(0) if one.model is not None and left.get(one.model) and lacks_answer(one) else one
        for one in candidates
    ]
    return (*listed, *(candidate for model in models for candidate in left.get(model, ())))


def no_candidate(blend: Blend) -> str | None:
    """Reason why nothing can be ranked; None when something can."""
    if any(candidate.text is not None for candidate in blend.candidates):
        return None
    if not blend.candidates:
        return f"{NOTHING_TO_RANK}s"
    return f"{NOTHING_TO_RANK}: " + "; ".join(f"{c.model}: {c.error}" for c in blend.candidates)


def select_best(blend: Blend, top_k: int) -> Blend:
    """The blend with `fused_from` set to its best `top_k` candidates; without a ranking, the given order counts."""
    if blend.error is not None:
        return blend
    if error := no_candidate(blend):
        return replace(blend, error=error)
    given = tuple(i for i, candidate in enumerate(blend.candidates) if candidate.text is not None)
    order = given if blend.ranking is None else blend.ranking.order
    return replace(blend, fused_from=best_readable(order, blend.candidates, top_k))


def best_readable(order: Sequence[int], candidates: Sequence[Candidate], top_k: int) -> tuple[int, ...]:
    """The first `top_k` of the order that have something to read; of blank candidates alone, those."""
    readable = [i for i in order if not is_blank(candidates[i].text or "")]
    return tuple(readable or order)[:top_k]


def margin(ranking: Ranking) -> float:
    """Margin of the first of two candidates: (logit(0, 1) - logit(1, 0)) / 2, free of position bias.

    Its sign is never against the ranking, which puts a blank candidate last whatever its logits.
    """
    forth, back = ranking.logits[0][1], ranking.logits[1][0]
    if forth is not None and back is not None and (forth - back) * (1 if ranking.order[0] == 0 else -1) > 0:
        return (forth - back) / 2
    return ((ranking.scores[0] or 0.0) - (ranking.scores[1] or 0.0)) / 2
