"""Which sequences share a forward."""

from collections.abc import Sequence


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indexes of `lengths` in batches of like length, each at most `batch_tokens` padding included (or one)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):  # a batch's first is its longest
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
