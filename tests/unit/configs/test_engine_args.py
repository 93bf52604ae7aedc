"""`engine_args` of a vLLM model: checked with a config, on a machine without vLLM too."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llm_blender_ray.configs import engine_args
from llm_blender_ray.configs.engine_args import (
    VLLM_ARGUMENTS,
    WRITTEN_ARGUMENTS,
    argument_problem,
    engine_args_problem,
    known_arguments,
)
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.loading import ConfigError, load
from llm_blender_ray.configs.schema import BlendConfig, VLLMModel


def vllm(**given: Any) -> VLLMModel:
    return VLLMModel(name="v", engine="vllm", model="m", engine_args=given)


@pytest.mark.parametrize(
    "given",
    [
        {"kv_cache_dtype": "fp8", "enable_prefix_caching": False, "block_size": 16},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}},
        {"cpu_offload_gb": 2, "max_num_batched_tokens": None, "max_lora_rank": 64, "load_format": "runai_streamer"},
        {"hf_overrides": {"rope_scaling": {"factor": 4.0}}, "ignore_patterns": ["original/*"]},
    ],
)
def test_arguments_of_vllm_pass(given: dict[str, Any]) -> None:
    assert engine_args_problem(given) is None
    assert vllm(**given).engine_args == given


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"kv_cache_dtyp": "fp8"}, "vLLM has no argument kv_cache_dtyp; did you mean kv_cache_dtype?"),
        ({"qwertz": 1}, "vLLM has no argument qwertz"),
        ({"block_size": "16"}, 'block_size: expected integer or null, got "16"'),
        ({"block_size": True}, "block_size: expected integer or null, got true"),
        ({"enable_lora": 1}, "enable_lora: expected boolean, got 1"),
        ({"scheduling_policy": "lifo"}, 'scheduling_policy: expected "fcfs" or "priority", got "lifo"'),
        ({"speculative_config": "ngram"}, 'speculative_config: expected null or object, got "ngram"'),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is a setting by itself"),
        ({"seed": 3}, "seed is set by sampling.seed"),
        ({"data_parallel_size": 2}, "data_parallel_size is set by replicas: each is an engine of its own"),
        ({"generation_config": "vllm"}, "generation_config is set by sampling.from_model"),
        ({"_api_process_rank": 1}, "vLLM has no argument _api_process_rank"),
    ],
)
def test_others_are_refused_in_a_line(given: dict[str, Any], problem: str) -> None:
    assert (engine_args_problem(given) or "").startswith(problem)


def test_a_config_names_the_setting(tmp_path: Path) -> None:
    model = {"name": "v", "engine": "vllm", "model": "m", "engine_args": {"kv_cache_dtyp": "fp8"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"models": [model], "ranker": {"model": "r"}}))
    with pytest.raises(ConfigError, match=r"c.yaml: models.0.engine_args: vLLM has no argument kv_cache_dtyp; did"):
        load(tmp_path / "c.yaml", BlendConfig)


def test_arguments_decide_results_once_they_are_given() -> None:
    assert "engine_args" not in deciding(vllm())
    assert deciding(vllm(kv_cache_dtype="fp8")) != deciding(vllm())


def test_an_engine_has_the_gpus_of_both_kinds_of_parallelism() -> None:
    model = {"name": "v", "engine": "vllm", "model": "m", "tensor_parallel_size": 2, "pipeline_parallel_size": 3}
    assert VLLMModel.model_validate(model).default_gpus(has_gpus=True) == 6
    assert VLLMModel.model_validate(model | {"num_gpus": 0}).num_gpus == 0  # on CPUs
    with pytest.raises(ValidationError, match=r"num_gpus: 4 is less than .* \(6\)"):
        VLLMModel.model_validate(model | {"num_gpus": 4})
    assert VLLMModel(name="v", engine="vllm", model="m", num_gpus=0.5).num_gpus == 0.5  # shared


def test_what_another_vllm_may_have_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_args, "_installed_version", lambda: "0.99.0")
    assert engine_args_problem({"of_a_later_version": 1}) is None
    assert engine_args_problem({"block_size": "16"}) and engine_args_problem({"seed": 1})


def test_every_written_argument_exists() -> None:
    """One that vLLM drops or renames would be passed on unseen."""
    assert WRITTEN_ARGUMENTS.keys() <= known_arguments()["arguments"].keys()


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_description_is_that_of_the_installed_vllm() -> None:
    from llm_blender_ray.actors.engines.vllm_arguments import installed_arguments

    installed = installed_arguments()
    assert installed == json.loads(VLLM_ARGUMENTS.read_text(encoding="utf-8"))
    assert argument_problem({"enable_prefix_caching": True}, installed["arguments"]) is None
