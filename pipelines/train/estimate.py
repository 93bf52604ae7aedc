"""`blend train ... --estimate`: memory of a training by part, and the fewest GPUs, from a model's config alone."""

import json
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from llm_blender_ray.actors.pairrm.checkpoints import outline_pairrm
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenization
from llm_blender_ray.actors.weights import load_config, locate, quiet
from llm_blender_ray.configs.training import FuserTraining, RankerTraining
from llm_blender_ray.pipelines.train.lora import adapt_ranker, add_lora
from llm_blender_ray.pipelines.train.losses import RankerLoss
from llm_blender_ray.pipelines.train.memory import (
    FRAMEWORK,
    GIB,
    QUANTIZED_BYTES,
    MemoryEstimate,
    TrainedModel,
    estimate_memory,
    frozen_linears,
)
from llm_blender_ray.pipelines.train.pair_losses import InstructGPT, PairLoss

DEFAULT_GPU_MEMORY = 80.0  # GiB
NOTES = {
    "weights": "",
    "gradients": "",
    "optimizer": "",
    "activations": "logits included; all examples of the greatest length",
    "temporary": "of the operation at the peak",
    "buffers": "gathered and reduced",
    "framework": "assumed",
}


@quiet()
def estimate_training(
    config: RankerTraining | FuserTraining, *, framework: int = FRAMEWORK, bf16: bool | None = None
) -> MemoryEstimate:
    """Estimate the memory of a training. No weights are read.

    Args:
        config: Of the training.
        framework: Bytes of a GPU's runtime.
        bf16: Whether it multiplies in bfloat16; None: by the settings, where `auto` is yes.

    Raises:
        BlendError: The model can't be simulated, or has no modules for LoRA.
        ModelLoadError: Its config or tokenizer can't be used.
    """
    multiplies = config.optimization.bf16 is not False if bf16 is None else bf16
    quantization = config.lora.quantization if config.lora else None
    with torch.device("meta"):
        model, batch = _ranker(config) if isinstance(config, RankerTraining) else _fuser(config)
    if quantization:
        for part in frozen_linears(model):  # dequantized for each product
            part.to(torch.bfloat16 if multiplies else torch.float32)
    trained = TrainedModel(
        model, batch, config.optimization, multiplies, QUANTIZED_BYTES[quantization] if quantization else None
    )
    return estimate_memory(trained, framework=framework)


def _fuser(config: FuserTraining) -> tuple[Any, dict[str, torch.Tensor]]:
    folder = locate(config.model, weights=False)
    model: Any = AutoModelForSeq2SeqLM.from_config(load_config(folder), dtype=torch.float32)
    if config.lora:
        model = add_lora(model, config.model, config.lora)
    shape = (config.optimization.batch_size, config.max_length)
    batch = {"input_ids": _ids(*shape), "attention_mask": _ids(*shape)}
    return model, batch | {"labels": _ids(shape[0], config.output_max_length)}


def _ranker(config: RankerTraining) -> tuple[Any, dict[str, torch.Tensor]]:
    tasks = len(config.metrics) or 1
    budget = PairBudget(config.source_max_length, config.candidate_max_length)
    network, tokenizer = outline_pairrm(config.backbone, budget, n_tasks=tasks, dropout=config.dropout)
    if config.lora:
        adapt_ranker(network, tokenizer, config)
    loss = config.loss if isinstance(config.loss, PairLoss) else InstructGPT()
    pairs, length = config.optimization.batch_size, _longest_pair(tokenizer, budget)
    batch = {"input_ids": _ids(pairs, length), "attention_mask": _ids(pairs, length)}
    batch["labels"] = torch.ones(pairs, tasks)
    if config.judgements:
        batch["weights"] = torch.ones(pairs)
    if loss.of_scores:
        batch["scores"] = torch.ones(pairs, 2, tasks)
    return RankerLoss(network, config.auxiliary, loss), batch


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.long)


def _longest_pair(tokenizer: PairTokenization, budget: PairBudget) -> int:
    """Tokens of a pair of which every text is cut."""
    text = "a b " * (budget.source_max_length + budget.candidate_max_length)
    source = tokenizer.encode_source(text)
    candidate = tokenizer.encode_candidate(text, len(source))
    return len(tokenizer.join(source, candidate, candidate))


def print_estimate(config: RankerTraining | FuserTraining, gpu_memory: float | None, *, as_json: bool) -> None:
    """Print what `estimate_training` finds.

    Args:
        config: Of the training.
        gpu_memory: GiB of a GPU; None: of the first one here, or 80.
        as_json: Whether to print a JSON object.

    Raises:
        BlendError: See `estimate_training`.
        ModelLoadError: See `estimate_training`.
    """
    if gpu_memory is None:
        has_gpu = torch.cuda.is_available()
        gpu_memory = torch.cuda.get_device_properties(0).total_memory / GIB if has_gpu else DEFAULT_GPU_MEMORY
    estimate = estimate_training(config)
    fewest = estimate.fewest_workers(gpu_memory * GIB)
    workers = fewest or 1
    parts = estimate.of_workers(workers)
    if as_json:
        found = {
            "parameters": estimate.parameters,
            "trained": estimate.trained,
            "gpu_memory": gpu_memory,
            "gpus": fewest,
            "bytes": asdict(parts) | {"total": parts.total},
        }
        print(json.dumps(found, indent=2))
        return
    for line in _lines(config, estimate, fewest, gpu_memory):
        print(line)


def _lines(
    config: RankerTraining | FuserTraining, estimate: MemoryEstimate, fewest: int | None, gpu_memory: float
) -> list[str]:
    """The estimate for people."""
    workers = fewest or 1
    parts = estimate.of_workers(workers)
    lines = [f"{estimate.parameters / 1e6:,.1f} M weights, {estimate.trained / 1e6:,.1f} M trained"]
    lines.append(f"GiB of each of {workers} GPU{'s' * (workers > 1)}, at the peak of a step:")
    for name, size in asdict(parts).items():
        note = f"  ({NOTES[name]})" if NOTES[name] else ""
        lines.append(f"  {name:<12}{size / GIB:8.2f}{note}")
    lines.append(f"  {'total':<12}{parts.total / GIB:8.2f}")
    if fewest:
        lines.append(f"fewest GPUs of {gpu_memory:g} GiB: {fewest}")
    elif config.optimization.sharding:
        lines.append(
            f"no number of GPUs of {gpu_memory:g} GiB: a batch alone is too large; lower batch_size, or set"
        )
        lines.append("  optimization.gradient_checkpointing or lora")
    else:
        lines.append(f"does not fit on a GPU of {gpu_memory:g} GiB: set optimization.sharding: fsdp, a smaller")
        lines.append("  batch_size with more accumulation, gradient_checkpointing, or lora")
    return lines
