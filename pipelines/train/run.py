"""A training from its rows to its result: in this process, or on Ray."""

from collections.abc import Callable
from typing import TypeVar

from llm_blender_ray.configs.training import TrainingRun
from llm_blender_ray.pipelines.train.prepare import Preparation, TrainingData
from llm_blender_ray.pipelines.train.process import TrainingProcess, only_process

_Run = TypeVar("_Run", bound=TrainingRun)

Prepare = Callable[[_Run, Preparation], TrainingData]
Train = Callable[[_Run, TrainingData, TrainingProcess], dict[str, float]]


def run_training(config: _Run, prepare: Prepare[_Run], train: Train[_Run], *, title: str) -> dict[str, float]:
    """Prepare the data and train, here or on Ray.

    Args:
        config: The settings.
        prepare: Stores the data.
        train: Trains on it, in each process.
        title: Name of the model in lines.

    Returns:
        What `train` returned in the first process.

    Raises:
        BlendError: The data cannot be learnt from, or the training failed.
    """
    if config.scaling is not None:
        from llm_blender_ray.pipelines.train.distributed import train_on_ray  # imports Ray

        return train_on_ray(config, config.scaling, prepare, train, title)
    preparation = Preparation(config.output)
    data = prepare(config, preparation)
    with only_process(config.output, config.optimization.keep_checkpoints) as process:
        measured = train(config, data, process)
    preparation.remove()
    return measured
