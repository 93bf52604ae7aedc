"""The process that a training function runs in: this one, or a worker of Ray Train (`distributed`).

A training function is the same in both; what differs is where checkpoints and results go.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from llm_blender_ray.configs.training import TrainingRun
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints
from llm_blender_ray.pipelines.train.prepare import Preparation, TrainingData

_Run = TypeVar("_Run", bound=TrainingRun)


class TrainingProcess(Protocol):
    """One of the processes of a training."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the training."""
        ...

    def result(self) -> contextlib.AbstractContextManager[Path]:
        """Folder of this machine for the trained model, which is at the output after the block."""
        ...

    def started(self) -> contextlib.AbstractContextManager[None]:
        """Block in which a BlendError ends the training for good: another try would end in the same way."""
        ...


class OnlyProcess:
    """The process of a training that runs here."""

    def __init__(self, output: str) -> None:
        self._output = Path(output)
        self.checkpoints = Checkpoints(self._output / "checkpoints")

    @contextlib.contextmanager
    def result(self) -> Iterator[Path]:
        """See base class. A block that fails leaves the output as it was."""
        self._output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._output, prefix=".result-") as scratch:
            folder = Path(scratch) / self._output.resolve().name
            folder.mkdir()
            yield folder
            for file in sorted(folder.iterdir()):
                file.replace(self._output / file.name)

    def started(self) -> contextlib.AbstractContextManager[None]:
        """See base class."""
        return contextlib.nullcontext()


Prepare = Callable[[_Run, Preparation], TrainingData]
Train = Callable[[_Run, TrainingData, TrainingProcess], dict[str, float]]


def run_training(config: _Run, prepare: Prepare[_Run], train: Train[_Run]) -> dict[str, float]:
    """Prepare the data and train, here or on Ray.

    Args:
        config: The settings.
        prepare: Stores the data.
        train: Trains on it, in each process.

    Returns:
        What `train` returned in the first process.

    Raises:
        BlendError: The data cannot be learnt from, or the training failed.
    """
    preparation = Preparation(config.output)
    data = prepare(config, preparation)
    measured = train(config, data, OnlyProcess(config.output))
    preparation.remove()
    return measured
