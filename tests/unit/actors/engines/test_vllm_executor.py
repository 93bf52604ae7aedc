"""Arguments of vLLM's engine on one node, and on the nodes of its actor's placement group."""

from pathlib import Path

import pytest

from llm_blender_ray.actors.engines.vllm_executor import parallel_arguments, placement_group_gpus, weights_arguments
from llm_blender_ray.configs.schema import VLLMModel


def model(**settings: object) -> VLLMModel:
    return VLLMModel.model_validate({"name": "v", "engine": "vllm", "model": "org/m", **settings})


@pytest.mark.parametrize(("there", "backend"), [(True, "ray"), (False, "mp")])
def test_the_executor_is_where_the_gpus_are(there: bool, backend: str) -> None:
    split = model(tensor_parallel_size=4, pipeline_parallel_size=2)
    with placement_group_gpus(there):
        assert parallel_arguments(split) == {
            "tensor_parallel_size": 4,
            "pipeline_parallel_size": 2,
            "distributed_executor_backend": backend,
        }
        assert parallel_arguments(model())["distributed_executor_backend"] is None
    assert parallel_arguments(split)["distributed_executor_backend"] == "mp"


def test_every_node_reads_a_hub_model_from_its_own_cache(tmp_path: Path) -> None:
    hub = model(pipeline_parallel_size=2, revision="abc")
    local = hub.model_copy(update={"model": str(tmp_path)})
    with placement_group_gpus(True):
        assert weights_arguments(hub, tmp_path) == {"model": "org/m", "revision": "abc"}
        assert weights_arguments(local, tmp_path) == {"model": str(tmp_path)}
        assert weights_arguments(model(), tmp_path) == {"model": str(tmp_path)}
    assert weights_arguments(hub, tmp_path) == {"model": str(tmp_path)}
