"""Examples of a training: what a data set gives, and how they become a batch of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_blender_ray.actors.batching import padded, token_mask

_CPU = torch.device("cpu")  # the Trainer moves batches
IGNORED = -100  # label of positions without a loss, torch's default

Example = Mapping[str, Any]
Collator = Callable[[Sequence[Example]], dict[str, Tensor]]


class Examples(Protocol):
    """Data set of the Trainer: a list, or a sequence that makes an example on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def pad(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Matrix of the sequences, padded with `value` on the right."""
    return padded(sequences, value, device=_CPU)


def mask(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Attention mask of `pad`: 1 for a token, 0 for padding."""
    return token_mask(sequences, device=_CPU)
