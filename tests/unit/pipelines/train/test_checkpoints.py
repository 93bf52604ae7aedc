"""Checkpoints: which settings they belong to, and a training whose output is an object store."""

from pathlib import Path
from typing import Any

import pytest
from training_rows import WORDS, short, write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.configs.training import RankerTraining
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.rows import storage
from llm_blender_ray.pipelines.train.checkpoints import check_settings
from llm_blender_ray.pipelines.train.ranker import run_ranker_training


def make_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Say {WORDS[i]}.",
            "candidates": [
                {"model": model, "text": WORDS[at % len(WORDS)], "scores": {"quality": score}}
                for model, at, score in (("a", i, 1.0), ("b", i + 1, 0.0))
            ],
        }
        for i in range(count)
    ]


def settings(folder: Path, output: str, **changes: Any) -> RankerTraining:
    base = {
        "backbone": str(folder / "backbone"),
        "train": str(folder / "train.jsonl"),
        "heldout": str(folder / "heldout.jsonl"),
        "output": output,
        "metrics": ("quality",),
        "source_max_length": 32,
        "candidate_max_length": 16,
        "optimization": short(max_steps=3, save_every=1, evaluate_every=1, batch_size=2, result="best"),
    }
    return RankerTraining.model_validate(base | changes)


def test_where_a_run_is_does_not_decide_its_checkpoints(tmp_path: Path) -> None:
    def check(**scaling: Any) -> None:
        changes = {"scaling": scaling, "ray": {"address": scaling.pop("address", None)}}
        check_settings(str(tmp_path), settings(tmp_path, "out", **changes), found=True)

    check(workers=2, max_failures=1, address="a:1")
    check(workers=2, max_failures=2, resources={"fast": 1}, address="b:1")
    with pytest.raises(BlendError, match=r"other settings \(scaling\.workers: 2 -> 3\)"):
        check(workers=3)
    with pytest.raises(BlendError, match="other settings"):
        check_settings(str(tmp_path), settings(tmp_path, "out"), found=True)
    check_settings(str(tmp_path), settings(tmp_path, "out"), found=False)  # settings without checkpoints


def test_a_training_writes_to_an_object_store_and_resumes_from_it(
    s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_blank_encoder(tmp_path / "backbone", seed=0)
    write(tmp_path / "train.jsonl", make_rows(8))
    write(tmp_path / "heldout.jsonl", make_rows(4))
    output = f"{s3_bucket}/ranker"
    measured = run_ranker_training(settings(tmp_path, output))
    assert f"ranker saved in {output}" in capsys.readouterr().out
    assert storage.names(output) >= {"model.safetensors", "config.json", "checkpoints", "README.md"}
    assert "data" not in storage.names(output)
    kept = storage.names(f"{output}/checkpoints")
    assert {"checkpoint-3", "settings.json"} <= kept
    assert len(kept) <= 4  # two and the best

    storage.remove(f"{output}/checkpoints/checkpoint-3/trainer_state.json")  # as a kill leaves it
    again = run_ranker_training(settings(tmp_path, output))
    assert "step 1/3" not in capsys.readouterr().err  # it resumed
    assert again["eval_loss"] == pytest.approx(measured["eval_loss"], abs=1e-6)
    storage.fetch_folder(output, tmp_path / "fetched")
    load_pairrm(str(tmp_path / "fetched"))
