"""Steps of several workers are those of one: the same examples and losses, also in an incomplete batch."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_blender_ray.cluster.processes import free_port
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints
from llm_blender_ray.pipelines.train.examples import IGNORED, Example
from llm_blender_ray.pipelines.train.loop import run_trainer
from llm_blender_ray.pipelines.train.trainer import EvenShares

EXAMPLES = [
    {"inputs": [float(i), float(i * i % 7), 1.0], "labels": [float(i % 3)] * (1 + i % 4) + [IGNORED] * (3 - i % 4)}
    for i in range(21)
]


class Model(nn.Module):
    """A linear model whose loss is the mean over labels, of which examples have different numbers.

    As a T5, it takes any keyword, and does not divide by the number of labels in all accumulated batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 4)

    def forward(self, inputs: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        found = self.line(inputs)
        counted = labels != IGNORED
        return {"loss": ((found - labels)[counted] ** 2).mean(), "logits": found}


def collate(batch: Any) -> dict[str, Tensor]:
    return {name: torch.tensor([example[name] for example in batch]) for name in ("inputs", "labels")}


def train(folder: Path, *, epochs: float = 3, **settings: Any) -> None:
    """Train, and write the weights; losses are in the checkpoints."""
    torch.manual_seed(0)
    model = Model()
    optimization = Optimization(
        learning_rate=1e-2, epochs=epochs, log_every=1, save_every=2, keep_checkpoints=99, **settings
    )
    run_trainer(model, EXAMPLES, None, collate, optimization, Checkpoints(folder), title="model")
    if os.environ.get("RANK", "0") == "0":
        torch.save(model.state_dict(), folder / "weights.pt")


def work(rank: int, port: int, folder: Path) -> None:
    """Train as one of two processes that gloo connects: whole, and resumed in the middle of the second epoch."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(folder / "whole", batch_size=2, accumulation=2)
    if rank == 0:
        shutil.copytree(folder / "whole" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
    torch.distributed.barrier()
    train(folder / "resumed", batch_size=2, accumulation=2)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of two workers."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("spawn")
    port = free_port()
    workers = [context.Process(target=work, args=(rank, port, folder)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return folder


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-9" / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_two_workers_make_the_steps_of_one(two: Path, tmp_path: Path) -> None:
    """21 examples are two steps of 8 and one of 5, of whose second forward a worker gets one example or none."""
    train(tmp_path, batch_size=4, accumulation=2)
    expected = torch.load(tmp_path / "weights.pt")
    for folder in (two / "whole", two / "resumed"):
        assert losses(folder) == pytest.approx(losses(tmp_path), abs=2e-4)  # rounded to four digits
        for name, tensor in torch.load(folder / "weights.pt").items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(("count", "batch", "workers"), [(21, 2, 2), (1, 4, 3), (16, 4, 2), (17, 4, 2)])
def test_workers_get_even_shares(count: int, batch: int, workers: int) -> None:
    examples: list[Example] = [{} for _ in range(count)]
    shares = EvenShares(examples, batch, workers, seed=0, epoch=lambda: 1)
    order = list(shares)
    assert len(order) == len(shares)
    assert len(order) % (batch * workers) == 0
    assert sorted(i for i in order if i >= 0) == list(range(count))
    last = [order[-batch * (i + 1) : len(order) - batch * i] for i in range(workers)]
    sizes = [sum(i >= 0 for i in share) for share in last]
    assert max(sizes) - min(sizes) <= 1
    assert order == list(EvenShares(examples, batch, workers, seed=0, epoch=lambda: 1))
