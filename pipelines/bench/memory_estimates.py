"""Estimated and measured memory of trainings on a CPU: models of 57 and 77 M random weights, several settings.

    python -m llm_blender_ray.pipelines.bench.memory_estimates [CASE...]

Each training of three steps is a process of its own. After one of a tiny model, which imports everything, it
reports the peak of its resident memory during the steps above what it had then, and that of the whole training:
loading and saving hold further copies of the weights, and pages of mapped files. The
estimate is that of `blend train ... --estimate`, without the GPU's runtime. Prints JSON. Linux alone resets a peak.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fuser": ("fuser", {}),
    "fuser, adafactor, gradient checkpointing": (
        "fuser",
        {"optimization": {"optimizer": "adafactor", "gradient_checkpointing": True}},
    ),
    "fuser, lora": ("fuser", {"lora": {}}),
    "ranker": ("ranker", {}),
    "ranker, lora, gradient checkpointing": (
        "ranker",
        {"lora": {}, "optimization": {"gradient_checkpointing": True}},
    ),
}
KIB = 1024
# Freed blocks go back to the system: else glibc keeps what loading has used, and resident memory counts it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
WORDS = "one two three four five six seven eight nine ten " * 60


def make_models(folder: Path) -> None:
    """Write a T5 and a DeBERTa of random weights, with tokenizers of the miniature, and a tiny one of each."""
    import torch
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, T5Config, T5ForConditionalGeneration

    from llm_blender_ray.configs.loading import PRESETS
    from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PRESETS / "miniature" / "fuser")
    for name, layers, width in (("fuser", 6, 512), ("tiny-fuser", 1, 32)):
        fuser = T5Config(
            d_model=width,
            d_ff=4 * width,
            num_layers=layers,
            num_heads=8,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        T5ForConditionalGeneration(fuser).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, layers, width in (("ranker", 8, 768), ("tiny-ranker", 1, 48)):
        save_blank_encoder(folder / name, seed=0)
        ranker = DebertaV2Config.from_pretrained(
            folder / name,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=4 * width,
        )
        DebertaV2Model(ranker).save_pretrained(folder / name)


def case_config(folder: Path, name: str, size: str = "") -> Any:
    """Settings of a case's training, whose examples all have the greatest length.

    Args:
        folder: Has the models in `models`; the training's files go there.
        name: Of the case.
        size: "tiny-" for a tiny model.
    """
    from llm_blender_ray.configs.training import FuserTraining, RankerTraining

    kind, changes = CASES[name]
    rows = folder / "rows.jsonl"
    candidates = [{"text": WORDS + str(i), "scores": {"q": i}} for i in range(3)]
    row = {"instruction": WORDS, "output": WORDS, "candidates": candidates}
    rows.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(16)))
    optimization = {"learning_rate": 1e-4, "max_steps": 3, "batch_size": 4, "bf16": False}
    common: dict[str, Any] = {"train": str(rows), "output": str(folder / f"{size}out")} | changes
    common["optimization"] = optimization | changes.get("optimization", {})
    model = str(folder / "models" / f"{size}{kind}")
    if kind == "fuser":
        return FuserTraining(model=model, max_length=256, candidate_max_length=64, output_max_length=128, **common)
    return RankerTraining(backbone=model, metrics=("q",), source_max_length=128, candidate_max_length=96, **common)


def measure_training(folder: Path, name: str) -> None:
    """Train a case, and print peaks of resident memory above that after the imports, in bytes."""
    from transformers import Trainer

    from llm_blender_ray.configs.training import FuserTraining, RankerTraining
    from llm_blender_ray.pipelines.train.fuser import run_fuser_training
    from llm_blender_ray.pipelines.train.ranker import run_ranker_training

    def train(config: FuserTraining | RankerTraining) -> None:
        if isinstance(config, FuserTraining):
            run_fuser_training(config)
        else:
            run_ranker_training(config)

    train(case_config(folder, name, "tiny-"))
    gc.collect()
    before, loaded, steps = _status("VmRSS"), 0, 0
    _reset_peak()
    real_step = Trainer.training_step

    def measured_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal loaded, steps
        if not loaded:
            loaded = _status("VmHWM")
            _reset_peak()
        result = real_step(*args, **kwargs)
        steps = _status("VmHWM")
        return result

    with mock.patch.object(Trainer, "training_step", measured_step):
        train(case_config(folder, name))
    whole = max(loaded, _status("VmHWM"))
    print(json.dumps({"measured": steps - before, "whole_process": whole - before}))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """A size of this process in bytes, by its name in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * KIB


def compare_estimates(names: list[str]) -> dict[str, dict[str, float]]:
    """Estimated and measured bytes of cases, and the ratio of estimate and peak during the steps."""
    from llm_blender_ray.pipelines.train.estimate import estimate_training

    found = {}
    with TemporaryDirectory() as root:
        models = Path(root) / "models"
        make_models(models)
        for number, name in enumerate(names):
            folder = Path(root) / str(number)
            folder.mkdir()
            (folder / "models").symlink_to(models)
            command = [
                sys.executable,
                "-m",
                "llm_blender_ray.pipelines.bench.memory_estimates",
                "--one",
                str(folder),
            ]
            done = subprocess.run(
                [*command, name], capture_output=True, text=True, check=True, env=os.environ | MALLOC
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            estimate = estimate_training(case_config(folder, name), framework=0)
            total = estimate.alone.total
            found[name] = {"estimated": total, **measured, "ratio": round(total / measured["measured"], 3)}
            print(name, found[name], file=sys.stderr, flush=True)
    return found


def main(arguments: list[str]) -> None:
    """Run the benchmark, or one of its trainings."""
    if arguments[:1] == ["--one"]:
        measure_training(Path(arguments[1]), arguments[2])
        return
    print(json.dumps(compare_estimates(arguments or list(CASES)), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
