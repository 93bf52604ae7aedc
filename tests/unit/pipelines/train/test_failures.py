"""Signs of failed trainings."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import write
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from llm_blender_ray.pipelines.train.failures import (
    FailedTrainingError,
    LossWatch,
    check_finite,
    print_warnings,
    refuse,
    rising_loss,
    shared_prompts,
)
from llm_blender_ray.pipelines.train.rows import TrainingRow, read_training_rows


@pytest.mark.parametrize(
    ("losses", "since"),
    [
        ([0.7, 0.6, 0.5, 0.4], None),
        ([0.7, 0.9, 1.1, 0.6], None),  # it comes back
        ([0.7, 0.69, 0.72, 0.71], None),  # the noise of a training that learns nothing
        ([0.7, 0.6, 0.5, 0.4, 0.9], None),  # at the end alone
        ([0.7, 0.6, 0.9, 1.1], 20),
        ([-1.0, -1.1, -0.9, -0.8], 20),  # of a loss that may be negative
        ([0.7, 9.0, 9.0], None),  # too few to judge by
    ],
)
def test_a_loss_above_its_start_for_half_of_the_training_is_a_sign(losses: list[float], since: int | None) -> None:
    found = rising_loss([(10 * i, loss) for i, loss in enumerate(losses)])
    if since is None:
        assert found is None
    else:
        assert found is not None
        assert f"since step {since}" in found


def log(watch: LossWatch, step: int, logs: dict[str, float], folder: Path) -> TrainerState:
    state = TrainerState(global_step=step)
    watch.on_log(TrainingArguments(str(folder), use_cpu=True), state, TrainerControl(), logs)
    return state


@pytest.mark.parametrize("name", ["loss", "train_loss"])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training(name: str, loss: float, tmp_path: Path) -> None:
    watch = LossWatch("ranker")
    log(watch, 10, {"loss": 0.7}, tmp_path)
    log(watch, 10, {"eval_loss": 0.7}, tmp_path)
    with pytest.raises(
        FailedTrainingError, match=rf"ranker: diverged: the loss is {loss} at step 20; nothing is s"
    ):
        log(watch, 20, {name: loss}, tmp_path)


def test_weights_that_are_no_numbers_are_not_saved() -> None:
    model = torch.nn.Linear(2, 1)
    check_finite("ranker", model)
    with torch.no_grad():
        model.bias[0] = math.inf
    with pytest.raises(FailedTrainingError, match="weights of bias are not finite; nothing is saved"):
        check_finite("ranker", model)


def rows_of(folder: Path, name: str, *prompts: str | list[dict[str, str]]) -> list[TrainingRow]:
    rows: list[dict[str, Any]] = [
        {"id": f"{name}-{i}", "messages" if isinstance(prompt, list) else "instruction": prompt, "candidates": []}
        for i, prompt in enumerate(prompts)
    ]
    return read_training_rows(write(folder / f"{name}.jsonl", rows))


def test_a_leak_is_counted_and_has_an_example(tmp_path: Path) -> None:
    train = rows_of(tmp_path, "train", "a", "b", "c", "b")
    assert shared_prompts(train, rows_of(tmp_path, "other", "d", "A", [{"role": "user", "content": "a"}])) is None
    found = shared_prompts(train, rows_of(tmp_path, "heldout", "d", "b", "b", "c"))
    assert found is not None
    assert found.startswith("leak: the prompts of 3 of 4 held-out rows are in the training rows too")
    assert "held-out row heldout-1 (training row train-1)" in found


def test_warnings_are_lines_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_warnings("ranker", ["at chance", "constant"])
    assert capsys.readouterr().err == "ranker: warning: at chance\nranker: warning: constant\n"
    refuse("ranker", [])
    with pytest.raises(
        FailedTrainingError, match=r"^ranker: failed: at chance \(and 1 more: constant\); nothing is"
    ):
        refuse("ranker", ["at chance", "constant"])
