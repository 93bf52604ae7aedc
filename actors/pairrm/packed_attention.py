"""Disentangled attention over packed tokens in one fused kernel (`packed_kernel.py`), for GPUs.

What a query gives at every distance, and what a key gives, are two products with a table's rows; the kernel adds
them to the scores of a tile while it has them. No L x L matrix is ever in memory, and no token is padding.

Shape suffixes as in `attention.py`; here R distances from -reach to reach, beyond which rows don't change any more.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.actors.pairrm.attention import Distances, PositionTables, Queries

_log = logging.getLogger(__name__)

ALIGNMENT = 64  # columns of a product: with an odd number of them matrix units idle


def has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether this device runs the kernel: a GPU, with triton and a compiler, and room for its tiles."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        _try_kernel(device, dtype, head_size)
    except Exception as error:  # triton's, the C compiler's, CUDA's
        _log.warning("ranking is slower: the fused attention kernel doesn't run here: %s", one_line(error))
        return False
    return True


def _try_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    from llm_blender_ray.actors.pairrm import packed_kernel

    x_Nhd = torch.zeros(2, 1, head_size, device=device, dtype=dtype)
    bias_hNR = torch.zeros(1, 2, ALIGNMENT, device=device, dtype=dtype)
    tiles = packed_kernel.every_query([2], dtype, device)
    packed_kernel.attend(x_Nhd, x_Nhd, x_Nhd, bias_hNR, bias_hNR, tiles, reach=1)
    torch.cuda.synchronize(device)


class PackedLayout:
    """See `actors.pairrm.attention.AttentionLayout`: tokens of all sequences, one after the other, none padding."""

    def __init__(
        self,
        lengths: Sequence[int],
        queries: Queries,
        distances: Distances,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        from llm_blender_ray.actors.pairrm import packed_kernel  # needs triton

        self._kernel = packed_kernel
        self._every = packed_kernel.every_query(lengths, dtype, device)
        self._few = packed_kernel.few_queries(lengths, queries.positions, dtype, device)
        rows_R = distances.rows(max(lengths))
        self._reach = _reach(rows_R, max(lengths))
        middle = max(lengths) - 1
        rows_R = rows_R[middle - self._reach : middle + self._reach + 1]
        self._rows_R = torch.cat([rows_R, rows_R[-1:].expand(-len(rows_R) % ALIGNMENT)])

    def attend(
        self, query_Qhd: Tensor, key_Nhd: Tensor, value_Nhd: Tensor, tables: PositionTables, queries: Queries | None
    ) -> Tensor:
        """See `actors.pairrm.attention.AttentionLayout`."""
        return self._kernel.attend(
            query_Qhd,
            key_Nhd,
            value_Nhd,
            self._products(query_Qhd, tables.key),
            self._products(key_Nhd, tables.query),
            self._every if queries is None else self._few,
            self._reach,
        ).flatten(1)

    def _products(self, x_Nhd: Tensor, table_hPd: Tensor | None) -> Tensor | None:
        """Of every token with the table's row of every distance, h x N x R."""
        if table_hPd is None:
            return None
        return torch.bmm(x_Nhd.transpose(0, 1), table_hPd.index_select(1, self._rows_R).mT)


def _reach(rows_R: Tensor, longest: int) -> int:
    """The distance from which on the table's row stays the same, in both directions."""
    rows = rows_R[: 2 * longest - 1].tolist()
    reach = longest - 1
    while reach > 1 and rows[longest - reach] == rows[0] and rows[longest - 2 + reach] == rows[-1]:
        reach -= 1
    return reach
