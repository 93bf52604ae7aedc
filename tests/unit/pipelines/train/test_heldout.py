"""Held-out pairs of a trained ranker: figures in both orders, and a ranker that decides nothing is named."""

import json
from pathlib import Path

import pytest
import torch
from paths import GOLDEN
from training_rows import write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm, save_pairrm
from llm_blender_ray.pipelines.train.heldout import heldout_pairs, measure_heldout
from llm_blender_ray.pipelines.train.rows import TrainingRow, read_training_rows

ANSWERS = json.loads((GOLDEN / "pairranker.json").read_text())
CASES = [case for case in ANSWERS["cases"] if "error" not in case and len(set(case["candidates"])) > 2][:8]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingRow]:
    """The golden cases, each candidate with its score by the original."""
    made = [
        {
            "id": str(number),
            "instruction": case["instruction"],
            "input": case["input"],
            "candidates": [
                {"text": text, "scores": {"own": score}}
                for text, score in zip(case["candidates"], case["scores_max_logits"], strict=True)
            ],
        }
        for number, case in enumerate(CASES)
    ]
    return read_training_rows(write(tmp_path_factory.mktemp("rows") / "rows.jsonl", made))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden ranker with the golden answers' budgets, as training saves it."""
    lengths = (ANSWERS["source_maxlength"], ANSWERS["candidate_maxlength"])
    network, tokenizer = load_pairrm(
        str(GOLDEN / "checkpoints" / "PairRM-hf"), source_max_length=lengths[0], candidate_max_length=lengths[1]
    )
    folder = tmp_path_factory.mktemp("ranker")
    save_pairrm(network, tokenizer, folder)
    return folder


def test_pairs_are_compared_in_both_orders_as_when_ranking(rows: list[TrainingRow], ranker: Path) -> None:
    pairs = heldout_pairs(rows, ["own"], per_row=3, seed=0)
    result = measure_heldout(str(ranker), rows, pairs)
    logits = [
        (CASES[pair.row]["logits"][pair.left][pair.right], CASES[pair.row]["logits"][pair.right][pair.left])
        for pair in pairs
    ]
    assert result.margins == pytest.approx([(forward - back) / 2 for forward, back in logits], abs=1e-4)
    right = sum((forward > back) == (pair.lead[0] > 0) for (forward, back), pair in zip(logits, pairs, strict=True))
    assert result.accuracy.accuracy == pytest.approx(right / 24)
    assert result.agreeing == sum(forward * back < 0 for forward, back in logits)
    assert (len(result.pairs), result.accuracy.prompts, result.ranked, result.constant) == (24, 8, 8, 0)
    assert f"both orders of {result.agreeing} of 24 pairs agree" in result.line()
    assert result.agreeing == 12
    assert [warning.partition(":")[0] for warning in result.warnings()] == [
        "hardly consistent",
        "at chance on held-out pairs",
    ]


def test_a_ranker_with_one_score_for_all_is_constant(rows: list[TrainingRow], ranker: Path, tmp_path: Path) -> None:
    network, tokenizer = load_pairrm(str(ranker))
    with torch.no_grad():
        network.head_layer[-1].weight.mul_(1e-6)
    save_pairrm(network, tokenizer, tmp_path)
    result = measure_heldout(str(tmp_path), rows, heldout_pairs(rows, ["own"], per_row=3, seed=0))
    assert result.constant == 8
    assert result.warnings()[0].startswith("constant: on 8 of 8 rows no two answers' scores differ")


def test_rows_without_a_difference_are_one_clear_line(tmp_path: Path) -> None:
    equal = [{"instruction": "x", "candidates": [{"text": text, "scores": {"own": 1}} for text in "ab"]}]
    with pytest.raises(BlendError, match="no held-out row has two candidates"):
        heldout_pairs(read_training_rows(write(tmp_path / "rows.jsonl", equal)), ["own"], 3, 0)
