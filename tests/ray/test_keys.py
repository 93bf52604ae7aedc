"""Results are computed again where weights changed under the same config, and only there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import BlendConfig, PairRanker
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.rows.outputs import Output


def results(output: Path) -> dict[str, int]:
    """When each stored result was written, by its path."""
    root = Path(Output(str(output)).work_folder) / "results"
    return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in root.rglob("*.parquet")}


def scores(output: Path) -> list[Any]:
    return [json.loads(line)["scores"] for line in output.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_replaced_weights_are_computed_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shutil.copytree(PRESETS / "miniature" / "ranker", tmp_path / "ranker")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = (json.dumps({"id": f"r{i}", "prompt": f"number {i} of many"}) + "\n" for i in range(4))
    source.write_text("".join(lines))
    models = [
        {"name": name, "engine": "echo", "model": "none", "sampling": {"max_tokens": words}}
        for name, words in (("two", 2), ("four", 4))
    ]
    ranker = {"model": str(weights), "device": "cpu", "num_cpus": 0.1, "strategy": "full"}
    settings = {"models": models, "ranker": ranker, "input": str(source), "output": str(output)}
    config = BlendConfig.model_validate(settings | {"ray": {"num_cpus": 2}})
    run_blend(config)
    before, scores_before = results(output), scores(output)
    assert run_blend(config).resumed

    file = weights / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        BlendError, match=r"exists already.*another config \(weights of ranker have changed\); --update"
    ):
        run_blend(config)
    run_blend(config, update=True)
    after = results(output)
    assert before.items() <= after.items()  # no LLM was asked again
    assert {name.partition("-")[0] for name in after.keys() - before.keys()} == {"rank"}
    assert scores(output) != scores_before

    monkeypatch.setattr(PairRanker, "results_version", 3)
    with pytest.raises(BlendError, match="ranker: this release gives other results"):
        run_blend(config)
