"""Metrics that read a reference and a text with a model: BERTScore, BARTScore, BLEURT.

Their models are any compatible checkpoints: local folders or hub ids, safetensors or pickles without code. They are
loaded in the process that scores: an actor of `blend score`, or that of `blend evaluate`.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from llm_blender_ray.configs.metrics import BERTScoreModel, MetricModel
from llm_blender_ray.configs.registry import import_object
from llm_blender_ray.pipelines.quality.metrics import Metric

TextPairs = Sequence[tuple[str, str]]  # reference and text


class ModelMetric(MetricModel, Metric):
    """Metric with a model, which `implementation` loads; computed only where it is named."""

    by_default: ClassVar[bool] = False

    @functools.cached_property
    def _model(self) -> Any:
        return import_object(self.implementation)(self)

    def load(self) -> Self:
        """Load the model now, not at the first score.

        Raises:
            ModelLoadError: It can't be used.
        """
        _ = self._model
        return self

    @abstractmethod
    def score_pairs(self, pairs: TextPairs) -> list[float]:
        """Score different pairs of a reference and a text."""

    def score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        """Score a batch, each different pair once; with several references the best score counts."""
        pairs = [[(one, text) for one in several] for several, text in zip(references, texts, strict=True)]
        distinct = list(dict.fromkeys(pair for several in pairs for pair in several))
        found: Mapping[tuple[str, str], float] = dict(zip(distinct, self.score_pairs(distinct), strict=True))
        return [max(found[pair] for pair in several) for several in pairs]


class BERTScore(BERTScoreModel, ModelMetric):
    """BERTScore: how well the tokens of text and reference match, by the cosine of their contextual embeddings.

    The scores are those of the package `bert-score` without idf.

    Attributes:
        measure: `precision` matches each token of the text, `recall` each of the reference.
        layer: Number of layers whose output is compared; None: as `bert-score` chose for the model, by its name.
        baseline: Score that becomes 0 (1 stays), as in `bert-score`'s tables for `rescale_with_baseline`; None: the
            cosine itself.
    """

    name = "bertscore"
    label = "BERTScore"
    implementation = "llm_blender_ray.actors.metrics.bertscore:BERTScorer"
    lower_bound = -float("inf")  # with a baseline
    failed_score = 0.0
    report_order = 30

    baseline: Annotated[float, Field(ge=0, lt=1)] | None = None

    def score_pairs(self, pairs: TextPairs) -> list[float]:
        """See base class."""
        found: list[float] = self._model.scores([one for one, _ in pairs], [text for _, text in pairs])
        if self.baseline is None:
            return found
        return [(score - self.baseline) / (1 - self.baseline) for score in found]


class BARTScore(ModelMetric):
    """BARTScore: mean log-likelihood of a text's tokens given another, by a sequence-to-sequence model; at most 0.

    Attributes:
        direction: `recall`: of the reference, given the text; `precision`: of the text, given the reference; `f1`:
            their mean (the paper's F).
    """

    name = "bartscore"
    label = "BARTScore"
    implementation = "llm_blender_ray.actors.metrics.bartscore:LikelihoodScorer"
    lower_bound = -float("inf")
    upper_bound = 0.0
    failed_score = -11.0  # a uniform draw from 50,000 tokens has -10.8
    report_order = 40

    direction: Literal["recall", "precision", "f1"] = "recall"

    def score_pairs(self, pairs: TextPairs) -> list[float]:
        """See base class."""
        references, texts = [one for one, _ in pairs], [text for _, text in pairs]
        if self.direction == "f1":
            both = self._model.scores([*texts, *references], [*references, *texts])
            return [(a + b) / 2 for a, b in zip(both[: len(pairs)], both[len(pairs) :], strict=True)]
        given = (texts, references) if self.direction == "recall" else (references, texts)
        found: list[float] = self._model.scores(*given)
        return found


class BLEURT(ModelMetric):
    """Learned metric as BLEURT: a sequence classifier with one label that reads reference and text."""

    name = "bleurt"
    label = "BLEURT"
    implementation = "llm_blender_ray.actors.metrics.regression:Regressor"
    lower_bound = -float("inf")
    upper_bound = float("inf")
    failed_score = -2.0  # about the least that BLEURT gives
    report_order = 35

    def score_pairs(self, pairs: TextPairs) -> list[float]:
        """See base class."""
        found: list[float] = self._model.scores([one for one, _ in pairs], [text for _, text in pairs])
        return found
