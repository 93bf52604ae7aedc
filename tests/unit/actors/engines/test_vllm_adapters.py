"""Arguments of a vLLM engine with adapters, without vLLM. Its requests are tested in `test_vllm`."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_adapter, save_plain_model

from llm_blender_ray.actors.engines.vllm_adapters import VLLMAdapters
from llm_blender_ray.actors.engines.vllm_executor import placement_group_gpus
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.configs.schema import VLLMModel

RANKS = (1, 8, 16, 32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    into = tmp_path_factory.mktemp("adapters")
    return {str(rank): str(save_adapter(base, into / str(rank), r=rank)) for rank in (3, 9)}


def model(base: Path, **given: Any) -> VLLMModel:
    return VLLMModel.model_validate({"name": "v", "engine": "vllm", "model": str(base), **given})


def test_all_adapters_are_held_at_once_at_the_smallest_rank(base: Path, adapters: dict[str, str]) -> None:
    loads = VLLMAdapters(model(base, adapters=adapters), base)
    common = {"enable_lora": True, "max_lora_rank": 16}
    assert loads.arguments({}, RANKS, on_cpu=False) == common | {"max_loras": 2}
    assert loads.arguments({"max_loras": 1}, RANKS, on_cpu=False) == common | {"max_loras": 1}
    # one place stays empty, which rows without an adapter get
    assert loads.arguments({"max_loras": 1}, RANKS, on_cpu=True) == common | {"max_loras": 3}
    assert loads.arguments({"max_lora_rank": 32}, RANKS, on_cpu=False)["max_lora_rank"] == 32
    assert VLLMAdapters(model(base), base).arguments({}, RANKS, on_cpu=True) == {}
    with pytest.raises(ModelLoadError, match="v: adapters: the installed vLLM takes ranks up to 8, not 9"):
        loads.arguments({}, RANKS[:2], on_cpu=False)


def test_an_adapter_above_the_engine_s_rank_is_refused(base: Path, adapters: dict[str, str]) -> None:
    with pytest.raises(ModelLoadError, match="its rank is 9, and engine: vllm takes 8 at most"):
        VLLMAdapters(model(base, adapters=adapters, engine_args={"max_lora_rank": 8}), base)


def test_several_nodes_read_no_revision(
    base: Path, adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llm_blender_ray.actors.engines.vllm_adapters.locate_adapter",
        lambda adapter, formats, base: base / "cached",
    )
    pinned = model(base, adapter={"path": "org/legal", "revision": "v1"}, tensor_parallel_size=2)
    VLLMAdapters(pinned, base)
    with placement_group_gpus(True), pytest.raises(ModelLoadError, match="v: org/legal: on several nodes vLLM"):
        VLLMAdapters(pinned, base)
