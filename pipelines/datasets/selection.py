"""Selection of the rows of a data set from digests alone: limits, lengths, duplicates, splits.

Every draw is a keyed hash of the prompt, so that it depends on the seed and the rows, not on the order of files or
rows. Arrays hold 30 bytes a row: a million rows are 30 MB.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_blender_ray.actors.errors import BlendError

# high, low: digest of the normalised prompt; content: of the texts; number: of the row among its source's
ROW_DIGEST = np.dtype(
    [("high", "u8"), ("low", "u8"), ("content", "u8"), ("source", "u1"), ("number", "u4"), ("lengths", "u1")]
)
KEPT, PROMPT_SHORT, PROMPT_LONG, OUTPUT_SHORT, OUTPUT_LONG = range(5)  # values of `lengths`
MIX_SPLITS = ("train", "val", "test")
_MIXINSTRUCT = (100_000, 5_000, 5_000)


@dataclass(frozen=True)
class SplitSizes:
    """Rows of the splits; None: MixInstruct's, in the same proportion where fewer rows are left."""

    train: int | None = None
    val: int | None = None
    test: int | None = None

    def of(self, rows: int) -> tuple[int, int, int]:
        """Sizes of train, val and test with that number of rows left.

        Raises:
            BlendError: They are too few for a size that was given, or for one row a split.
        """
        given = (self.train, self.val, self.test)
        wanted = [default if size is None else size for size, default in zip(given, _MIXINSTRUCT, strict=True)]
        if sum(wanted) <= rows:
            return wanted[0], wanted[1], wanted[2]
        if any(size is not None for size in given):
            sizes = ", ".join(f"{name} {size:,}" for name, size in zip(MIX_SPLITS, wanted, strict=True))
            raise BlendError(f"{rows:,} rows are left for {sizes}; give smaller sizes or more sources")
        val, test = (max(rows * size // sum(wanted), 1) for size in wanted[1:])
        if rows - val - test < 1:
            raise BlendError(f"{rows:,} rows are left, too few for three splits")
        return rows - val - test, val, test


@dataclass(frozen=True)
class Selected:
    """Result of `select`.

    Attributes:
        splits: Rows of each split, in a random order.
        dropped: Rows by source and reason.
    """

    splits: Mapping[str, NDArray[np.void]]
    dropped: Mapping[int, Counter[str]]


def select(
    rows: NDArray[np.void], limits: Sequence[int], sizes: SplitSizes, seed: int, max_length: int
) -> Selected:
    """Choose the rows of the splits.

    Args:
        rows: Of `ROW_DIGEST`, all readable rows of all sources.
        limits: Most rows of each source.
        sizes: Of the splits.
        seed: Of all draws.
        max_length: Named in the reasons.

    Returns:
        The rows, no prompt of which occurs twice.

    Raises:
        BlendError: Too few are left.
    """
    dropped: dict[int, Counter[str]] = {source: Counter() for source in range(len(limits))}
    drawn = []
    for source, limit in enumerate(limits):
        own = rows[rows["source"] == source]
        if len(own) > limit:
            dropped[source]["over the source's limit"] += len(own) - limit
            own = own[np.lexsort((own["number"], own["content"], _hashes(own, f"limit {seed}")))[:limit]]
        drawn.append(own)
    rows = np.concatenate(drawn)
    reasons = {
        PROMPT_SHORT: "prompt too short",
        PROMPT_LONG: f"prompt of {max_length} tokens or more",
        OUTPUT_SHORT: "output too short",
        OUTPUT_LONG: f"output of {max_length} tokens or more",
    }
    for code, reason in reasons.items():
        for source, count in Counter(rows["source"][rows["lengths"] == code].tolist()).items():
            dropped[source][reason] += count
    rows = rows[rows["lengths"] == KEPT]
    hashes = _hashes(rows, f"split {seed}")
    order = np.lexsort((rows["number"], rows["source"], rows["content"], rows["low"], rows["high"], hashes))
    rows = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    for source, count in Counter(rows["source"][~first].tolist()).items():
        dropped[source]["prompt of another row"] += count
    rows = rows[first]
    train, val, test = sizes.of(len(rows))
    ends = {"val": (0, val), "test": (val, val + test), "train": (val + test, val + test + train)}
    for source, count in Counter(rows["source"][val + test + train :].tolist()).items():
        dropped[source]["not drawn"] += count
    return Selected({name: rows[slice(*ends[name])] for name in MIX_SPLITS}, dropped)


def _hashes(rows: NDArray[np.void], purpose: str) -> NDArray[np.uint64]:
    """A random number for each prompt; independent ones for each purpose and seed."""
    key = hashlib.blake2b(purpose.encode(), digest_size=32).digest()
    prompts = np.stack([rows["high"], rows["low"]], axis=1).astype(">u8").tobytes()
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(prompts[at : at + 16], digest_size=8, key=key).digest())
            for at in range(0, len(prompts), 16)
        ),
        np.uint64,
        len(rows),
    )
