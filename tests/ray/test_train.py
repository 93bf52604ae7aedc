"""Training on two workers of Ray: the steps of one process, also when a worker dies in between."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llm_blender_ray.configs.training import RankerTraining
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.train.distributed import train_on_ray
from llm_blender_ray.pipelines.train.prepare import TrainingData
from llm_blender_ray.pipelines.train.process import TrainingProcess
from llm_blender_ray.pipelines.train.ranker import prepare_pairs, run_ranker_training, train_on_pairs

WORDS = ("acorn", "badge", "candle", "desert", "engine", "feather", "garden", "hammer")
DEATH = "death"  # file that the worker leaves which has died


class Die(TrainerCallback):
    """Kills the second worker in the seventh step, once."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See base class."""
        if state.global_step == 6 and ray.train.get_context().get_world_rank() == 1 and not self._mark.exists():
            ray.train.get_all_reported_checkpoints()  # waits until the controller knows that of step 5
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(config: RankerTraining, data: TrainingData, process: TrainingProcess) -> dict[str, float]:
    callbacks = process.checkpoints.callbacks()
    mark = Path(config.train).parent / DEATH
    process.checkpoints.callbacks = lambda: [*callbacks, Die(mark)]  # type: ignore[method-assign]
    return train_on_pairs(config, data, process)


def settings(folder: Path, output: str, **changes: Any) -> RankerTraining:
    return RankerTraining.model_validate(
        {
            "backbone": str(folder / "backbone"),
            "train": str(folder / "train.jsonl"),
            "heldout": str(folder / "heldout.jsonl"),
            "output": str(folder / output),
            "metrics": ["quality"],
            "dropout": 0.0,
            "source_max_length": 32,
            "candidate_max_length": 16,
            "optimization": {
                "learning_rate": 1e-3,
                "epochs": 2,
                "batch_size": 8,
                "log_every": 1,
                "evaluate_every": 5,
                "save_every": 5,
                **changes.pop("optimization", {}),
            },
            **changes,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and rows: 37 to learn from are four steps of 8 and one of 5."""
    folder = tmp_path_factory.mktemp("training")
    save_blank_encoder(folder / "backbone", seed=0)
    for name, count in (("train", 37), ("heldout", 10)):
        rows = [
            {
                "instruction": f"Say {WORDS[i % 8]} ({name}).",
                "candidates": [
                    {"model": model, "text": f"{word} {i}", "scores": {"quality": score}}
                    for model, word, score in (("a", WORDS[i % 8], 1.0), ("b", WORDS[(i + 3) % 8], 0.0))
                ],
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def losses(output: Path) -> list[float]:
    state = json.loads((output / "checkpoints" / "checkpoint-10" / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_two_workers_of_which_one_dies_make_the_steps_of_one_process(
    folder: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = run_ranker_training(settings(folder, "one"))
    capfd.readouterr()
    config = settings(
        folder,
        "two",
        optimization={"batch_size": 4},
        scaling={"workers": 2},
        ray={"address": "local", "num_cpus": 2},
    )
    assert config.scaling is not None
    measured = train_on_ray(config, config.scaling, prepare_pairs, train_and_die, "ranker")
    assert (folder / DEATH).exists()
    assert measured["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-4)
    assert measured["eval_accuracy"] == expected["eval_accuracy"]
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), abs=2e-4)  # rounded to four digits
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=0)  # AdamW magnifies tiny gradients' rounding

    printed = capfd.readouterr()
    assert "ranker saved in" in printed.out
    assert "held-out accuracy" in printed.out
    assert "ranker: 8 examples a step (2 workers x batch_size 4 x accumulation 1)\n" in printed.err
    assert re.search(r"ranker: worker \d.*; restart 1 of 3 from the last checkpoint\n", printed.err)
    assert printed.err.count("step 1/10") == 1  # it resumed
    assert "step 10/10" in printed.err
    assert "Reporting" not in printed.err  # Ray Train's own lines
    assert not (folder / "two" / "data").exists()
    assert {one.name for one in (folder / "two").iterdir()} == {one.name for one in (folder / "one").iterdir()}
