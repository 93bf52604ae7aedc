"""Batches of sequences by length, padded into one tensor."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indexes of `lengths` in batches of like length, each at most `batch_tokens` padding included (or one)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):  # a batch's first is its longest
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def padded(
    rows: Sequence[Sequence[int]],
    filler: int,
    *,
    device: torch.device,
    side: Literal["left", "right"] = "right",
) -> torch.Tensor:
    """Whole numbers of B rows, B x the longest, with `filler` at that side of the shorter ones."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side).to(device)


def token_mask(
    rows: Sequence[Sequence[int]], *, device: torch.device, side: Literal["left", "right"] = "right"
) -> torch.Tensor:
    """1 where `padded` has a row's own number, 0 where it has the filler."""
    return padded([[1] * len(row) for row in rows], 0, device=device, side=side)
