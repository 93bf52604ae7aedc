"""Metrics of answers against references, and the registry of metrics (`llm_blender_ray.metrics`).

A metric scores a batch of texts at once, so that one that runs a model can fill its batches. To add one, derive
`Metric` (or `PairMetric` for a function of one reference and one text) and register the class: a built-in one by a
line in `METRICS`, one of another package by an entry point.
"""

import functools
import json
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import model_validator

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.configs.parts import ModelPart, Stage
from llm_blender_ray.configs.registry import Registry, RegistryError
from llm_blender_ray.configs.settings import RUNTIME_ONLY
from llm_blender_ray.configs.shorthand import read_shorthand

_PART = re.compile(r"(?:^|\s)(\d+)\)")
_MODEL = re.compile(r'model="(?:[^"]*/)?([^"/]+)/?"')  # only its last part is shown
_SCORE_NAME = re.compile(r"[\w.-]+")
_TOLERANCE = 1e-6  # of bounds: sentence BLEU of equal texts is 1.0000000000000004


class Metric(ModelPart):
    """Quality of a text, measured by its references. Fields of the class are options of the metric.

    A metric is constructed once and scores every batch: in this process (`blend evaluate`, `blend report`), or in
    Ray actors with its `num_gpus`, `num_cpus` and `replicas` (`blend score`). One that holds a model loads it when
    it scores first, in a `functools.cached_property` (`model_metrics.ModelMetric`).

    Attributes:
        name: Key in reports; the name that the class is registered under.
        label: Heading of its columns.
        higher_is_better: False for an error rate or a distance.
        lower_bound: Least possible score, or -inf.
        upper_bound: Greatest possible score, or inf.
        failed_score: Score of a candidate without text; None: the worse bound, which must be finite then.
        by_default: Whether it is computed without being named. False for one that needs a model or an endpoint.
        report_order: Place in `blend report`, lowest first. `blend evaluate` uses the order of the registry.
        report_from: Least mean of the best system that `blend report` shows; None: it always shows the metric.
    """

    stage: ClassVar[Stage] = "score"

    kind: str = ""  # `name`, as a part of what decides scores

    name: ClassVar[str]
    label: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    lower_bound: ClassVar[float] = 0.0
    upper_bound: ClassVar[float] = 1.0
    failed_score: ClassVar[float | None] = None
    by_default: ClassVar[bool] = True
    report_order: ClassVar[int] = 50
    report_from: ClassVar[float | None] = None

    @model_validator(mode="before")
    @classmethod
    def _with_kind(cls, value: Any) -> Any:
        return {"kind": cls.name, **value} if isinstance(value, dict) else value

    @abstractmethod
    def score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        """Score a batch.

        Args:
            references: References of each text, at least one.
            texts: As many texts.

        Returns:
            One score for each text; with several references, that of the nearest.
        """

    def applies(self, references: Sequence[str]) -> bool:
        """Return whether the metric has a meaning for a row; one row without drops the metric for all rows."""
        return True

    def load(self) -> Self:
        """See `configs.parts.PartSettings`: a metric is its own implementation."""
        return self

    def checked_score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        """Score a batch and check the result.

        Raises:
            BlendError: The number of scores is wrong, or one is not finite or out of bounds.
        """
        found = self.score(references, texts)
        if len(found) != len(texts):
            raise BlendError(f"metric {self.name!r}: expected {len(texts)} scores, got {len(found)}")
        least, most = self.lower_bound - _TOLERANCE, self.upper_bound + _TOLERANCE
        for score in found:
            if not (math.isfinite(score) and least <= score <= most):
                bounds = f"from {self.lower_bound:g} to {self.upper_bound:g}"
                raise BlendError(f"metric {self.name!r}: expected scores {bounds}, got {score!r}")
        return found

    @property
    def score_without_text(self) -> float:
        """Score of a candidate that has no text."""
        if self.failed_score is not None:
            return self.failed_score
        return self.lower_bound if self.higher_is_better else self.upper_bound

    @property
    def key(self) -> str:
        """Name with the options that are not defaults, as `--metric` takes it: `rouge_l:stemmer=true`."""
        fields = type(self).model_fields.items()
        decisive = {name for name, field in fields if RUNTIME_ONLY not in field.metadata and name != "kind"}
        given: dict[str, Any] = self.model_dump(exclude_defaults=True, include=decisive)
        options = ",".join(f"{name}={json.dumps(value)}" for name, value in given.items())
        return f"{self.name}:{options}" if options else self.name


class PairMetric(Metric):
    """Metric of one reference and one text, higher is better."""

    @abstractmethod
    def compare(self, reference: str, text: str) -> float:
        """Score of one text by one reference."""

    def score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        """Score a batch by `compare`; with several references the best score counts."""
        return [
            max(self.compare(reference, text) for reference in several)
            for several, text in zip(references, texts, strict=True)
        ]


class PartsRight(PairMetric):
    """Fraction of a numbered list's parts that the text has under the same number; for rows of such lists only."""

    name = "parts"
    label = "parts right"
    report_order = 0

    def applies(self, references: Sequence[str]) -> bool:
        """Whether all references are numbered lists."""
        return all(numbered_parts(reference) is not None for reference in references)

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        return parts_right(reference, text)


