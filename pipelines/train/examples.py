"""Examples of a training: what a data set gives, and how they become a batch of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100  # label of positions without a loss, torch's default

Example = Mapping[str, Any]
Collator = Callable[[Sequence[Example]], dict[str, Tensor]]


class Examples(Protocol):
    """Data set of the Trainer: a list, or a sequence that makes an example on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def pad(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Matrix of the sequences, padded with `value` on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in sequences], batch_first=True, padding_value=value
    )


def mask(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Attention mask of `pad`: 1 for a token, 0 for padding."""
    return pad([[1] * len(ids) for ids in sequences], 0)
