"""Training loop shared by all models: transformers' Trainer with this project's settings and a progress line.

The Trainer provides what a run on real hardware needs (several GPUs, accumulation, mixed precision, schedules,
checkpoints with optimizer and random state); this module decides its settings and its output.
`torchrun --nproc-per-node N -m llm_blender_ray train ...` trains on N GPUs.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import accelerate  # noqa: F401 (the Trainer needs it: fail before data is read)
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.training import Optimization

Example = Mapping[str, Any]


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


class ProgressLines(TrainerCallback):
    """One line per log interval (steps, loss, held-out accuracy, speed); a live bar on a terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._loss = self._heldout = ""
        self._began = (0.0, 0)
        self._bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """See base class."""
        self._began = (time.monotonic(), state.global_step)
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[news]}"),
                console=console,
            )
            self._bar.add_task(self._title, total=state.max_steps, completed=state.global_step, news="")
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See base class."""
        if self._bar:
            news = f"{self._loss}{self._heldout}"
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, news=news)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """See base class."""
        if logs and "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.3f}"
            began, step = self._began
            speed = (state.global_step - step) / max(time.monotonic() - began, 1e-9)
            self._line(state, f"{self._loss}{self._heldout}  {speed:.1f} steps/s")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """See base class."""
        if metrics and "eval_accuracy" in metrics:
            self._heldout = f"  held-out accuracy {metrics['eval_accuracy']:.3f}"
            self._line(state, f"held-out loss {metrics['eval_loss']:.3f}{self._heldout}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See base class."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _line(self, state: TrainerState, news: str) -> None:
        if self._bar is None and state.is_world_process_zero:
            print(
                f"{self._title}: step {state.global_step}/{state.max_steps}  {news}",
                file=sys.stderr,
                flush=True,
            )


def run_trainer(
    model: nn.Module,
    train: Examples,
    heldout: Examples | None,
    collate: Collator,
    settings: Optimization,
    output: Path,
    *,
    title: str,
    run: Settings | None = None,
    right_or_not: Callable[[Any, Any], Tensor] | None = None,
) -> dict[str, float]:
    """Train a model in place.

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
        The last evaluation (`eval_loss`, `eval_accuracy`); empty without one.

    Raises:
        BlendError: A checkpoint belongs to a run with other settings.
    """
    checkpoints = output / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=_bf16(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        logging_steps=settings.log_every,
        eval_strategy="steps" if heldout else "no",
        eval_steps=settings.evaluate_every,
        save_steps=settings.save_every,
        save_total_limit=settings.keep_checkpoints,
        load_best_model_at_end=settings.result == "best",
        metric_for_best_model="eval_loss",
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
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
    if not heldout:
        return {}
    state = trainer.state
    measured = {log["step"]: log for log in state.log_history if "eval_loss" in log}
    kept = state.best_global_step if settings.result == "best" else state.global_step
    return measured.get(kept) or trainer.evaluate()


def _bf16(settings: Optimization) -> bool:
    if settings.bf16 == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.bf16


def _last_checkpoint(folder: Path, settings: Settings) -> str | None:
    """Checkpoint to resume from. Settings are stored beside them: a mix of two runs' states is neither."""
    record = folder / "settings.json"
    text = settings.model_dump_json(exclude={"output"})  # a folder may be moved
    found = _whole_checkpoint(folder)
    before = json.loads(record.read_text()) if found and record.is_file() else None
    now = json.loads(text)
    if before is not None:  # a setting that its version did not have, and that is not used
        now = {name: value for name, value in now.items() if name in before or value is not None}
    if before is not None and (changed := describe_changes(before, now)):
        raise BlendError(
            f"{folder}: checkpoints of a run with other settings ({'; '.join(changed)}); remove them or choose "
            "another output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    return found


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
