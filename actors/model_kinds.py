"""Kinds of published models that a part can't load, by their config.json: quick at any size, without torch."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_files import check_config, check_gguf, is_gguf, read_json
from llm_blender_ray.configs.weight_formats import WeightFormats

# Keys of config.json that only models have which read more than text, with what that is.
_MULTIMODAL = {
    "vision_config": "images",
    "vision_tower": "images",
    "mm_vision_tower": "images",
    "visual": "images",
    "audio_config": "sounds",
    "audio_encoder": "sounds",
    "thinker_config": "sounds and images",
}
# Endings of a class in `architectures` without a head that writes text, with what the model is.
_SILENT = {
    "ForSequenceClassification": "a classifier or reward model, which writes no text (kind: reward ranks with one)",
    "ForTokenClassification": "a token classifier, which writes no text",
    "ForQuestionAnswering": "a model that marks spans, which writes no text",
    "ForMaskedLM": "an encoder, which writes no text",
    "ForImageClassification": "an image classifier, not a language model",
    "ForCTC": "a speech recogniser, not a language model",
}
_ENCODERS = ("BertModel", "RobertaModel", "MPNetModel", "DebertaV2Model", "CLIPModel", "ModernBertModel")


def check_loadable(path: Path, formats: WeightFormats) -> None:
    """Check that a local model is one that a loader reads.

    Args:
        path: A model folder, or a GGUF file.
        formats: What the loader reads.

    Raises:
        ModelLoadError: It is something else; the message says what, and what to do.
    """
    if is_gguf(path) and formats.gguf:
        check_gguf(path)
        return
    check_config(path)
    content = read_json(path / "config.json")
    for problem in (_kind_problem(content, formats), _quantization_problem(content, formats)):
        if problem:
            raise ModelLoadError(f"{path}: {problem}")


def _kind_problem(content: Mapping[str, Any], formats: WeightFormats) -> str | None:
    """What the model is in place of one that writes text; None where it may write some."""
    if not formats.generates:
        return None
    classes = [name for name in content.get("architectures") or () if isinstance(name, str)]
    for name in classes[:1]:
        if name.endswith(_ENCODERS):
            return f"an encoder ({name}), which writes no text"
        for ending, told in _SILENT.items():
            if name.endswith(ending):
                return f"{told} ({name})"
    if "num_mel_bins" in content:
        return "a speech recogniser, not a language model"
    model_type = content.get("model_type")
    read = next((what for key, what in _MULTIMODAL.items() if content.get(key)), None)
    if read and formats.multimodal is not None and model_type not in formats.multimodal:
        return (
            f"a multimodal model ({model_type}, which reads {read} too), which {formats.reader} doesn't load; use "
            "engine: vllm, which answers text with it, or a model of text alone"
        )
    return None


def _quantization_problem(content: Mapping[str, Any], formats: WeightFormats) -> str | None:
    settings = content.get("quantization_config") or content.get("compression_config")
    if not isinstance(settings, Mapping):
        mlx = content.get("quantization")
        is_mlx = isinstance(mlx, Mapping) and {"group_size", "bits"} <= set(mlx)
        return "weights quantized for MLX (Apple); take the model's float weights" if is_mlx else None
    method, known = _method(settings), formats.quantizations
    if method in formats.refused or (known is not None and method not in known):
        return f"its weights are quantized by {method}, which {formats.reader} doesn't read; {_CURE}"
    if known is None:
        return None
    missing = [name for name in known[method] if not _is_installed(name)]
    if missing:
        packages = " ".join(_PACKAGES.get(name, name) for name in missing)
        return (
            f"its weights are quantized by {method}, for which {formats.reader} needs {', '.join(missing)}; pip "
            f"install {packages}, or take other weights of the model"
        )
    return None


_CURE = "take other weights of the model"
_PACKAGES = {
    "auto_round": "auto-round",
    "compressed_tensors": "compressed-tensors",
    "fbgemm_gpu": "fbgemm-gpu",
    "optimum.quanto": "optimum-quanto",
    "quark": "amd-quark",
}


def _method(settings: Mapping[str, Any]) -> str:
    if "quant_method" not in settings and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # as older releases of transformers saved it
    return str(settings.get("quant_method") or "an unnamed method")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False
