"""What a run says before it starts."""

from pathlib import Path

import pytest

from llm_blender_ray.cluster.placement import Capacity, Node, place
from llm_blender_ray.configs.schema import BlendConfig, EchoModel, TransformersModel, VLLMModel
from llm_blender_ray.pipelines.bulk.planning import bare_prompts, node_lines, show_plan


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, True),
        ({"chat_template": "bare"}, False),
        ({"chat_template": "vicuna"}, False),
        ({"model": "/nowhere"}, False),
    ],
)
def test_a_model_asked_with_bare_text_is_told(tmp_path: Path, settings: dict[str, str], told: bool) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    model = {"name": "m", "engine": "transformers", "model": str(tmp_path), **settings}
    lines = list(
        bare_prompts([TransformersModel.model_validate(model), EchoModel(name="e", engine="echo", model="e")])
    )
    assert [line.startswith("m: its tokenizer has no chat template") for line in lines] == [True] * told


def test_what_replicas_expect_of_several_nodes_is_told(tmp_path: Path) -> None:
    nodes = Capacity((Node(8, 2), Node(8, 2), Node(8, 1)))

    def line(model: str, tensor: int, stages: int) -> str:
        sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages}
        settings = VLLMModel.model_validate({"name": "m", "engine": "vllm", "model": model, **sizes})
        return "".join(node_lines([place("m", settings, nodes)]))

    assert line("org/m", 2, 1) == "" and line(str(tmp_path), 1, 2) == ""
    assert line("org/m", 2, 2) == (
        "m: one replica takes 2 nodes x 2 GPU; org/m is read from each node's own cache of the hub"
    )
    assert line(str(tmp_path), 1, 5).startswith(
        f"m: one replica takes 3 nodes, 2 + 2 + 1 GPU; {tmp_path} must be at"
    )
    assert line("/mnt/m", 1, 3).startswith("m: one replica takes 2 nodes, 2 + 1 GPU; /mnt/m must be at this path")


def test_a_model_and_its_adapters_are_one_line_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """One set of weights on one GPU, and the names of all that it answers as."""
    model = {"name": "base", "engine": "vllm", "model": "org/m", "adapters": {"legal": "org/l", "code": "org/c"}}
    config = BlendConfig.model_validate({"models": [model], "ranker": {"kind": "echo"}, "ray": {"num_cpus": 2}})
    show_plan(config, 1)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "org/m" in line]
    assert " ".join(line.split()) == "base vllm org/m as base, legal, code 1 0 1"
    assert "Everything fits at once." in lines
