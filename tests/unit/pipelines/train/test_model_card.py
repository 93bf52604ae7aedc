"""Model cards: metadata that the hub reads, figures as measured, and nothing of the machine or of a secret."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from llm_blender_ray.configs.training import FuserTraining, RankerTraining
from llm_blender_ray.pipelines.train.model_card import write_model_card

SECRETS = ("anna", "hunter2", "sig=abc", "/data")


def ranker(**changes: object) -> RankerTraining:
    base = {
        "backbone": "microsoft/deberta-v3-large",
        "train": "https://anna:hunter2@host.example/train.jsonl?sig=abc",
        "heldout": "/data/anna/val.jsonl",
        "output": "/data/anna/ranker",
        "metrics": ["bartscore"],
        "optimization": {"learning_rate": 1e-5},
    }
    return RankerTraining.model_validate(base | changes)


def card_of(folder: Path, config: RankerTraining | FuserTraining, **measured: float) -> tuple[ModelCard, str]:
    examples = {"train": 12_345, "heldout": 678 if config.heldout else 0}
    write_model_card(config, folder, examples=examples, measured=measured, findings=["in both orders: .7"])
    return ModelCard.load(folder / "README.md"), (folder / "README.md").read_text()


def test_a_rankers_card_has_data_settings_and_figures(tmp_path: Path) -> None:
    card, text = card_of(tmp_path, ranker(), eval_loss=0.51234, eval_accuracy=0.71239, epoch=1.0)
    assert card.data.base_model == "microsoft/deberta-v3-large"
    assert card.data.tags == ["llm-blender", "pairranker"]
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("val.jsonl", 0.7124)
    assert "| `train` | `https://host.example/train.jsonl` | 12,345 pairs |" in text
    assert "- loss: 0.5123" in text
    assert "- in both orders: .7" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["optimization"]["learning_rate"] == 1e-5
    assert settings["metrics"] == ["bartscore"]
    assert RankerTraining.model_validate(settings | {"output": "again"})  # a config that trains the same
    assert not [secret for secret in SECRETS if secret in text]


def test_a_local_base_model_is_named_without_its_folders(tmp_path: Path) -> None:
    config = FuserTraining.model_validate(
        {"model": "/data/anna/t5", "train": "rows/", "output": "x", "optimization": {"learning_rate": 1e-3}}
    )
    card, text = card_of(tmp_path, config)
    assert card.data.base_model is None
    assert card.data.eval_results is None
    assert "GenFuser trained from `t5`" in text
    assert "| `train` | `rows/` | 12,345 rows |" in text
    assert "`heldout`" not in text
    assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("uri", ["file:///data/anna/train.jsonl", "~/anna/../train.jsonl", "/data/train.jsonl"])
def test_local_paths_lose_their_folders(uri: str, tmp_path: Path) -> None:
    _, text = card_of(tmp_path, ranker(train=uri))
    assert "| `train` | `train.jsonl` |" in text
    assert not [secret for secret in SECRETS if secret in text]


def test_uris_on_a_store_stay_as_given(tmp_path: Path) -> None:
    _, text = card_of(tmp_path, ranker(train="s3://bucket/rows/*.parquet"))
    assert "| `train` | `s3://bucket/rows/*.parquet` |" in text
