"""What a run says before it starts."""

from pathlib import Path

import pytest

from llm_blender_ray.configs.schema import EchoModel, TransformersModel
from llm_blender_ray.pipelines.bulk.planning import bare_prompts


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
