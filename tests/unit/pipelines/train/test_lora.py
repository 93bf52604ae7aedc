"""LoRA of rankers and fusers: what is trained, merged and kept, and that a kept adapter loads as what it makes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from training_rows import WORDS, short, write

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs import schema
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.training import FuserTraining, RankerTraining
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.train.fuser import run_fuser_training
from llm_blender_ray.pipelines.train.ranker import run_ranker_training

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
FEW = {"max_steps": 4, "batch_size": 4, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder, and the miniature's fuser."""
    folder = tmp_path_factory.mktemp("models")
    save_blank_encoder(folder / "encoder", seed=0)
    shutil.copytree(PRESETS / "miniature" / "fuser", folder / "fuser")
    return folder


def rows(folder: Path) -> str:
    return write(
        folder / "rows.jsonl",
        [
            {
                "instruction": "Choose:",
                "output": WORDS[i],
                "candidates": [{"text": text, "scores": {"q": len(text)}} for text in WORDS[i:]],
            }
            for i in range(5)
        ],
    )


def train_ranker(folder: Path, models: Path, name: str, **lora: Any) -> PairRMNetwork:
    run_ranker_training(
        RankerTraining(
            backbone=str(models / "encoder"),
            train=rows(folder),
            metrics=("q",),
            output=str(folder / name),
            lora=LORA | lora,
            optimization=short(**FEW),
        )
    )
    return load_pairrm(str(folder / name))[0]


def fuser_settings(folder: Path, models: Path, name: str, **lora: Any) -> FuserTraining:
    return FuserTraining(
        model=str(models / "fuser"),
        train=rows(folder),
        output=str(folder / name),
        max_length=64,
        candidate_max_length=8,
        lora=LORA | lora,
        optimization=short(**FEW, learning_rate=0.05),
    )


def fuse(folder: Path) -> list[str]:
    fuser = GenFuserModel(schema.GenFuser(model=str(folder), device="cpu", num_beams=1, max_new_tokens=8))
    return fuser.fuse_all([(Prompt("1", "Choose:"), ["acorn", "badge"])])


def test_a_kept_ranker_is_the_merged_one(models: Path, tmp_path: Path) -> None:
    merged = train_ranker(tmp_path, models, "merged").state_dict()
    kept = train_ranker(tmp_path, models, "kept", merge=False).state_dict()
    start = load_file(models / "encoder" / "model.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(kept[name], tensor, msg=name)
    query = "encoder.layer.0.attention.self.query_proj"
    assert not torch.equal(merged[f"pretrained_model.{query}.weight"], start[f"{query}.weight"])
    assert torch.equal(merged[f"pretrained_model.{query}.bias"], start[f"{query}.bias"])
    words = "embeddings.word_embeddings.weight"  # tokens of the encoder stay, the markers are new
    assert torch.equal(merged[f"pretrained_model.{words}"][: len(start[words])], start[words])

    found = {file.name for file in (tmp_path / "kept").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"} <= found
    assert "model.safetensors" not in found
    assert json.loads((tmp_path / "kept" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        models / "encoder"
    )


def test_checkpoints_have_trained_weights_alone_and_resume(models: Path, tmp_path: Path) -> None:
    whole = train_ranker(tmp_path, models, "whole").state_dict()
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-2" / "model.safetensors"
    assert all("lora_" in name or "head" in name or "token" in name for name in load_file(checkpoint))
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "again" / "checkpoints")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "checkpoint-4")
    again = train_ranker(tmp_path, models, "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_kept_fuser_writes_what_the_merged_one_writes(models: Path, tmp_path: Path) -> None:
    for name, merge in (("merged", True), ("kept", False)):
        run_fuser_training(fuser_settings(tmp_path, models, name, merge=merge))
    assert fuse(tmp_path / "merged") == fuse(tmp_path / "kept") != fuse(models / "fuser")
    assert not (tmp_path / "kept" / "model.safetensors").exists()


def test_an_adapter_without_its_model_is_one_clear_line(models: Path, tmp_path: Path) -> None:
    train_ranker(tmp_path, models, "kept", merge=False)
    settings = tmp_path / "kept" / "adapter_config.json"
    named = json.loads(settings.read_text())
    settings.write_text(json.dumps(named | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelLoadError, match=r"kept: an adapter, and its model is missing: .*gone"):
        load_pairrm(str(tmp_path / "kept"))
    settings.write_text(json.dumps(named))
    (tmp_path / "kept" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no adapter_model\.safetensors"):
        load_pairrm(str(tmp_path / "kept"))


def test_mistakes_are_one_clear_line(models: Path, tmp_path: Path) -> None:
    with pytest.raises(BlendError, match=r"lora\.target_modules: "):
        run_fuser_training(fuser_settings(tmp_path, models, "wrong", target_modules=["nothing"]))
    with pytest.raises(ValidationError, match=r"lora\.quantization and optimization\.sharding"):
        FuserTraining(
            model="m", train="t", output="o", lora={"quantization": "nf4"}, optimization=short(sharding="fsdp")
        )
    if not is_installed("bitsandbytes"):
        with pytest.raises(ModelLoadError, match="quantization: nf4 needs the package bitsandbytes"):
            run_fuser_training(fuser_settings(tmp_path, models, "bits", quantization="nf4"))
        with pytest.raises(ModelLoadError, match="quantization: int8 needs the package bitsandbytes"):
            GenFuserModel(schema.GenFuser(model=str(models / "fuser"), device="cpu", quantization="int8"))


@pytest.mark.skipif(not is_installed("bitsandbytes"), reason="needs bitsandbytes")
def test_qlora_merges_into_the_weights_that_were_not_quantized(models: Path, tmp_path: Path) -> None:
    run_fuser_training(fuser_settings(tmp_path, models, "bits", quantization="nf4"))
    start, end = (load_file(folder / "model.safetensors") for folder in (models / "fuser", tmp_path / "bits"))
    assert start.keys() == end.keys()
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, end[name])}
    assert changed
    assert all("proj" in name for name in changed)
