"""Folders of adapters that can't be applied to a model are named, by their headers alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_adapter, save_plain_model

from llm_blender_ray.actors.adapter_files import adapter_rank, check_adapter, other_base
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_files import ADAPTER_CONFIG
from llm_blender_ray.configs.weight_formats import TRANSFORMERS, VLLM, WeightFormats

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
EVERY = (TRANSFORMERS, VLLM)


def folder(tmp_path: Path, **settings: Any) -> Path:
    """An adapter that is good but for its settings: weights without a tensor."""
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(LORA | settings))
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle, which isn't read")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "formats", "told"),
    [
        ({"peft_type": "IA3"}, EVERY, "a IA3 adapter; engine: .* reads LoRA adapters$"),
        ({"peft_type": None}, EVERY, "a PEFT adapter; engine: .* reads LoRA adapters$"),
        ({"task_type": "SEQ_CLS"}, EVERY, "an adapter for SEQ_CLS, which makes a model that writes no text$"),
        ({"use_dora": True}, EVERY, r"it has DoRA \(use_dora\), which engine: .*; merge it into the model"),
        ({"modules_to_save": ["lm_head"]}, EVERY, r"it has whole modules \(modules_to_save\), which engine: "),
        ({"layer_replication": [[0, 2]]}, EVERY, "repeated layers"),
        ({"bias": "all"}, EVERY, r"it replaces biases of the model \(bias: all\)"),
        ({"init_lora_weights": "pissa"}, EVERY, r"it replaces weights of the model \(init_lora_weights: pissa\)"),
        ({"lora_bias": True}, [VLLM], r"it has biases \(lora_bias\), which engine: vllm can't apply"),
        ({"r": 600}, [VLLM], "its rank is 600, and engine: vllm takes 512 at most"),
        ({"rank_pattern": {"q_proj": 700}}, [VLLM], "its rank is 700"),
        ({"r": "8"}, EVERY, 'expected r to be an integer >= 1, got "8"$'),
    ],
)
def test_settings_that_no_engine_applies(
    tmp_path: Path, settings: dict[str, Any], formats: tuple[WeightFormats, ...], told: str
) -> None:
    path = folder(tmp_path, **settings)
    for one in formats:
        with pytest.raises(ModelLoadError, match=f"^{tmp_path}: .*{told}") as caught:
            check_adapter(path, one)
        assert "\n" not in str(caught.value)
    for one in EVERY:
        if one not in formats:
            check_adapter(path, one)


def test_folders_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"/nowhere: no such folder$"):
        check_adapter(tmp_path / "nowhere", VLLM)
    with pytest.raises(ModelLoadError, match=r"a folder without adapter_config\.json, so it is no LoRA adapter$"):
        check_adapter(tmp_path, VLLM)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"a model without adapter_config\.json"):
        check_adapter(tmp_path, VLLM)
    file = folder(tmp_path) / "adapter_model.bin"
    check_adapter(tmp_path, VLLM)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelLoadError, match="only a Git LFS pointer"):
        check_adapter(tmp_path, VLLM)
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"no adapter_model\.safetensors or adapter_model\.bin"):
        check_adapter(tmp_path, VLLM)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelLoadError, match="can't be read as safetensors"):
        check_adapter(tmp_path, VLLM)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("base"))


def changed(base: Path, into: Path, **settings: Any) -> Path:
    """The folder of a model with another config.json, and weights of that shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    config.update(settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(into)
    return into


def test_an_adapter_of_a_model_of_another_shape_is_named(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", r=5)
    check_adapter(adapter, VLLM, base)
    assert adapter_rank(adapter) == 5
    narrow = changed(base, tmp_path / "narrow", hidden_size=32, num_attention_heads=1, num_key_value_heads=1)
    shallow = changed(base, tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(
        ModelLoadError, match=r"another model: model\.layers\.0\.\S+ has \d+ (in|out)puts, and \d+ x"
    ):
        check_adapter(adapter, VLLM, narrow)
    with pytest.raises(ModelLoadError, match=r"another model: it has a layer 1, and \S+/shallow has 1 layers$"):
        check_adapter(adapter, VLLM, shallow)
    deep = changed(base, tmp_path / "deep", num_hidden_layers=3)
    check_adapter(adapter, VLLM, deep)  # nothing in its files contradicts that


def test_a_damaged_model_is_named_itself(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelLoadError, match=r"/broken/model\.safetensors: can't be read as safetensors"):
        check_adapter(adapter, VLLM, broken)


def test_the_name_of_another_base_is_told(base: Path, tmp_path: Path) -> None:
    adapter = folder(tmp_path, base_model_name_or_path="org/Llama-8B")
    assert other_base(adapter, "/models/llama-8b") is None
    assert other_base(adapter, "org/Qwen-8B") == "org/Llama-8B"
    folder(tmp_path, base_model_name_or_path=None)
    assert other_base(adapter, "org/Qwen-8B") is None


def test_no_check_imports_torch(base: Path, tmp_path: Path) -> None:
    """It is done before Ray starts, within a second."""
    adapter = save_adapter(base, tmp_path / "adapter")
    code = (
        "import sys; from pathlib import Path\n"
        "from llm_blender_ray.actors.adapter_files import check_adapter\n"
        "from llm_blender_ray.configs.weight_formats import VLLM\n"
        f"check_adapter(Path({str(adapter)!r}), VLLM, Path({str(base)!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
