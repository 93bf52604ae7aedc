"""Estimated and measured memory of trainings on a CPU: models of 57 and 77 M random weights, several settings.

    python -m llm_blender_ray.pipelines.bench.memory_estimates [CASE...]

Each training of three steps is a process of its own, which reports the peak of its resident memory above that of
its imports (`getrusage`). The estimate is that of `blend train ... --estimate`, without the GPU's runtime. Prints
JSON.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
WORDS = "one two three four five six seven eight nine ten " * 60


def make_models(folder: Path) -> None:
    """Write a T5 and a DeBERTa of random weights, with tokenizers of the miniature."""
    import torch
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, T5Config, T5ForConditionalGeneration

    from llm_blender_ray.configs.loading import PRESETS
    from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder

    torch.manual_seed(0)
    fuser = AutoTokenizer.from_pretrained(PRESETS / "miniature" / "fuser")
    shape = T5Config(
        d_model=512,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=fuser.pad_token_id,
        eos_token_id=fuser.eos_token_id,
    )
    T5ForConditionalGeneration(shape).save_pretrained(folder / "fuser")
    fuser.save_pretrained(folder / "fuser")
    save_blank_encoder(folder / "ranker", seed=0)
    config = DebertaV2Config.from_pretrained(
        folder / "ranker", hidden_size=768, num_hidden_layers=8, num_attention_heads=12, intermediate_size=3072
    )
    DebertaV2Model(config).save_pretrained(folder / "ranker")


def case_config(folder: Path, name: str) -> Any:
    """Settings of a case's training, whose examples all have the greatest length."""
    from llm_blender_ray.configs.training import FuserTraining, RankerTraining

    kind, changes = CASES[name]
    rows = folder / "rows.jsonl"
    candidates = [{"text": WORDS + str(i), "scores": {"q": i}} for i in range(3)]
    row = {"instruction": WORDS, "output": WORDS, "candidates": candidates}
    rows.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(16)))
    optimization = {"learning_rate": 1e-4, "max_steps": 3, "batch_size": 4, "bf16": False}
    common: dict[str, Any] = {"train": str(rows), "output": str(folder / "out")} | changes
    common["optimization"] = optimization | changes.get("optimization", {})
    model = str(folder / kind)
    if kind == "fuser":
        return FuserTraining(model=model, max_length=256, candidate_max_length=64, output_max_length=128, **common)
    return RankerTraining(backbone=model, metrics=("q",), source_max_length=128, candidate_max_length=96, **common)


def measure_training(folder: Path, name: str) -> None:
    """Train a case, and print the peak of resident memory above that of the imports, in bytes."""
    from llm_blender_ray.configs.training import FuserTraining
    from llm_blender_ray.pipelines.train.fuser import run_fuser_training
    from llm_blender_ray.pipelines.train.ranker import run_ranker_training

    config = case_config(folder, name)
    if config.lora:
        import peft  # noqa: F401
    before = _peak()
    if isinstance(config, FuserTraining):
        run_fuser_training(config)
    else:
        run_ranker_training(config)
    print(json.dumps(_peak() - before))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def compare_estimates(names: list[str]) -> dict[str, dict[str, float]]:
    """Estimated and measured bytes of cases, and their ratio."""
    from llm_blender_ray.pipelines.train.estimate import estimate_training

    found = {}
    with TemporaryDirectory() as root:
        models = Path(root) / "models"
        make_models(models)
        for number, name in enumerate(names):
            folder = Path(root) / str(number)
            folder.mkdir()
            for kind in ("fuser", "ranker"):
                (folder / kind).symlink_to(models / kind)
            command = [
                sys.executable,
                "-m",
                "llm_blender_ray.pipelines.bench.memory_estimates",
                "--one",
                str(folder),
            ]
            done = subprocess.run([*command, name], capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            estimate = estimate_training(case_config(folder, name), framework=0)
            total = estimate.alone.total
            found[name] = {"estimated": total, "measured": measured, "ratio": round(total / measured, 3)}
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
