"""LoRA adapters in peft's layout: checks of their folders, by headers alone, so that they are quick at any size."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_files import (
    ADAPTER_CONFIG,
    COPY,
    check_not_pointer,
    check_safetensors,
    read_json,
    weight_files,
)
from llm_blender_ray.configs.weight_formats import AdapterFormats, WeightFormats

# Values of init_lora_weights that only say how training began; the others change the model's own weights.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_MERGE = "merge it into the model (peft's merge_and_unload), and give the merged folder as a model of its own"
_LORA = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"\.(\d+)\.")


def check_adapter(folder: Path, formats: WeightFormats, base: Path | None = None) -> None:
    """Check that a folder holds an adapter that a loader can apply to a model. A pickle is not read.

    Args:
        folder: The adapter's folder.
        formats: What the loader reads.
        base: The model's folder, if it is a local one: shapes and layers are compared then.

    Raises:
        ModelLoadError: It doesn't; the message says why, and what to do.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such folder")
    if not (folder / ADAPTER_CONFIG).is_file():
        what = "a model" if (folder / "config.json").is_file() else "a folder"
        raise ModelLoadError(f"{folder}: {what} without {ADAPTER_CONFIG}, so it is no LoRA adapter")
    config = read_json(folder / ADAPTER_CONFIG)
    if formats.adapters and (problem := _problem(config, formats.adapters, formats.reader)):
        raise ModelLoadError(f"{folder}: {problem}")
    file = adapter_weights(folder)
    check_not_pointer(file)
    if file.suffix == ".safetensors":
        check_safetensors(file)
        if base is not None and (problem := _misfit(file, base)):
            raise ModelLoadError(f"{folder}: {problem}")


def adapter_weights(folder: Path) -> Path:
    """Find the weights of an adapter, safetensors first.

    Raises:
        ModelLoadError: There are none.
    """
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ModelLoadError(f"{folder}: no weights in it: no adapter_model.safetensors or adapter_model.bin; {COPY}")


def adapter_rank(folder: Path) -> int:
    """Highest rank in an adapter that `check_adapter` has accepted."""
    return _rank(read_json(folder / ADAPTER_CONFIG))


def other_base(folder: Path, model: str) -> str | None:
    """Name of the model that an adapter was trained on, where it is not that of another model.

    Args:
        folder: The adapter's folder.
        model: Folder or hub id of the model that it is to be applied to.

    Returns:
        None where they agree in the last part of their paths, or where the adapter doesn't say.
    """
    named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named or Path(named).name.lower() == Path(model).name.lower():
        return None
    return named


def _problem(config: Mapping[str, Any], formats: AdapterFormats, reader: str) -> str | None:
    """What is wrong with an adapter's settings."""
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        return f"a {kind or 'PEFT'} adapter; {reader} reads LoRA adapters"
    if task not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return f"an adapter for {task}, which makes a model that writes no text"
    for key, what in formats.refused.items():
        if config.get(key):
            return f"it has {what} ({key}), which {reader} can't apply; {_MERGE}"
    if (config.get("bias") or "none") != "none":
        return f"it replaces biases of the model (bias: {config['bias']}), which others share; {_MERGE}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return f"it replaces weights of the model (init_lora_weights: {init}), which others share; {_MERGE}"
    rank = _rank(config)
    if rank < 1:
        return f"{ADAPTER_CONFIG}: expected r to be an integer >= 1, got {json.dumps(config.get('r'))}"
    if formats.max_rank is not None and rank > formats.max_rank:
        return f"its rank is {rank}, and {reader} takes {formats.max_rank} at most; {_MERGE}"
    return None


def _rank(config: Mapping[str, Any]) -> int:
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max(ranks) if all(isinstance(rank, int) for rank in ranks) else 0


def _misfit(file: Path, base: Path) -> str | None:
    """How an adapter's weights differ from the shape of a model's; None where nothing is known.

    Modules are looked up by their names in the model's files. Quantized weights have other shapes.
    """
    if not (base / "config.json").is_file() or read_json(base / "config.json").get("quantization_config"):
        return None
    weights = weight_files(base)
    if not weights.safetensors or not all(one.is_file() for one in weights.files):
        return None
    for one in weights.files:
        check_not_pointer(one)
        check_safetensors(one)
    shapes = {name: shape for one in weights.files for name, shape in _shapes(one).items()}
    layers = [int(match[1]) for name in shapes if (match := _LAYER.search(name))]
    for name, shape in _shapes(file).items():
        if not (match := _LORA.fullmatch(name)) or len(shape) != 2:
            continue
        module, is_input = match["module"], match["side"] == "A"
        layer = _LAYER.search(module)
        if layer and layers and int(layer[1]) > max(layers):
            return f"it is of another model: it has a layer {layer[1]}, and {base} has {max(layers) + 1} layers"
        own = shapes.get(f"{module}.weight")
        size = shape[1] if is_input else shape[0]
        if own is not None and len(own) == 2 and size not in own:  # in, out or out, in by the kind of layer
            side = "inputs" if is_input else "outputs"
            return f"it is of another model: {module} has {size} {side}, and {own[1]} x {own[0]} weights in {base}"
    return None


def _shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
