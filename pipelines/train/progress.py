"""Progress of a training: lines, or a live bar on a terminal."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState


def choices_text(measured: Mapping[str, float]) -> list[str]:
    """Figures of an evaluation with `dev_score.ChoiceMetrics`: the dev score, and its parts by metric."""
    if "eval_dev_score" not in measured:
        return []
    metrics = [key.removesuffix("/selected").removeprefix("eval_") for key in measured if key.endswith("/selected")]

    def figures(metric: str) -> str:
        selected, oracle, random, gain = (
            measured[f"eval_{metric}/{name}"] for name in ("selected", "oracle", "random", "gain")
        )
        return f"{metric}: selected {selected:.4g}, oracle {oracle:.4g}, random {random:.4g}, gain {gain:+.2g}"

    return [f"dev score {measured['eval_dev_score']:.4g}", *map(figures, metrics)]


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
            choices = "".join(f"  {one}" for one in choices_text(metrics))
            self._line(state, f"held-out loss {metrics['eval_loss']:.3f}{self._heldout}{choices}")

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