class ExactMatch(PairMetric):
    """1 if the text is the reference, outer white space aside."""

    name = "exact"
    label = "exact"
    report_order = 90
    report_from = 0.01

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        return float(text.strip() == reference.strip())


_WORDS, _MODELS = (f"llm_blender_ray.pipelines.quality.{name}" for name in ("word_metrics", "model_metrics"))
METRICS: Registry[type[Metric]] = Registry(
    "metric",
    "llm_blender_ray.metrics",
    {
        "parts": f"{__name__}:PartsRight",
        "exact": f"{__name__}:ExactMatch",
        "bleu": f"{_WORDS}:SentenceBleu",
        "rouge_l": f"{_WORDS}:RougeL",
        "rouge_1": f"{_WORDS}:Rouge1",
        "rouge_2": f"{_WORDS}:Rouge2",
        "rouge_lsum": f"{_WORDS}:RougeLsum",
        "chrf": f"{_WORDS}:ChrF",
        "bertscore": f"{_MODELS}:BERTScore",
        "bartscore": f"{_MODELS}:BARTScore",
        "bleurt": f"{_MODELS}:BLEURT",
    },
)


def default_metrics() -> list[Metric]:
    """Construct the metrics that are computed without being named, each once in a process.

    Returns:
        The built-in ones first; reports rank by the first that rows have.

    Raises:
        BlendError: A metric of another package cannot be used.
    """
    return [_with_defaults(kind) for kind in map(metric_class, METRICS.names()) if kind.by_default]


@functools.cache
def _with_defaults(kind: type[Metric]) -> Metric:
    return kind()


def read_metric(text: str, option: str = "--metric") -> Metric:
    """Construct the metric that the command line names: `name` or `name:option=value,...`, values being YAML.

    Args:
        text: The metric.
        option: The option that names it, for messages.

    Raises:
        ConfigError: The name or an option is wrong.
    """
    try:
        return read_shorthand(text, metric_class(text.partition(":")[0]))
    except (BlendError, ValueError) as error:
        raise ConfigError(f"{option} {text}: {error}") from error


def read_named_metrics(texts: Sequence[str]) -> dict[str, Metric]:
    """Construct metrics by the names of their scores: that of the metric, or an option `as` of any metric.

    Raises:
        ConfigError: One is wrong, or two have the same name.
    """
    found: dict[str, Metric] = {}
    for text in texts:
        kind, _, options = text.partition(":")
        given = options.split(",") if options else []
        names = [one.removeprefix("as=") for one in given if one.startswith("as=")]
        others = ",".join(one for one in given if not one.startswith("as="))
        metric = read_metric(f"{kind}:{others}" if others else kind)
        name = names[-1] if names else metric.name
        if not _SCORE_NAME.fullmatch(name):
            raise ConfigError(f"--metric {text}: as: expected letters, digits, _, - and ., got {name!r}")
        if name in found:
            raise ConfigError(f"--metric {text}: two scores are named {name}; give one another name with as=NAME")
        found[name] = metric
    return found


def read_metrics(texts: Sequence[str], order_by: str | None) -> tuple[list[Metric] | None, Metric | None]:
    """Construct the metrics that `--metric` and `--order-by` name; None where they name none.

    Raises:
        ConfigError: One is wrong.
    """
    named = [read_metric(text) for text in texts]
    return named or None, read_metric(order_by, "--order-by") if order_by else None


def metric_class(name: str) -> type[Metric]:
    """Class of a registered metric.

    Raises:
        BlendError: It is unknown, cannot be imported, or is not a metric.
    """
    try:
        found = METRICS.get(name)
    except RegistryError as error:
        raise BlendError(str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Metric)) or getattr(found, "name", None) != name:
        raise BlendError(f"metric {name!r}: expected a subclass of Metric with that name, got {found!r}")
    worst = found.lower_bound if found.higher_is_better else found.upper_bound
    if not math.isfinite(worst if found.failed_score is None else found.failed_score):
        raise BlendError(f"metric {name!r}: expected a finite failed_score, because its worse bound is infinite")
    return found


def metric_label(key: str) -> str:
    """Heading of a metric by its key, or of a given score, which need not be a registered metric."""
    name, _, options = key.partition(":")
    if name not in METRICS.names():
        return key
    label = metric_class(name).label
    options = _MODEL.sub(r"\1", options)
    return f"{label} ({options})" if options else label


def numbered_parts(text: str) -> list[str] | None:
    """Split `1) Paris 2) fox goat 3) went` into its parts; None for a text that is no list numbered from 1."""
    before, *found = _PART.split(text.strip())
    numbers, parts = found[::2], [part.strip() for part in found[1::2]]
    if before or not parts or numbers != [str(i) for i in range(1, len(parts) + 1)]:
        return None
    return parts


def parts_right(reference: str, text: str) -> float:
    """Fraction of the reference's parts that the text has under the same number."""
    wanted = numbered_parts(reference) or []
    given = numbered_parts(text) or []
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted) if wanted else 0.0
