"""Every preset loads, fits the GPUs that it is for, and is on the page of presets. No model is downloaded."""

import re
from pathlib import Path

import pytest
from documentation import docs_hooks
from paths import ROOT

from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.cluster.plan import make_plan
from llm_blender_ray.configs.fusers import LLMFuser
from llm_blender_ray.configs.loading import load
from llm_blender_ray.configs.schema import BlendConfig, LocalLLM, VLLMModel

hooks = docs_hooks()
PRESETS: dict[str, Path] = hooks.blend_presets()
GPUS = {  # for which each preset is written
    "demo": (0, 1),
    "demo-real": (0, 1),
    "demo-self": (0, 1),
    "endpoints": (0, 1),
    "laptop": (0, 1),
    "modern-1-gpu": (1, 4, 8),
    "modern-4-gpus": (4, 8),
    "modern-8-gpus": (8,),
    "paper": (1, 4, 8, 13),
    "three-models": (1, 5),
}
GPU_GB = 80.0
MODERN = ["modern-1-gpu", "modern-4-gpus", "modern-8-gpus"]
SIZED = [*MODERN, "paper", "laptop"]


def preset(name: str) -> BlendConfig:
    return load(PRESETS[name], BlendConfig)


def sizes(name: str) -> dict[str, tuple[float, float, str]]:
    """Parameters in billions, GB of weights, and the rest of the note of each of a preset's models."""
    found = {}
    for model, note in hooks.model_notes(PRESETS[name].read_text()).items():
        match = re.match(r"([\d.]+)B((?: \([^)]*\))?(?: in \w+)?), ([\d.]+) GB, (.+)", note)
        assert match is not None, f"{name}: {model}: {note}"
        found[model] = (float(match[1]), float(match[3]), match[2] + match[4])
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_gpus_that_it_is_for(name: str) -> None:
    config = preset(name)
    for gpus in GPUS[name]:
        plan = make_plan(config, Capacity.machine(cpus=2, gpus=gpus))
        assert {one.name for one in plan.placements} == set(config.parts)
        for wave in plan.waves:
            assert sum(one.num_gpus * one.replicas for one in wave) <= gpus


def test_thirteen_gpus_hold_the_paper_s_blend_at_once() -> None:
    assert len(make_plan(preset("paper"), Capacity.machine(cpus=2, gpus=13)).waves) == 1


@pytest.mark.parametrize("name", SIZED)
def test_weights_are_what_their_parameters_take_and_fit(name: str) -> None:
    noted, config = sizes(name), preset(name)
    assert noted.keys() == {model.name for model in config.models}
    for model in config.models:
        billions, gb, rest = noted[model.name]
        if "MXFP4" not in rest:
            bytes_each = 1 if "FP8" in rest else 2
            assert gb == pytest.approx(billions * bytes_each, abs=1.2), model.name
        if isinstance(model, VLLMModel):  # a tenth for activations and KV cache
            room = model.tensor_parallel_size * GPU_GB * model.gpu_memory_utilization
            assert gb <= 0.9 * room, model.name


@pytest.mark.parametrize("name", MODERN)
def test_modern_presets_have_eleven_families(name: str) -> None:
    models = preset(name).models
    assert len({model.model.partition("/")[0] for model in models}) == len(models) == 11


def test_paper_has_eleven_and_laptop_three_below_a_billion() -> None:
    assert len(preset("paper").models) == 11
    assert len(preset("laptop").models) == 3
    assert all(billions < 1 for billions, _, _ in sizes("laptop").values())


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_executes_code_of_a_repository(name: str) -> None:
    config = preset(name)
    llms = [*config.models, *([config.fuser.llm] if isinstance(config.fuser, LLMFuser) else [])]
    assert not any(isinstance(llm, LocalLLM) and llm.trust_remote_code for llm in llms)


def test_the_page_of_presets_lists_every_model() -> None:
    page = hooks.presets_reference()
    for name in PRESETS:
        section = page.partition(f"## `configs/{name}.yaml`")[2].partition("\n## ")[0]
        for model in preset(name).models:
            assert f"| `{Path(model.model).name if Path(model.model).is_dir() else model.model}`" in section
        assert re.search(r"\nWaves: \d+ with", section)
    assert "<!-- presets -->" in (ROOT / "docs/presets.md").read_text()
