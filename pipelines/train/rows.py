"""Training rows. A bulk run keeps a bad row with its error; in a training set it stops the training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Prompt, read_prompt
from llm_blender_ray.pipelines.rows.readers import read_rows


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row to learn from.

    Attributes:
        prompt: The prompt.
        texts: Texts of the candidates that have one.
        metrics: Each candidate's scores by metric.
        reference: The row's `output`, if given.
        ranking: Indexes of `texts`, best first, if given.
    """

    prompt: Prompt
    texts: tuple[str, ...]
    metrics: tuple[Mapping[str, float], ...]
    reference: str | None
    ranking: tuple[int, ...] | None

    def scores(self, metrics: Sequence[str]) -> list[tuple[float, ...]]:
        """Every candidate's scores, in the order of `metrics`.

        Raises:
            BlendError: A score is missing.
        """
        for i, given in enumerate(self.metrics):
            for metric in metrics:
                if metric not in given:
                    known = f"it has {', '.join(given)}" if given else "it has no scores"
                    raise BlendError(f"row {self.prompt.id}: candidate {i} lacks scores.{metric}; {known}")
        return [tuple(given[metric] for metric in metrics) for given in self.metrics]


@dataclass(frozen=True, slots=True)
class CandidateFilter:
    """Which candidates of a row are used.

    Attributes:
        models: Only theirs; None: of all models.
        decoding_methods: Only those with these `decoding_method`s; None: with any.
    """

    models: tuple[str, ...] | None = None
    decoding_methods: tuple[str, ...] | None = None

    def key(self) -> list[Any]:
        """The filter as a JSON value."""
        return [self.models, self.decoding_methods]

    def chosen(self, row: Mapping[str, Any]) -> list[int]:
        """Indexes of the candidates to use.

        Raises:
            BlendError: The row has candidates, but none to use.
        """
        given = row["candidates"] or []
        methods = [json.loads(candidate["extra"] or "{}").get("decoding_method") for candidate in given]
        found = [
            i
            for i, candidate in enumerate(given)
            if (self.models is None or candidate["model"] in self.models)
            and (self.decoding_methods is None or methods[i] in self.decoding_methods)
        ]
        if given and not found:
            kinds = zip((candidate["model"] for candidate in given), methods, strict=True)
            has = ", ".join(sorted({f"{model} ({method})" if method else f"{model}" for model, method in kinds}))
            raise BlendError(
                f"row {row['id']}: candidate_models and decoding_methods leave no candidate; it has {has}"
            )
        return found


def read_training_rows(
    uri: str, limit: int | None = None, wanted: CandidateFilter | None = None
) -> list[TrainingRow]:
    """Read the rows at `uri` into memory; a training stores them (`prepare`).

    Args:
        uri: The rows.
        limit: Rows to read; None: all.
        wanted: Which candidates; None: all.

    Raises:
        BlendError: There are no rows, or one is malformed or has none of the wanted candidates.
    """
    rows = [training_row(row, wanted or CandidateFilter()) for row in read_rows(uri, limit)]
    if not rows:
        raise BlendError(f"{uri}: no rows")
    return rows


def training_row(row: Mapping[str, Any], wanted: CandidateFilter) -> TrainingRow:
    """A row of `read_rows` as one to learn from.

    Raises:
        BlendError: It is malformed, or has none of the wanted candidates.
    """
    if row["error"] is not None:
        raise BlendError(row["error"])
    given = row["candidates"] or []
    answered = [i for i in wanted.chosen(row) if given[i]["text"] is not None]
    if json.loads(row["extra"] or "{}").get("ranking") is not None:
        raise BlendError(f"row {row['id']}: ranking: expected distinct indexes of the candidates")
    ranking = row["ranking"]
    if ranking is not None and not set(answered) <= set(ranking):
        raise BlendError(f"row {row['id']}: ranking leaves out candidates that have a text")
    return TrainingRow(
        prompt=read_prompt(row),
        texts=tuple(given[i]["text"] for i in answered),
        metrics=tuple(_metrics(given[i]["extra"]) for i in answered),
        reference=row["output"],
        ranking=None if ranking is None else tuple(answered.index(i) for i in ranking if i in answered),
    )


def _metrics(extra: str | None) -> dict[str, float]:
    scores = json.loads(extra or "{}").get("scores")
    if not isinstance(scores, dict):
        return {}
    return {k: float(v) for k, v in scores.items() if isinstance(v, int | float) and not isinstance(v, bool)}
