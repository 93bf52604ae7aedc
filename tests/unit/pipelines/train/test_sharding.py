"""Sharded training: two processes against one, what is gathered, and what the settings refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from training_rows import WORDS, short, write
from transformers import AutoConfig, AutoModelForSeq2SeqLM, TrainingArguments

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.training import Optimization, RankerTraining
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.train.arguments import training_arguments
from llm_blender_ray.pipelines.train.ranker import run_ranker_training
from llm_blender_ray.pipelines.train.sharding import hollow_copy, sharding_arguments, sharding_units

MINIATURE = PRESETS / "miniature"


def settings(folder: Path, name: str, **optimization: Any) -> dict[str, Any]:
    """Of a ranker that learns four steps."""
    rows = [
        {"instruction": "Choose:", "candidates": [{"text": text, "scores": {"q": len(text)}} for text in WORDS[i:]]}
        for i in range(5)
    ]
    return {
        "backbone": str(folder / "encoder"),
        "train": write(folder / "train.jsonl", rows),
        "metrics": ["q"],
        "dropout": 0.0,
        "output": str(folder / name),
        "optimization": {"learning_rate": 1e-3, "max_steps": 4, "log_every": 1, "save_every": 4, **optimization},
    }


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


@pytest.mark.slow
def test_shards_of_two_processes_learn_what_one_process_does(tmp_path: Path) -> None:
    save_blank_encoder(tmp_path / "encoder", seed=0)
    run_ranker_training(RankerTraining(**settings(tmp_path, "alone", batch_size=8)))
    config = settings(tmp_path, "sharded", batch_size=4, sharding="fsdp", gradient_checkpointing=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "llm_blender_ray", "train", "ranker", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    alone, sharded = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "sharded"))
    assert alone.keys() == sharded.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(sharded[name], tensor, atol=2e-3, rtol=0, msg=name)
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "alone"), abs=1e-3)
    load_pairrm(str(tmp_path / "sharded"))


def test_a_hollow_copy_shares_no_memory_and_keeps_ties_and_frozen_weights() -> None:
    model = nn.ModuleDict(
        {"read": nn.Embedding(5, 4), "write": nn.Linear(4, 5, bias=False), "more": nn.Linear(4, 4)}
    )
    model["write"].weight = model["read"].weight
    model["more"].requires_grad_(False)
    copied = hollow_copy(model)
    assert {one.device.type for one in copied.parameters()} == {"meta"}
    assert {one.device.type for one in model.parameters()} == {"cpu"}
    assert copied["write"].weight is copied["read"].weight
    assert [one.requires_grad for one in copied.parameters()] == [one.requires_grad for one in model.parameters()]


def test_units_are_layers_and_embeddings_that_are_not_tied() -> None:
    network, _ = load_pairrm(str(MINIATURE / "ranker"))
    layers = network.pretrained_model.encoder.layer
    assert sharding_units(network) == [*layers, network.pretrained_model.get_input_embeddings()]
    fuser = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(MINIATURE / "fuser"))
    encoder, decoder = fuser.model.encoder, fuser.model.decoder  # the decoder's and the output's are tied
    assert sharding_units(fuser) == [*encoder.layers, *decoder.layers, encoder.embed_tokens]


def test_sharding_is_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(BlendError, match=r"optimization\.sharding: fsdp divides a training among workers"):
        sharding_arguments(short(sharding="fsdp"))
    assert sharding_arguments(short()) == {}


def test_zero_is_deepspeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    if not is_installed("deepspeed"):
        with pytest.raises(BlendError, match="zero3 needs DeepSpeed: pip install deepspeed"):
            sharding_arguments(short(sharding="zero3"))
    monkeypatch.setattr("llm_blender_ray.pipelines.train.sharding.is_installed", lambda module: True)
    config = sharding_arguments(short(sharding="zero3"))["deepspeed"]
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]


def test_optimizers_reach_the_trainer(tmp_path: Path) -> None:
    assert training_arguments(short(), tmp_path, evaluates=False).optim == TrainingArguments(tmp_path).optim
    assert training_arguments(short(optimizer="adafactor"), tmp_path, evaluates=False).optim == "adafactor"
    if not is_installed("bitsandbytes"):
        with pytest.raises(BlendError, match="adamw_8bit needs bitsandbytes"):
            training_arguments(short(optimizer="adamw_8bit"), tmp_path, evaluates=False)
    with pytest.raises(ValidationError, match="sharding: fsdp needs optimizer: adamw"):
        Optimization(learning_rate=1e-3, sharding="fsdp", optimizer="adafactor")
