"""Training loop shared by all models: transformers' Trainer with this project's settings and a progress line.

The Trainer provides what a run on real hardware needs (several GPUs, accumulation, mixed precision, schedules,
checkpoints with optimizer and random state); this module decides its settings and its output.
`torchrun --nproc-per-node N -m llm_blender_ray train ...` trains on N GPUs.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import accelerate  # noqa: F401 (the Trainer needs it: fail before data is read)
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.train.arguments import training_arguments
from llm_blender_ray.pipelines.train.progress import ProgressLines
from llm_blender_ray.pipelines.train.sharding import gather_weights, hollow_copy, shard

Example = Mapping[str, Any]
_Model = TypeVar("_Model", bound=nn.Module)


class Examples(Protocol):
    """Data set of the Trainer: a list, or a sequence that makes an example on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


Collator = Callable[[Sequence[Example]], dict[str, Tensor]]

IGNORED = -100  # label of positions without a loss, torch's default


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


def pad(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Matrix of the sequences, padded with `value` on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in sequences], batch_first=True, padding_value=value
    )


def mask(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Attention mask of `pad`: 1 for a token, 0 for padding."""
    return pad([[1] * len(ids) for ids in sequences], 0)


def run_trainer(
    model: _Model,
    train: Examples,
    heldout: Examples | None,
    collate: Collator,
    settings: Optimization,
    output: Path,
    *,
    title: str,
    run: Settings | None = None,
    right_or_not: Callable[[Any, Any], Tensor] | None = None,
) -> tuple[_Model, dict[str, float]]:
    """Train a model in place; with sharding, a copy that is whole in the first process.

    Args:
        model: Its forward takes what `collate` returns and gives a mapping with `loss` and `logits`.
        train: Examples to learn from.
        heldout: Examples to evaluate on; None: no evaluation.
        collate: Makes a batch of tensors of examples.
        settings: Optimizer, schedule, batch sizes, checkpoints.
        output: Checkpoints go to `output/checkpoints`; a run resumes from the last one there.
        title: Name of the model in progress lines.
        run: All settings of the run, by which its own checkpoints are recognised; None: `settings`.
        right_or_not: (logits, labels) of a held-out batch to 1 correct, 0 wrong, -1 not counted.

    Returns:
        The trained model, and the last evaluation (`eval_loss`, `eval_accuracy`), empty without one.

    Raises:
        BlendError: A checkpoint belongs to a run with other settings.
    """
    checkpoints = output / "checkpoints"
    trained = hollow_copy(model) if settings.sharding else model
    arguments = training_arguments(settings, checkpoints, evaluates=heldout is not None)
    shard(model, settings, bf16=arguments.bf16)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=collate,
        compute_metrics=Accuracy() if right_or_not else None,
        preprocess_logits_for_metrics=right_or_not,
        callbacks=[ProgressLines(title)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints, run or settings))
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


def _last_checkpoint(folder: Path, settings: Settings) -> str | None:
    """Checkpoint to resume from. Settings are stored beside them: a mix of two runs' states is neither."""
    record = folder / "settings.json"
    text = settings.model_dump_json(exclude={"output"})  # a folder may be moved
    found = _whole_checkpoint(folder)
    before = json.loads(record.read_text()) if found and record.is_file() else None
    now = json.loads(text)
    if before is not None:
        used = settings.model_dump(mode="json", exclude_defaults=True)
        now = _without_unused(now, before, used)
    if before is not None and (changed := describe_changes(before, now)):
        raise BlendError(
            f"{folder}: checkpoints of a run with other settings ({'; '.join(changed)}); remove them or choose "
            "another output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    return found


def _without_unused(now: Mapping[str, Any], before: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that an earlier version did not have, and that have their defaults."""
    return {
        name: _without_unused(value, before[name], used.get(name) or {})
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping)
        else value
        for name, value in now.items()
        if name in before or name in used
    }


def _whole_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint: a kill can leave half of one, where the Trainer's state is missing."""
    found = [one for one in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (one / TRAINER_STATE_NAME).is_file()]
    return str(max(found, key=lambda one: int(one.name.rpartition("-")[2]))) if found else None


def is_main_process() -> bool:
    """Whether this process saves and prints: the only one, or torchrun's first."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def print_results(title: str, output: Path, measured: Mapping[str, float]) -> None:
    """Print the folder of the trained model and its held-out accuracy."""
    accuracy = f", held-out accuracy {measured['eval_accuracy']:.3f}" if "eval_accuracy" in measured else ""
    print(f"{title} saved in {output}{accuracy}", flush=True)


def remove_checkpoints(output: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
