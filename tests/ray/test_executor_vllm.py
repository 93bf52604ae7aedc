"""vLLM inside a Ray actor: a bulk run gives the answers that transformers gives."""

import importlib.util
import json
from pathlib import Path

import pytest

from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk.commands import run_blend

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed (make test-vllm)"),
]


@pytest.mark.usefixtures("ray_session")
def test_bulk_run_on_vllm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two engines of one model, each with its share of the blocks."""
    prompts = (PRESETS / "miniature" / "heldout.jsonl").read_text().splitlines()[:40]
    (tmp_path / "in.jsonl").write_text("\n".join(prompts))
    config = load(PRESETS / "demo.yaml", BlendConfig, [f"input={tmp_path / 'in.jsonl'}"])
    local = config.models[0]
    vllm = {
        "name": "on-vllm",
        "engine": "vllm",
        "model": local.model,
        "num_gpus": 0,
        "num_cpus": 0.1,
        "replicas": 2,
        "max_model_len": 128,
        "sampling": local.sampling.model_dump(),
    }
    parts = {"models": [vllm, local.model_dump()], "ranker": {"kind": "echo"}, "fuser": None}
    run_blend(BlendConfig.model_validate(config.model_dump() | parts | {"output": str(tmp_path / "out.jsonl")}))
    assert "on-vllm x2" in capfd.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    for row in rows:
        vllm_candidate, local_candidate = row["candidates"]
        assert vllm_candidate.pop("model") == "on-vllm" and local_candidate.pop("model") == "alder"
        assert vllm_candidate == local_candidate
        assert vllm_candidate["error"] is None
        assert row["comparisons"] == 0  # equal texts: nothing to compare
