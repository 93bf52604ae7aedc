"""Stage of `blend score`: a metric scores the answers of each row by the row's references.

A row passes through without scores if it has no reference, an error, or references that the metric is not for.
Scores are better when higher: those of a metric that is better when lower have their sign reversed.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.actors.metric_scores import MetricScores
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.configs.parts import PartSettings

SCORING_FAILED = "scoring failed: "
_ROWS_AT_ONCE = 64  # whose texts a metric gets as one batch


def texts_to_score(blend: Blend) -> list[str]:
    """The different texts of a row's candidates and of its fused answer."""
    texts = [*(candidate.text for candidate in blend.candidates), blend.fused]
    return list(dict.fromkeys(text for text in texts if text is not None))


class ScoreAnswers:
    """Scores the answers of every row by one metric, in a thread of its own."""

    results_version: ClassVar[int] = 1  # raise it when equal rows get other scores, or other columns of them

    def __init__(self, settings: PartSettings) -> None:
        """Load the metric: `settings` are a `quality.metrics.Metric`.

        Raises:
            ModelLoadError: Its model can't be used.
        """
        self._metric = settings.load()
        self._thread = ThreadPoolExecutor(1, "metric")  # a metric, and torch's threads, belong to one thread

    async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
        """Run the stage on these blends."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._scored, blends)

    async def check_health(self) -> None:
        """A model in this process can score as long as the process lives."""

    def fail(self, blend: Blend, why: str) -> Blend:
        """The blend as it is when scoring it can't be tried any more."""
        return blend if blend.error else replace(blend, scored=MetricScores(error=f"{SCORING_FAILED}{why}"))

    def _scored(self, blends: Sequence[Blend]) -> list[Blend]:
        done = list(blends)
        todo = [i for i, blend in enumerate(done) if is_scorable(blend) and self._metric.applies(blend.references)]
        for start in range(0, len(todo), _ROWS_AT_ONCE):
            places = todo[start : start + _ROWS_AT_ONCE]
            for i, blend in zip(places, self._batch([done[i] for i in places]), strict=True):
                done[i] = blend
        return done

    def _batch(self, blends: Sequence[Blend]) -> list[Blend]:
        """Score rows together, or one by one where that fails, so that only the rows that fail lack scores."""
        try:
            return self._together(blends)
        except Exception as error:  # whatever a metric raises for a text
            if len(blends) == 1:
                return [self.fail(blends[0], one_line(error))]
            return [one for blend in blends for one in self._batch([blend])]

    def _together(self, blends: Sequence[Blend]) -> list[Blend]:
        texts = [texts_to_score(blend) for blend in blends]
        references = [blend.references for blend, some in zip(blends, texts, strict=True) for _ in some]
        sign = 1 if self._metric.higher_is_better else -1
        found = self._metric.checked_score(references, [text for some in texts for text in some])
        scores = (sign * score for score in found)
        done = []
        for blend, some in zip(blends, texts, strict=True):
            by_text: dict[str | None, float] = {text: next(scores) for text in some}
            of_each = tuple(by_text.get(candidate.text) for candidate in blend.candidates)
            done.append(replace(blend, scored=MetricScores(of_each, by_text.get(blend.fused))))
        return done


def is_scorable(blend: Blend) -> bool:
    """Whether a row has something to score, and references to score it by."""
    return blend.error is None and bool(blend.references) and bool(texts_to_score(blend))
