"""transformers' Trainer with an exact global batch: any number of workers takes the steps of one.

W workers with batch_size B make the same steps as one process with batch_size W * B: the same examples in the same
order, each with the same weight. Three things in Trainer and accelerate stand in the way:

- accelerate fills up the last, incomplete batch of an epoch with examples from its beginning. Here it is divided
  among the workers, and a worker's loss has the weight of its share (`EvenShares`, `ExactTrainer.compute_loss`).
- gradients are averaged over the workers, though their means are over unequal numbers of tokens.
- the Trainer takes a model whose forward has any keyword, such as T5, for one that divides its loss by the number
  of tokens of all accumulated batches. T5's does not: gradients were `accumulation` times too large.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from llm_blender_ray.pipelines.train.checkpoints import Checkpoints
from llm_blender_ray.pipelines.train.examples import IGNORED, Collator, Example, Examples

_FILLER = -1  # index of no example
_IS_FILLER = "is_filler"


class EvenShares(Sampler[int]):
    """Seeded random order in which every worker gets as many batches of one size, and about as many examples.

    Of the last batch of all workers each gets an equal share, filled up with -1.
    """

    def __init__(
        self, examples: Examples, batch_size: int, workers: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        """Start.

        Args:
            examples: What to sample from.
            batch_size: Of a worker.
            workers: Number of workers.
            seed: Of the order; every epoch has its own.
            epoch: Returns the current epoch. accelerate's `set_epoch` does not reach a sampler of several workers
                below the wrappers of a resumed epoch.
        """
        self._order = SeedableRandomSampler(examples, data_seed=seed)
        self._batch_size = batch_size
        self._workers = workers
        self._epoch = epoch

    def __len__(self) -> int:
        whole = self._batch_size * self._workers
        return -(-len(self._order) // whole) * whole

    def __iter__(self) -> Iterator[int]:
        self._order.set_epoch(self._epoch())
        order = list(self._order)
        whole = self._batch_size * self._workers
        rest = len(order) % whole
        yield from order[: len(order) - rest]
        left = order[len(order) - rest :]
        for worker in range(self._workers if rest else 0):
            share = left[worker * rest // self._workers : (worker + 1) * rest // self._workers]
            yield from share
            yield from [_FILLER] * (self._batch_size - len(share))


class _WithFillers(Dataset[Example | None]):
    """Examples, and None for a filler."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example | None:
        return None if index == _FILLER else self._examples[index]


def _without_fillers(collate: Collator, filler: Callable[[], Example]) -> Collator:
    """A collator that leaves fillers out; a batch of nothing else is one example, marked."""

    def collate_real(batch: Sequence[Example | None]) -> dict[str, Tensor]:
        real = [example for example in batch if example is not None]
        return {**collate(real or [filler()]), _IS_FILLER: torch.tensor(not real)}

    return collate_real


class ExactTrainer(Trainer):
    """Trainer whose steps do not depend on the number of workers; see the module."""

    def __init__(self, *, checkpoints: Checkpoints, train: Examples, collate: Collator, **kwargs: Any) -> None:
        """Start.

        Args:
            checkpoints: Where the best one is.
            train: Examples to learn from.
            collate: Makes a batch of examples; its `labels` are IGNORED where there is no loss.
            **kwargs: Of the Trainer.
        """
        self._checkpoints = checkpoints
        self._examples = train
        workers = kwargs["args"].world_size
        super().__init__(
            train_dataset=_WithFillers(train) if workers > 1 else train,
            data_collator=_without_fillers(collate, lambda: train[0]) if workers > 1 else collate,
            **kwargs,
        )
        if workers > 1 or self.args.gradient_accumulation_steps > 1:
            self.model_accepts_loss_kwargs = False  # a forward's loss is the mean over its batch

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        return EvenShares(
            self._examples,
            self.args.per_device_train_batch_size,
            self.args.world_size,
            self.args.seed,
            lambda: int(self.state.epoch or 0),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss with the weight that makes its mean over the workers the mean over all their labels."""
        is_filler = inputs.pop(_IS_FILLER, None)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if is_filler is not None and model.training:
            items = (labels != IGNORED).sum() * ~is_filler
            loss = loss * items * self.args.world_size / self.accelerator.reduce(items, reduction="sum")
        return (loss, outputs) if return_outputs else loss

    def _load_best_model(self) -> None:
        """Load the best checkpoint, which another process or machine may have written."""
        if self.state.best_model_checkpoint:
            name = Path(self.state.best_model_checkpoint).name
            self.state.best_model_checkpoint = self._checkpoints.fetched(name)
        super()._load_best_model()
