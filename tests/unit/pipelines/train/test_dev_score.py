"""Scores of the candidates that a ranker chooses, worked out by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_rows import write

from llm_blender_ray.pipelines.train.dev_score import ChoiceMetrics, chosen_scores, full_pairs
from llm_blender_ray.pipelines.train.rows import TrainingRow, read_training_rows

METRICS = ["q", "r"]
SCORES = [
    [("a", 1.0, 0.0), ("b", 3.0, 4.0), ("c", 2.0, 2.0)],  # the best in the mean is b
    [("x", 5.0, 1.0), ("y", 4.0, 6.0), ("x", 5.0, 1.0)],  # a text twice: y is best
    [("alone", 7.0, 7.0)],
]
PAIRS = [[(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], [(0, 1), (1, 0)], []]


@pytest.fixture
def rows(tmp_path: Path) -> list[TrainingRow]:
    given = [
        {"instruction": f"{i}", "candidates": [{"text": t, "scores": {"q": q, "r": r}} for t, q, r in row]}
        for i, row in enumerate(SCORES)
    ]
    return read_training_rows(write(tmp_path / "rows.jsonl", given))


def test_every_pair_of_different_texts_is_compared_in_both_orders(rows: list[TrainingRow]) -> None:
    pairs = list(full_pairs(rows, METRICS))
    assert [(pair.row, pair.left, pair.right) for pair in pairs] == [
        (number, *pair) for number, of_row in enumerate(PAIRS) for pair in of_row
    ]
    assert pairs[1].lead == (-1.0, -2.0)
    assert pairs[-1].lead == (-1.0, 5.0)


def test_the_winner_of_all_pairs_is_chosen(rows: list[TrainingRow]) -> None:
    """Row 0: sums of logit(i, j) - logit(j, i) are 2 - 2 + 1 = ... a: -1.5, b: 1 - 0.5, c: the rest, 1."""
    logits = [0.0, -1.0, 1.0, -0.5, 0.5, 0.0, 2.0, -1.0]  # c leads a by 1.5, b by 0.5; b leads a by 1; x leads y
    found = chosen_scores(rows, list(full_pairs(rows, METRICS)), logits, METRICS)
    assert found.by_metric["q"] == pytest.approx(
        {
            "selected": (2 + 5 + 7) / 3,
            "oracle": (3 + 4 + 7) / 3,
            "random": (2 + 14 / 3 + 7) / 3,
            "gain": (2 + 5 + 7) / 3 - (2 + 14 / 3 + 7) / 3,
        }
    )
    assert found.by_metric["r"]["selected"] == pytest.approx((2 + 1 + 7) / 3)
    assert found.dev_score == pytest.approx(((2 + 5 + 7) / 3 + (2 + 1 + 7) / 3) / 2)
    assert found.flat()["r/selected"] == found.by_metric["r"]["selected"]


def test_a_ranker_that_is_right_reaches_the_oracle(rows: list[TrainingRow]) -> None:
    pairs = list(full_pairs(rows, METRICS))
    found = chosen_scores(rows, pairs, [sum(pair.lead) for pair in pairs], METRICS)
    for of_metric in found.by_metric.values():
        assert of_metric["selected"] == of_metric["oracle"]


def test_batches_are_put_together_and_ties_are_no_comparisons(tmp_path: Path) -> None:
    tied = [{"text": text, "scores": {"q": q}} for text, q in (("a", 1.0), ("b", 1.0), ("c", 0.0))]
    rows = read_training_rows(write(tmp_path / "rows.jsonl", [{"instruction": "x", "candidates": tied}]))
    pairs = list(full_pairs(rows, ["q"]))
    metrics = ChoiceMetrics(rows, pairs, ["q"])
    for _ in range(2):  # an evaluation leaves nothing behind
        first = SimpleNamespace(predictions=torch.tensor([9.0, 1.0, 9.0, 1.0]))  # ab, ac, ba, bc
        assert metrics(first, compute_result=False) == {}
        last = metrics(SimpleNamespace(predictions=torch.tensor([1.0, -1.0])), compute_result=True)  # ca, cb
        assert last["accuracy"] == 3 / 4
        assert (last["dev_score"], last["q/selected"]) == (1.0, 1.0)
