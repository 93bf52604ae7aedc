"""Signs that a training has failed: a loss that diverges, prompts in both parts; and what follows of them.

A ranker's own signs are in `heldout`, a fuser's in `generation`.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import isfinite, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import digest
from llm_blender_ray.pipelines.train.rows import TrainingRow

FEWEST_LOGS = 4  # logged losses, from which their course can be judged
NOTICEABLE = 0.05  # share of the first loss by which another one is higher


class FailedTrainingError(BlendError):
    """A training has failed; nothing of it is at its output."""


class LossWatch(TrainerCallback):
    """Ends a training whose loss is not a number, and has its logged losses at the end.

    Attributes:
        losses: Step and loss of each log interval, those before a resumption too.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self.losses: list[tuple[int, float]] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """End the training (transformers' hook).

        Raises:
            FailedTrainingError: The loss is not finite.
        """
        loss = float((logs or {}).get("loss", (logs or {}).get("train_loss", 0.0)))
        if not math.isfinite(loss):
            raise not_finite(self._title, f"the loss is {loss} at step {state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the losses (transformers' hook)."""
        self.losses = [(log["step"], float(log["loss"])) for log in state.log_history if "loss" in log]

    def warnings(self) -> list[str]:
        """Warnings about the losses of the training."""
        sign = rising_loss(self.losses)
        return [sign] if sign else []


def rising_loss(losses: Sequence[tuple[int, float]]) -> str | None:
    """Text about a loss that is above its start for the last half of the training or longer; None for any other.

    Args:
        losses: Step and loss of each log interval.
    """
    if len(losses) < FEWEST_LOGS:
        return None
    start = losses[0][1]
    highest = start + NOTICEABLE * abs(start)
    above = len(losses)
    while losses[above - 1][1] > highest:
        above -= 1
    if 2 * (len(losses) - above) < len(losses):
        return None
    return (
        f"diverged: the loss is {losses[-1][1]:.3f} and has been above the first one, {start:.3f}, since step "
        f"{losses[above][0]:,}; lower optimization.learning_rate"
    )


def check_finite(title: str, model: nn.Module) -> None:
    """Check weights before they are saved.

    Raises:
        FailedTrainingError: One is not finite.
    """
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(isfinite(weight).all()):
            raise not_finite(title, f"weights of {name} are not finite")


def not_finite(title: str, what: str) -> FailedTrainingError:
    """The error of a training whose numbers are lost."""
    return FailedTrainingError(
        f"{title}: diverged: {what}; nothing is saved; remove the checkpoints and lower optimization.learning_rate "
        "or optimization.max_grad_norm"
    )


def shared_prompts(train: Iterable[TrainingRow], heldout: Iterable[TrainingRow]) -> str | None:
    """Text about held-out rows whose prompts are trained on; None when there are none.

    Args:
        train: Rows to learn from; only read once.
        heldout: Held-out rows, whose digests are kept in memory.
    """
    ids: dict[bytes, list[str]] = {}
    for row in heldout:
        ids.setdefault(digest(row.prompt), []).append(row.prompt.id)
    leaked: dict[bytes, str] = {}
    for row in train:
        key = digest(row.prompt)
        if key in ids and key not in leaked:
            leaked[key] = row.prompt.id
    if not leaked:
        return None
    first, trained = next(iter(leaked.items()))
    count, total = (sum(len(ids[key]) for key in keys) for keys in (leaked, ids))
    return (
        f"leak: the prompts of {count:,} of {total:,} held-out rows are in the training rows too, such as that of "
        f"held-out row {ids[first][0]} (training row {trained}); held-out figures say nothing about other prompts"
    )


def find_leak(
    title: str,
    train: Iterable[TrainingRow],
    heldout: Iterable[TrainingRow],
    on_failure: Literal["warn", "fail"],
) -> str | None:
    """`shared_prompts`, before a training that it makes worthless: a warning now and at the end, or an error.

    Raises:
        FailedTrainingError: There are any, and `on_failure` is fail.
    """
    leak = shared_prompts(train, heldout)
    if leak and on_failure == "fail":
        refuse(title, [leak])
    print_warnings(title, [leak] if leak else [])
    return leak


def refuse(title: str, warnings: Sequence[str]) -> None:
    """End a training by its signs of failure, before it is saved.

    Raises:
        FailedTrainingError: There is a sign.
    """
    if warnings:
        more = f" (and {len(warnings) - 1} more: {'; '.join(warnings[1:])})" if len(warnings) > 1 else ""
        raise FailedTrainingError(f"{title}: failed: {warnings[0]}{more}; nothing is saved (on_failure: fail)")


def print_warnings(title: str, warnings: Sequence[str]) -> None:
    """Print the signs of failure of a training."""
    for warning in warnings:
        print(f"{title}: warning: {warning}", file=sys.stderr, flush=True)
