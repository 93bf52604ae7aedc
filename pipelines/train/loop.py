"""Training loop shared by all models: transformers' Trainer with this project's settings and a progress line.

The Trainer provides what a run on real hardware needs (accumulation, mixed precision, schedules, checkpoints with
optimizer and random state); this module decides its settings and its output.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import accelerate  # noqa: F401 (the Trainer needs it: fail before data is read)
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.train.arguments import training_arguments
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints
from llm_blender_ray.pipelines.train.examples import Collator, Examples
from llm_blender_ray.pipelines.train.progress import ProgressLines, choices_text
from llm_blender_ray.pipelines.train.sharding import gather_weights, hollow_copy, shard
from llm_blender_ray.pipelines.train.trainer import ExactTrainer

_Model = TypeVar("_Model", bound=nn.Module)


class Accuracy:
    """Share of correct predictions, accumulated over evaluation batches.

    A batch's logits must have passed `right_or_not`: 1 correct, 0 wrong, -1 not counted.
    """

    def __init__(self) -> None:
        self._right = self._counted = 0

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        """Add a batch; called by the Trainer.

        Args:
            prediction: The batch's `predictions`.
            compute_result: Whether it is the last batch.

        Returns:
            `accuracy` after the last batch, else nothing.
        """
        marks = prediction.predictions
        self._right += int((marks == 1).sum())
        self._counted += int((marks >= 0).sum())
        if not compute_result:
            return {}
        share = self._right / max(self._counted, 1)
        self._right = self._counted = 0
        return {"accuracy": share}


def run_trainer(
    model: _Model,
    train: Examples,
    heldout: Examples | None,
    collate: Collator,
    settings: Optimization,
    checkpoints: Checkpoints,
    *,
    title: str,
    run: Settings | None = None,
    right_or_not: Callable[[Any, Any], Tensor] | None = None,
    metrics: Callable[[Any, bool], dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    label_smoothing: float = 0.0,
) -> tuple[_Model, dict[str, float]]:
    """Train a model in place; with sharding, a copy that is whole in the first process.

    Args:
        model: Its forward takes what `collate` returns and gives a mapping with `loss` and `logits`.
        train: Examples to learn from.
        heldout: Examples to evaluate on; None: no evaluation.
        collate: Makes a batch of tensors of examples.
        settings: Optimizer, schedule, batch sizes, checkpoints.
        checkpoints: Where checkpoints go; a run resumes from the last one there.
        title: Name of the model in progress lines.
        run: All settings of the run, by which its own checkpoints are recognised; None: `settings`.
        right_or_not: (logits, labels) of a held-out batch to what `metrics` takes of it; without `metrics` that is
            1 for correct, 0 for wrong, -1 for not counted.
        metrics: Figures of an evaluation, as `Accuracy`, which is the default.
        callbacks: Further ones of the Trainer.
        label_smoothing: Share of each label's target that all tokens share.

    Returns:
        The trained model, and the last evaluation (`eval_loss`, `eval_accuracy`), empty without one.

    Raises:
        BlendError: A checkpoint belongs to a run with other settings.
    """
    checkpoints.check(run or settings)
    trained = hollow_copy(model) if settings.sharding else model
    arguments = training_arguments(
        settings, checkpoints.folder, evaluates=heldout is not None, label_smoothing=label_smoothing
    )
    shard(model, settings, bf16=arguments.bf16)
    trainer = ExactTrainer(
        model=model,
        args=arguments,
        checkpoints=checkpoints,
        train=train,
        eval_dataset=heldout,
        collate=collate,
        compute_metrics=(metrics or Accuracy()) if right_or_not else None,
        preprocess_logits_for_metrics=right_or_not,
        callbacks=[ProgressLines(title), *callbacks, *_stopping(settings), *checkpoints.callbacks()],
    )
    trainer.remove_callback(PrinterCallback)
    with checkpoints.last() as last:
        trainer.train(resume_from_checkpoint=last)
    step, last_step = trainer.state.global_step, trainer.state.max_steps
    if step < last_step and is_main_process():
        print(f"{title}: stopped early at step {step}/{last_step}", file=sys.stderr, flush=True)
    measured = _measured(trainer, settings) if heldout else {}
    if settings.sharding:
        gather_weights(trainer, trained)
    return trained, measured


def _measured(trainer: Trainer, settings: Optimization) -> dict[str, float]:
    """The evaluation of the weights that are the result."""
    state = trainer.state
    measured = {log["step"]: log for log in state.log_history if "eval_loss" in log}
    kept = state.best_global_step if settings.result == "best" else state.global_step
    return measured.get(kept) or trainer.evaluate()


def _stopping(settings: Optimization) -> list[TrainerCallback]:
    stopping = settings.early_stopping
    return [EarlyStoppingCallback(stopping.patience, stopping.threshold)] if stopping else []


def is_main_process() -> bool:
    """Whether this process saves and prints: the only one, or the first of several."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def print_results(title: str, output: str, measured: Mapping[str, float]) -> None:
    """Print the folder of the trained model and its held-out figures."""
    shown = [f"held-out accuracy {measured['eval_accuracy']:.3f}"] if "eval_accuracy" in measured else []
    shown += choices_text(measured)
    shown += [
        f"{name.replace('_', ' ', 1)} {x:.3f}" for name, x in measured.items() if name.startswith("generated_")
    ]
    print(", ".join([f"{title} saved in {output}", *shown]), flush=True)


def remove_checkpoints(output: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
