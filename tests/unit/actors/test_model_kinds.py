"""Published models of all kinds: what each loader reads, and what is refused by name, from config.json alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FACTS, save_chat_model
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from llm_blender_ray.actors.engines import Completion, load_engine
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_kinds import check_loadable
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling, TransformersModel
from llm_blender_ray.configs.weight_formats import ANY_FORMAT, TRANSFORMERS, VLLM, WeightFormats

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def model(folder: Path, **config: Any) -> Path:
    folder.joinpath("config.json").write_text(json.dumps(LLAMA | config))
    return folder


def quantized(method: str | None, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {**({"quant_method": method} if method else {}), **more}}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (quantized("awq", bits=4), "quantized by awq, for which engine: transformers needs gptqmodel; pip install"),
        (quantized("gptq"), "needs optimum, gptqmodel; pip install optimum gptqmodel, or take other weights"),
        (quantized("bitsandbytes", load_in_4bit=True), "by bitsandbytes, for which .* pip install bitsandbytes"),
        (quantized(None, load_in_8bit=True), "by bitsandbytes, for which"),
        (quantized("compressed-tensors"), "pip install compressed-tensors"),
        (quantized("quanto"), "pip install optimum optimum-quanto"),
        (quantized("exl2"), "quantized by exl2, which engine: transformers doesn't read; take other weights"),
        (quantized(None, bits=4), "quantized by an unnamed method"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "weights quantized for MLX"),
        (
            {"model_type": "qwen2_vl", "vision_config": {"depth": 2}},
            r"a multimodal model \(qwen2_vl, which reads images too\), .* use engine: vllm",
        ),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip"}, "a multimodal model"),
        ({"model_type": "qwen2_audio", "audio_config": {"a": 1}}, "which reads sounds too"),
        ({"model_type": "whisper", "num_mel_bins": 80}, "a speech recogniser, not a language model"),
        ({"architectures": ["BertModel"]}, r"an encoder \(BertModel\), which writes no text"),
        ({"architectures": ["DebertaV2ForMaskedLM"]}, "an encoder, which writes no text"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            r"a classifier or reward model, .* \(kind: reward ranks with one\) \(LlamaForSequenceClassification\)",
        ),
    ],
)
def test_what_transformers_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr("llm_blender_ray.actors.model_kinds._is_installed", lambda module: False)
    with pytest.raises(ModelLoadError, match=told) as caught:
        check_loadable(model(tmp_path, **config), TRANSFORMERS)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "gemma3", "vision_config": {"a": 1}, "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "exaone", "auto_map": {}, "quantization_config": None},
        quantized("fp8"),
        quantized("mxfp4"),
    ],
)
def test_other_models_are_left_to_the_loader(tmp_path: Path, config: dict[str, Any]) -> None:
    check_loadable(model(tmp_path, **config), TRANSFORMERS)


def test_each_loader_refuses_by_its_own_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer's package may come with vLLM, which answers text with multimodal models."""
    monkeypatch.setattr("llm_blender_ray.actors.model_kinds._is_installed", lambda module: False)
    for config in (
        quantized("awq"),
        quantized("bitsandbytes"),
        {"model_type": "qwen2_vl", "vision_config": {"a": 1}},
    ):
        check_loadable(model(tmp_path, **config), VLLM)
    with pytest.raises(ModelLoadError, match="quantized by exl2, which engine: vllm doesn't read"):
        check_loadable(model(tmp_path, **quantized("exl2")), VLLM)
    for config in (quantized("exl2"), {"architectures": ["BertModel"]}):
        check_loadable(model(tmp_path, **config), ANY_FORMAT)  # a ranker's


def test_a_quantizer_s_module_may_be_within_another(tmp_path: Path) -> None:
    modules = {"there": ("json.decoder",), "half": ("json", "json.none"), "gone": ("nowhere.at.all",)}
    formats = WeightFormats("it", modules)
    check_loadable(model(tmp_path, **quantized("there")), formats)
    for method, missing in (("half", "json.none"), ("gone", "nowhere.at.all")):
        with pytest.raises(
            ModelLoadError, match=f"by {method}, for which it needs {missing}; pip install {missing}"
        ):
            check_loadable(model(tmp_path, **quantized(method)), formats)


def test_the_formats_are_those_of_the_installed_transformers() -> None:
    assert TRANSFORMERS.quantizations is not None
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert TRANSFORMERS.quantizations.keys() == known
    parts = {name: getattr(CONFIG_MAPPING[name], "sub_configs", None) or {} for name in CONFIG_MAPPING}
    reading = {name for name, own in parts.items() if {"vision_config", "audio_config"} & own.keys()}
    assert TRANSFORMERS.multimodal == reading & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


def test_fp8_weights_are_read_on_any_device(tmp_path: Path) -> None:
    """In blocks with a scale each, as DeepSeek and Qwen publish them."""
    file = save_chat_model(tmp_path, ["capital of France"]) / "model.safetensors"
    tensors, size = load_file(file), 32
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].reshape(rows // size, size, columns // size, size)
        scale = blocks.abs().amax((1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (blocks / scale).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(rows // size, columns // size)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config |= quantized("fp8", activation_scheme="dynamic", weight_block_size=[size, size])
    (tmp_path / "config.json").write_text(json.dumps(config))

    async def main() -> Completion:
        sampling = Sampling(max_tokens=24)
        settings = {"name": "m", "model": str(tmp_path), "device": "cpu", "sampling": sampling}
        check_loadable(tmp_path, TransformersModel.weight_formats)
        engine = load_engine(TransformersModel(engine="transformers", **settings))
        answer = await engine.generate([Message(role="user", content="capital of France")], sampling)
        await engine.close()
        return answer

    assert asyncio.run(main()).text == FACTS["capital of France"]
