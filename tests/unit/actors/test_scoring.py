"""Scores of rows by a metric: each text once, and a text that the metric fails on costs its row alone."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from llm_blender_ray.actors.metric_scores import MetricScores
from llm_blender_ray.actors.records import Blend, Candidate, Prompt
from llm_blender_ray.actors.scoring import ScoreAnswers, is_scorable
from llm_blender_ray.pipelines.quality.metrics import Metric, read_metric


class Fussy(Metric):
    """Length of a text; fails on "bad". Records its batches."""

    name = "fussy"
    label = "fussy"
    upper_bound = 99.0
    batches: ClassVar[list[list[str]]] = []

    def score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        self.batches.append(list(texts))
        if "bad" in texts:
            raise RuntimeError("it is\nbad")
        return [float(len(text)) for text in texts]


def blend(*texts: str | None, **changes: object) -> Blend:
    candidates = tuple(Candidate("m", text, None if text is not None else "timeout") for text in texts)
    return replace(Blend(Prompt("1", "p"), candidates, references=("r",)), **changes)


def scored(metric: Metric, *blends: Blend) -> list[MetricScores | None]:
    return [one.scored for one in asyncio.run(ScoreAnswers(metric)(blends))]


def test_each_candidate_with_text_and_the_fused_answer_get_a_score() -> None:
    one, none = scored(read_metric("exact"), blend("r", None, "x", fused="r"), blend("x"))
    assert one == MetricScores((1.0, None, 0.0), 1.0)
    assert none == MetricScores((0.0,), None)


def test_rows_without_reference_text_or_with_an_error_pass_through() -> None:
    rows = [blend("r", references=()), blend(None), blend("r", error="bad row"), blend()]
    assert not any(map(is_scorable, rows))
    assert scored(read_metric("exact"), *rows) == [None] * 4
    assert is_scorable(blend(fused="r"))


def test_rows_that_a_metric_is_not_for_have_no_score() -> None:
    listed = blend("1) x 2) b", references=("1) a 2) b",))
    assert scored(read_metric("parts"), listed, blend("1) r")) == [MetricScores((0.5,)), None]


def test_scores_are_better_when_higher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fussy, "higher_is_better", False)
    assert scored(Fussy(), blend("abc", fused="a")) == [MetricScores((-3.0,), -1.0)]


def test_equal_texts_of_a_row_are_scored_once() -> None:
    Fussy.batches.clear()
    scored(Fussy(), blend("a", "a", fused="a"), blend("a"))
    assert Fussy.batches == [["a", "a"]]


def test_a_text_that_the_metric_fails_on_costs_its_row_alone() -> None:
    good, bad, last = scored(Fussy(), blend("a"), blend("b", "bad"), blend("cc"))
    assert (good, last) == (MetricScores((1.0,)), MetricScores((2.0,)))
    assert bad == MetricScores(error="scoring failed: RuntimeError: it is bad")


def test_a_row_that_kills_the_process_gets_the_error_and_stays() -> None:
    stage = ScoreAnswers(Fussy())
    assert stage.fail(blend("a"), "it died").scored == MetricScores(error="scoring failed: it died")
    assert stage.fail(blend("a", error="bad"), "it died").scored is None
