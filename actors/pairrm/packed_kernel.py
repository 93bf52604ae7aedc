"""The Triton kernel of `packed_attention.py`: attention in tiles with an online softmax (Dao, arXiv 2307.08691).

The score of query i and key j is q_i·k_j + c2p[i, i-j] + p2c[j, i-j], of which the last two are read from memory.
In a tile all of whose distances are beyond the reach of positions, each is one number a row or a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_QUERIES = 16  # queries of a tile when a few of each sequence are asked for


@dataclass(frozen=True, slots=True)
class TileShape:
    """Shape of a tile of scores, and how the kernel is compiled for it."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


# The fastest of nine on an H200, at 512 and at 2,048 tokens; tiles of float32 need more registers.
HALF, FULL = TileShape(64, 32, stages=3), TileShape(32, 32)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of queries, a program each."""

    queries: Tensor  # 5 x tiles: the sequence's first token and length; the first query, their number, its position
    positions: Tensor | None  # of the queries in their sequences; None where they follow each other
    shape: TileShape


def every_query(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tiles:
    """Tiles of the queries of all tokens."""
    shape = _shape(dtype)
    tiles, start = [], 0
    for length in lengths:
        for position in range(0, length, shape.queries):
            tiles.append((start, length, start + position, min(shape.queries, length - position), position))
        start += length
    return Tiles(_columns(tiles, device), None, shape)


def few_queries(lengths: Sequence[int], positions_BM: Tensor, dtype: torch.dtype, device: torch.device) -> Tiles:
    """Tiles of the queries at these positions."""
    tiles, start, few = [], 0, positions_BM.shape[1]
    for i, length in enumerate(lengths):
        for first in range(0, few, FEW_QUERIES):
            tiles.append((start, length, i * few + first, min(FEW_QUERIES, few - first), 0))
        start += length
    shape = replace(_shape(dtype), queries=FEW_QUERIES)
    return Tiles(_columns(tiles, device), positions_BM.flatten().int(), shape)


def _shape(dtype: torch.dtype) -> TileShape:
    return FULL if dtype is torch.float32 else HALF


def _columns(tiles: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    return torch.tensor(tiles, dtype=torch.int32, device=device).T.contiguous()


def attend(
    query_Qhd: Tensor,
    key_Nhd: Tensor,
    value_Nhd: Tensor,
    c2p_hQR: Tensor | None,
    p2c_hNR: Tensor | None,
    tiles: Tiles,
    reach: int,
) -> Tensor:
    """Context of the queries, Q x h x d.

    Args:
        query_Qhd: Scaled queries.
        key_Nhd: Keys.
        value_Nhd: Values.
        c2p_hQR: What is added for query and distance; distance -reach is in column 0.
        p2c_hNR: The same for key and distance.
        tiles: Where the queries are.
        reach: Distances beyond are taken for this one.
    """
    heads, size = query_Qhd.shape[1:]
    context_Qhd = torch.empty(query_Qhd.shape, device=query_Qhd.device, dtype=query_Qhd.dtype)
    none = query_Qhd  # a pointer that isn't read
    columns = next((x.shape[-1] for x in (c2p_hQR, p2c_hNR) if x is not None), 0)
    grid: Any = (tiles.queries.shape[1], heads)
    _attend[grid](
        query_Qhd,
        key_Nhd,
        value_Nhd,
        none if c2p_hQR is None else c2p_hQR,
        none if p2c_hNR is None else p2c_hNR,
        context_Qhd,
        tiles.queries,
        none if tiles.positions is None else tiles.positions,
        len(query_Qhd),
        len(key_Nhd),
        tiles.queries.shape[1],
        columns,
        reach,
        *query_Qhd.stride()[:2],
        *key_Nhd.stride()[:2],
        *value_Nhd.stride()[:2],
        *context_Qhd.stride()[:2],
        C2P=c2p_hQR is not None,
        P2C=p2c_hNR is not None,
        FEW=tiles.positions is not None,
        SIZE=size,
        WIDTH=max(16, triton.next_power_of_2(size)),
        QUERIES=tiles.shape.queries,
        KEYS=tiles.shape.keys,
        PRECISION="ieee" if query_Qhd.dtype is torch.float32 else "tf32",
        num_warps=tiles.shape.warps,
        num_stages=tiles.shape.stages,
    )
    return context_Qhd


@triton.jit
def _attend(
    query,
    key,
    value,
    c2p,
    p2c,
    context,
    tiles,
    positions,
    n_queries,
    n_keys,
    n_tiles,
    columns,
    reach,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    context_row,
    context_head,
    C2P: tl.constexpr,
    P2C: tl.constexpr,
    FEW: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(tiles + tile).to(tl.int64)
    length = tl.load(tiles + n_tiles + tile)
    first = tl.load(tiles + 2 * n_tiles + tile).to(tl.int64)
    count = tl.load(tiles + 3 * n_tiles + tile)
    position = tl.load(tiles + 4 * n_tiles + tile)

    i = tl.arange(0, QUERIES)
    d = tl.arange(0, WIDTH)
    place = tl.load(positions + first + i, mask=i < count, other=0) if FEW else position + i
    queries = tl.load(
        query + head * query_head + first * query_row + i[:, None] * query_row + d[None, :],
        mask=(i < count)[:, None] & (d < SIZE)[None, :],
        other=0.0,
    )
    key += head * key_head + start * key_row
    value += head * value_head + start * value_row
    c2p += (head * n_queries + first) * columns
    p2c += (head * n_keys + start) * columns
    best = tl.full([QUERIES], -1e30, dtype=tl.float32)  # of the scores so far
    total = tl.zeros([QUERIES], dtype=tl.float32)
    mean = tl.zeros([QUERIES, WIDTH], dtype=tl.float32)

    near = 0  # the first tile of keys with one that is nearer than reach, and the first after these
    far = length
    if not FEW:
        near = tl.maximum(0, (position - reach + 1) // KEYS * KEYS)
        far = tl.minimum(length, (position + QUERIES - 1 + reach + KEYS - 1) // KEYS * KEYS)
    for j in tl.range(0, near, KEYS):
        best, total, mean = _tile(
            queries, key, value, c2p, p2c, i, place, j, count, length, columns, reach, key_row, value_row,
            best, total, mean, C2P, P2C, 1, SIZE, WIDTH, KEYS, PRECISION,
        )  # fmt: skip
    for j in tl.range(near, far, KEYS):
        best, total, mean = _tile(
            queries, key, value, c2p, p2c, i, place, j, count, length, columns, reach, key_row, value_row,
            best, total, mean, C2P, P2C, 0, SIZE, WIDTH, KEYS, PRECISION,
        )  # fmt: skip
    for j in tl.range(far, length, KEYS):
        best, total, mean = _tile(
            queries, key, value, c2p, p2c, i, place, j, count, length, columns, reach, key_row, value_row,
            best, total, mean, C2P, P2C, -1, SIZE, WIDTH, KEYS, PRECISION,
        )  # fmt: skip
    tl.store(
        context + head * context_head + first * context_row + i[:, None] * context_row + d[None, :],
        mean / total[:, None],
        mask=(i < count)[:, None] & (d < SIZE)[None, :],
    )


@triton.jit
def _tile(
    queries,
    key,
    value,
    c2p,
    p2c,
    i,
    place,
    first,
    count,
    length,
    columns,
    reach,
    key_row,
    value_row,
    best,
    total,
    mean,
    C2P: tl.constexpr,
    P2C: tl.constexpr,
    SIDE: tl.constexpr,  # 1: every key is further left than reach; -1: further right; 0: neither
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    j = first + tl.arange(0, KEYS)
    d = tl.arange(0, WIDTH)
    here = (j < length)[:, None] & (d < SIZE)[None, :]
    keys = tl.load(key + j[:, None] * key_row + d[None, :], mask=here, other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    if SIDE == 0:
        pairs = (i < count)[:, None] & (j < length)[None, :]
        column = tl.minimum(tl.maximum(place[:, None] - j[None, :], -reach), reach) + reach
        if C2P:
            scores += tl.load(c2p + i[:, None] * columns + column, mask=pairs, other=0.0)
        if P2C:
            scores += tl.load(p2c + j[None, :] * columns + column, mask=pairs, other=0.0)
    else:
        column = reach + SIDE * reach
        if C2P:
            scores += tl.load(c2p + i * columns + column, mask=i < count, other=0.0)[:, None]
        if P2C:
            scores += tl.load(p2c + j * columns + column, mask=j < length, other=0.0)[None, :]
    scores = tl.where((j < length)[None, :], scores * 1.4426950408889634, -1e30)  # log2(e): exp2 is the fast one
    higher = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.exp2(scores - higher[:, None])
    scale = tl.exp2(best - higher)
    values = tl.load(value + j[:, None] * value_row + d[None, :], mask=here, other=0.0)
    mean = tl.dot(weights.to(values.dtype), values, mean * scale[:, None], input_precision=PRECISION)
    return higher, total * scale + tl.sum(weights, axis=1), mean
