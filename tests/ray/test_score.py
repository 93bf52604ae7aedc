"""`blend run`, `blend score`, `blend train ranker`: the way from prompts to a ranker, through the commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import InProcess
from instruction_sources import save_sources
from paths import GOLDEN

from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.quality.metrics import read_metric

BERTSCORE = f"bertscore:model={GOLDEN / 'checkpoints' / 'backbone'},layer=2"
pytestmark = pytest.mark.usefixtures("ray_session", "ray_of_commands")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_from_instruction_data_to_a_ranker(tmp_path: Path, blend_here: InProcess) -> None:
    prompts, ran, scored = (tmp_path / f"{name}.jsonl" for name in ("prompts", "ran", "scored"))
    sizes = ("--train", 4, "--val", 1, "--test", 1, "--tokenizer", GOLDEN / "checkpoints" / "backbone")
    output = ("--output", tmp_path / "data", "--max-length", 512)
    built = blend_here("dataset", "mixinstruct", *save_sources(tmp_path / "sources", 8), *output, *sizes)
    assert "train 4, val 1, test 1 rows" in built.stderr
    rows = rows_of(tmp_path / "data" / "train.jsonl")
    for row in rows[:3]:
        row["output"] = [row["output"], row["instruction"] + row["input"]]  # several references
    del rows[3]["output"]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{bad\n")
    config = tmp_path / "config.json"
    models = [
        {"name": name, "engine": "echo", "model": "none", "sampling": {"max_tokens": number}}
        for name, number in (("two", 2), ("four", 4))
    ]
    ranker = {"kind": "echo", "num_cpus": 0.1}
    config.write_text(json.dumps({"models": models, "ranker": ranker, "ray": {"num_cpus": 2}}))
    blend_here("run", config, "--input", prompts, "--output", ran, "--set", "max_error_rate=0.5")
    metrics = ("--metric", "rouge_l", "--metric", f"{BERTSCORE},as=bert")
    command = ("score", "--input", ran, "--output", scored, *metrics)
    done = blend_here(*command)
    assert "rouge_l: no reference in 1 of 5 rows (20.0%)" in done.stderr
    for before, after in zip(rows_of(ran)[:3], rows_of(scored)[:3], strict=True):
        texts = [one["text"] for one in before["candidates"]]
        for name, metric in {"rouge_l": read_metric("rouge_l"), "bert": read_metric(BERTSCORE)}.items():
            expected = metric.score([before["output"]] * 3, [*texts, before["fused"]])
            found = [one["scores"][name] for one in after["candidates"]]
            assert [*found, after["fused_scores"][name]] == pytest.approx(expected, abs=1e-5)
        changed = {"candidates", "fused_scores"}
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in before.items() if k not in changed
        }
    assert rows_of(scored)[3]["candidates"][0]["scores"] == {"rouge_l": None, "bert": None}
    assert "complete already" in blend_here(*command).stderr
    given = tmp_path / "train.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows_of(scored)[:3]))
    backbone, trained = tmp_path / "backbone", tmp_path / "ranker"
    backbone.mkdir()
    save_blank_encoder(backbone, seed=0)
    settings = {
        "backbone": backbone,
        "train": given,
        "heldout": "null",
        "output": trained,
        "metrics": "[rouge_l, bert]",
        "source_max_length": 32,
        "candidate_max_length": 16,
        "auxiliary": "{reference_token: 0, token_is_right: 0}",
        "optimization.result": "last",
        "optimization.max_steps": 1,
        "optimization.batch_size": 2,
    }
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    blend_here("train", "ranker", PRESETS / "train-ranker.yaml", *overrides)
    assert (trained / "model.safetensors").exists()


def test_rows_without_any_reference_are_written_and_fail_the_command(tmp_path: Path, blend_here: InProcess) -> None:
    given, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text(json.dumps({"id": "1", "prompt": "p", "candidates": ["a"]}) + "\n")
    command = ("score", "--input", given, "--output", output, "--metric", "exact", "--references", "gold")
    assert "no row has an answer and a reference in column gold" in blend_here(*command, code=1).stderr
    assert rows_of(output)[0]["candidates"][0]["scores"] == {"exact": None}
