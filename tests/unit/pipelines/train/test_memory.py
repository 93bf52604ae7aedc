"""Estimated memory of trainings, against numbers that were derived by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_rows import short

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.training import RankerTraining
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder
from llm_blender_ray.pipelines.train.estimate import estimate_training
from llm_blender_ray.pipelines.train.memory import MemoryEstimate, MemoryParts, TrainedModel, estimate_memory

WEIGHTS = 64 * 32 + 32  # of the layer


class Layer(nn.Module):
    """One linear layer with its mean as loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.linear(x).mean()}


class Reading(Layer):
    """A model whose steps depend on contents."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x[: int(x.sum().item())])


def simulated(kind: type[nn.Module] = Layer, **changes: object) -> MemoryEstimate:
    with torch.device("meta"):
        model, batch = kind(), {"x": torch.ones(4096, 64)}
    return estimate_memory(TrainedModel(model, batch, short(**changes), bf16=False), framework=0)


def test_a_step_of_one_layer() -> None:
    found = simulated()
    assert (found.parameters, found.trained) == (WEIGHTS, WEIGHTS)
    assert found.alone.weights == 4 * WEIGHTS
    assert found.alone.optimizer == 8 * WEIGHTS + 8  # two moments a weight, and a step number of each tensor
    assert found.alone.gradients == 0  # the output is the largest tensor, before there are any
    assert found.alone.temporary >= 4 * 4096 * 32
    assert simulated(accumulation=2).alone.gradients == 4 * WEIGHTS  # those of the first forward are still there


def test_states_by_optimizer() -> None:
    assert simulated(optimizer="adamw_8bit").alone.optimizer == 2 * WEIGHTS
    row_and_column, bias, scales = 4 * (64 + 32), 4 * 32, 2 * 4
    assert simulated(optimizer="adafactor").alone.optimizer == row_and_column + bias + scales


def test_code_that_reads_contents_is_one_clear_line() -> None:
    with pytest.raises(BlendError, match="can't be simulated"):
        simulated(Reading)


ALONE = MemoryParts(weights=4000, gradients=4000, optimizer=8000, activations=500, temporary=100, framework=10)


@pytest.mark.parametrize(
    ("sharding", "two"),
    [
        (None, 4000 + 4000 + 8000 + 600 + 10 + 4000),  # buckets as large as the gradients
        ("zero2", 4000 + 2000 + 4000 + 600 + 10 + 4 * 300),
        ("fsdp", 2000 + 2000 + 4000 + 600 + 10 + 4 * (100 + 300 + 300) + 4 * 300),
    ],
)
def test_of_two_workers(sharding: str | None, two: int) -> None:
    estimate = MemoryEstimate(1000, 1000, ALONE, units=(100, 300, 300, 300), gathered=4, sharding=sharding)
    assert estimate.of_workers(1).total == 16610
    assert estimate.of_workers(2).total == two
    assert estimate.fewest_workers(16610) == 1
    assert estimate.fewest_workers(11000) == (3 if sharding else None)
    assert estimate.fewest_workers(100) is None


def test_a_ranker_on_a_new_encoder_is_estimated_from_its_config(tmp_path: Path) -> None:
    save_blank_encoder(tmp_path, seed=0)
    (tmp_path / "model.safetensors").unlink()
    config = RankerTraining(
        backbone=str(tmp_path), metrics=("q",), train="t", output="o", optimization=short(batch_size=2), lora={}
    )
    found = estimate_training(config)
    assert 0 < found.trained < found.parameters / 5
    assert found.alone.weights >= 4 * found.parameters
