"""Rankers trained on real text: how prompts are split, what rules without training reach, and a run of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from training_rows import write

from llm_blender_ray.configs.loading import load
from llm_blender_ray.pipelines.bench.ranker_training import (
    TRIALS,
    Trial,
    Trials,
    accuracies,
    run_trials,
    split_rows,
)
from llm_blender_ray.pipelines.train.pairs import TrainingPair

ANSWERS = {"terse": "No.", "long": "That depends on the weather of the day.", "middle": "It may well be so."}


def make_rows(count: int) -> list[dict[str, Any]]:
    """Rows in which `long` is best, then `middle`."""
    return [
        {
            "id": str(i),
            "instruction": f"Question {i // 2}?",  # two rows of each prompt
            "candidates": [
                {"model": model, "text": f"{text} {i}", "scores": {"quality": len(text) / 100}}
                for model, text in ANSWERS.items()
            ],
        }
        for i in range(count)
    ]


def trials(*some: Trial, **changes: Any) -> Trials:
    return Trials(**({"metric": "quality", "heldout_share": 0.3, "clear": 0.2, "trials": some} | changes))


def test_no_prompt_is_in_both_parts(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "rows.jsonl", make_rows(60)))
    split = split_rows(file, tmp_path, share=0.3, seed=0)
    parts = [{row["instruction"] for row in rows} for rows in (split.train_rows, split.heldout_rows)]
    assert not parts[0] & parts[1]
    assert len(split.train_rows) + len(split.heldout_rows) == 60
    assert 6 <= len(split.heldout_rows) <= 32
    again = split_rows(file, tmp_path, share=0.3, seed=1)
    assert again.heldout_rows != split.heldout_rows


def test_clear_pairs_have_figures_of_their_own() -> None:
    pairs = [TrainingPair(row, 0, 1, (gap,)) for row, gap in enumerate((0.5, -0.5, 0.01, -0.01))]
    found = accuracies(pairs, [1.0, -1.0, -1.0, 1.0], clear=0.1)
    assert found["all"]
    assert found["clear"]
    assert (found["all"]["accuracy"], found["clear"]["accuracy"]) == (0.5, 1.0)
    assert (found["all"]["pairs"], found["clear"]["pairs"]) == (4, 2)
    assert accuracies(pairs[2:], [1.0, 1.0], clear=0.1)["clear"] is None


def test_trainings_stand_beside_rules_that_read_no_text(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "rows.jsonl", make_rows(40)))
    shape = {"source_max_length": 16, "candidate_max_length": 24, "batch_size": 4, "learning_rate": 1e-3}
    blank = Trial(name="blank", backbone="blank", steps=(2,), **shape)
    causal = Trial(name="LLM", backbone=str(ROOT / "configs" / "miniature" / "alder"), steps=(2,), **shape)
    missing = Trial(name="none", backbone=str(tmp_path / "nowhere"), steps=(1,), **shape)
    output = tmp_path / "result.json"
    found = run_trials(file, trials(blank, causal, missing), output=output)
    assert [(one["name"], one["steps"], one["pairs_seen"]) for one in found["trainings"]] == [
        ("blank", 2, 8),
        ("LLM", 2, 8),
    ]
    for one in found["trainings"]:
        assert one["all"]["prompts"] == found["heldout_prompts"]
        assert 0 <= one["all"]["low"] <= one["all"]["accuracy"] <= one["all"]["high"] <= 1
        assert 0 <= one["both_orders_agree"] <= 1
        assert one["parameters"] > 100_000
    for rule in ("the longer answer", "order of the models"):
        assert found["baselines"][rule]["all"]["accuracy"] == 1.0
    assert [(one["name"], "nowhere" in one["reason"]) for one in found["skipped"]] == [("none", True)]
    assert json.loads(output.read_text()) == found


def test_no_training_begins_without_time(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "rows.jsonl", make_rows(20)))
    late = Trial(
        name="late", backbone="blank", steps=(1,), learning_rate=1.0, source_max_length=16, candidate_max_length=8
    )
    found = run_trials(file, trials(late), seconds=0.0)
    assert found["trainings"] == []
    assert found["skipped"] == [{"name": "late", "steps": 1, "reason": "out of time"}]


@pytest.mark.parametrize("file", sorted(TRIALS.parent.glob("ranker_training*.yaml")), ids=lambda file: file.stem)
def test_the_trials_beside_the_module_are_valid(file: Path) -> None:
    for trial in load(file, Trials).trials:
        longest = trial.source_max_length + 2 * trial.candidate_max_length
        assert longest <= (960 if "SmolLM2" in trial.name else 512)
