"""Adapters that a training has kept (`lora: {merge: false}`): loaded with their model, and merged into it.

Their folder has peft's `adapter_config.json` and `adapter_model.safetensors`, and the config and tokenizer of the
model that they make.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.model_files import ADAPTER_CONFIG, read_json
from llm_blender_ray.actors.weights import load_model, locate, quiet
from llm_blender_ray.configs.extras import is_installed

_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of another model."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapted_model(folder: Path) -> str:
    """Folder or hub id of the model that an adapter belongs to.

    Raises:
        ModelLoadError: Its config does not name one.
    """
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelLoadError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is missing")
    return name


def locate_adapted(folder: Path) -> Path:
    """Find the model that an adapter belongs to.

    Raises:
        ModelLoadError: It is not there.
    """
    try:
        return locate(adapted_model(folder))
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{folder}: an adapter, and its model is missing: {error}; name it in {ADAPTER_CONFIG}, or train with "
            "lora.merge: true"
        ) from error


def load_merged(
    auto_class: Any,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """`load_model`, also of the folder of an adapter: the model that it belongs to, with the adapter merged.

    Args:
        auto_class: One of transformers' Auto classes.
        folder: Of a model, or of an adapter.
        device: Where the model is put.
        dtype: Of its weights.
        quantization: See `load_model`.

    Raises:
        ModelLoadError: The adapter or its model can't be used.
    """
    if not is_adapter(folder):
        return load_model(auto_class, folder, device=device, dtype=dtype, quantization=quantization)
    if quantization is not None:
        raise ModelLoadError(
            f"{folder}: an adapter, and quantized weights are too coarse to merge it into; train with "
            "lora.merge: true"
        )
    model = load_merged(auto_class, locate_adapted(folder), device=device, dtype=dtype)
    return merge_adapter(model, folder)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with an adapter merged into its weights.

    Raises:
        ModelLoadError: The adapter does not fit the model, or peft is missing.
    """
    if not is_installed("peft"):
        raise ModelLoadError(f"{folder}: an adapter, which needs the package peft: pip install peft")
    if not (folder / _WEIGHTS).is_file():
        raise ModelLoadError(f"{folder}: no {_WEIGHTS} in it; copy or download it again")
    from peft import PeftModel

    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
            return merge_weights(adapted).eval()
    except Exception as error:  # of a dozen types
        raise ModelLoadError(f"{folder}: can't apply the adapter: {one_line(error)}") from error


def merge_weights(adapted: Any) -> PreTrainedModel:
    """The model of a `PeftModel` with its adapter merged, in place."""
    tied = adapted.config.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged: PreTrainedModel = adapted.merge_and_unload()
    merged.config.tie_word_embeddings = tied  # peft compares the output's with an encoder's that never was tied
    return merged
