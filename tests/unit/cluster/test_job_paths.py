"""Paths of a command line as a job names them."""

from pathlib import Path

import pytest

from llm_blender_ray.cluster.job_paths import JobPaths, config_on_cluster, local_paths
from llm_blender_ray.configs.loading import PRESETS, ConfigError, load, load_mapping
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.configs.training import RankerTraining


def test_an_included_model_travels_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = JobPaths(here=False)
    included = PRESETS / "miniature" / "ranker"
    assert paths.model("ranker", str(included)) == "llm_blender_ray/configs/miniature/ranker"
    assert paths.model("ranker", "llm-blender/PairRM") == "llm-blender/PairRM"
    assert paths.model("ranker", "/models/PairRM") == "/models/PairRM"
    assert paths.included == [included] and paths.local == ["/models/PairRM"]
    with pytest.raises(ConfigError, match=r"^ranker: mine: the cluster's machines can't see"):
        paths.model("ranker", "mine")
    assert JobPaths(here=True).model("ranker", "mine") == str(tmp_path / "mine")


def test_a_metric_s_model_is_a_path_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    metric = JobPaths(here=True).metric("bertscore:idf=true,model=mine,as=b")
    assert metric == f"bertscore:idf=true,model={tmp_path / 'mine'},as=b"
    assert JobPaths(here=False).metric("bertscore:model=roberta-large") == "bertscore:model=roberta-large"
    with pytest.raises(ConfigError, match=r"^metric: mine: "):
        JobPaths(here=False).metric("bertscore:model=mine")


def test_a_config_s_rows_and_outputs_are_the_cluster_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blend = load(
        PRESETS / "demo.yaml",
        BlendConfig,
        ["input=in.jsonl", "output=s3://rows/out/", "preferences={output: pairs.jsonl}"],
    )
    moved = config_on_cluster(blend, here=True)
    assert (moved.input, moved.output) == (str(tmp_path / "in.jsonl"), "s3://rows/out/")
    assert moved.preferences is not None and moved.preferences.output == str(tmp_path / "pairs.jsonl")
    training = load_mapping(
        {
            "train": "s3://rows/train/",
            "heldout": "heldout.jsonl",
            "output": "/models/mine",
            "backbone": "b",
            "metrics": ["gpt4"],
            "optimization": {"learning_rate": 1e-4},
        },
        RankerTraining,
        name="mine.yaml",
    )
    with pytest.raises(ConfigError, match=r"^heldout: heldout\.jsonl: "):
        config_on_cluster(training, here=False)
    moved_training = config_on_cluster(training, here=True)
    assert moved_training == training.model_copy(update={"heldout": str(tmp_path / "heldout.jsonl")})


def test_local_adapters_are_named_as_models_are() -> None:
    adapters = {"legal": "/adapters/legal", "code": {"path": "org/code"}}
    model = {"name": "m", "engine": "vllm", "model": "/models/m", "adapters": adapters}
    config = BlendConfig.model_validate({"models": [model], "ranker": {"kind": "echo"}})
    assert local_paths(config) == ["/models/m", "/adapters/legal"]
