"""What decides answers, and what may change between two sessions of a run."""

from typing import Annotated, Any

import pytest

from llm_blender_ray.configs.identity import deciding, settings_digest
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import EndpointModel, VLLMModel
from llm_blender_ray.configs.settings import OMIT_DEFAULT, Settings


def model(**changes: Any) -> VLLMModel:
    return VLLMModel.model_validate({"name": "m", "engine": "vllm", "model": "org/m", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_gpus": 2, "replicas": 3, "accelerator_type": "H100", "resources": {"slot": 1}},
        {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True},
    ],
)
def test_where_and_how_fast_decides_nothing(changes: dict) -> None:
    assert deciding(model(**changes)) == deciding(model())


def test_an_included_model_is_the_same_wherever_the_project_is() -> None:
    """A job unpacks the project into a folder of a new name each time."""
    assert deciding(model(model=str(PRESETS / "miniature" / "alder")))["model"] == "miniature/alder"


def test_how_an_endpoint_is_asked_decides_nothing() -> None:
    fixed = {"name": "m", "engine": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    how = {"max_retries": 0, "timeout_s": 3, "max_in_flight": 2, "breaker": {"failures": 1}}
    assert deciding(EndpointModel.model_validate(fixed | how)) == deciding(EndpointModel.model_validate(fixed))


def test_a_later_field_decides_once_it_is_set() -> None:
    """Or a release with a new setting would make every stored result anew."""

    class Later(Settings):
        old: int = 1
        new: Annotated[dict[str, int] | None, OMIT_DEFAULT] = None

    class Around(Settings):
        inner: Later = Later()

    assert deciding(Around()) == {"inner": {"old": 1}}
    assert deciding(Around(inner=Later(new={}))) == {"inner": {"old": 1, "new": {}}}


def test_a_digest_is_of_json_values_alone() -> None:
    assert settings_digest({"b": 1, "a": [2]}) == settings_digest({"a": [2], "b": 1}) != settings_digest({})
    with pytest.raises(TypeError):
        settings_digest({"a": object()})
