"""Scores of rows' answers."""

from typing import ClassVar

from llm_blender_ray.pipelines.quality.answer_scores import AnswerScores, score_answers
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.rows.schema import read_row


class Letters(Metric):
    """Letters of the text; records what it is given."""

    name = "letters"
    label = "letters"
    upper_bound = 9.0
    seen: ClassVar[list[tuple[list[str], str]]] = []

    def score(self, references, texts):
        self.seen.extend((list(several), text) for several, text in zip(references, texts, strict=True))
        return [float(len(text)) for text in texts]


def test_equal_texts_are_scored_once_and_a_missing_one_is_worst(monkeypatch) -> None:
    monkeypatch.setattr(Letters, "seen", [])
    first = [{"model": "a", "text": "x"}, {"model": "b", "text": None, "error": "e"}, {"model": "c", "text": "x"}]
    rows = [
        read_row({"prompt": "p", "output": "r", "candidates": first, "fused": "xyz"}, "test"),
        read_row({"prompt": "q", "output": "s", "candidates": [{"model": "a", "text": "xy"}]}, "test"),
    ]
    assert score_answers(rows, {"letters": Letters()}) == [
        {"letters": AnswerScores([1, 0, 1], 3)},
        {"letters": AnswerScores([2], None)},
    ]
    assert Letters.seen == [(["r"], "x"), (["r"], "xyz"), (["s"], "xy")]
