"""Disentangled attention block by block, for CPU: scaled_dot_product_attention with the position terms as its mask.

- Of a table only the rows of distances that occur (2L-1 of them) are selected, *before* the product with queries
  or keys. Row i of the product then holds what query i gives at every distance, and what it gives for the keys
  0 ... L-1 is a window of that, one further along in every row: a strided view (a skew), with no gather.
- The sum of both is the additive mask of one scaled_dot_product_attention.
- Sequences are taken one by one (short ones a few together), so that the L x L matrices of all heads stay in a
  core's cache, in memory that all layers reuse.

Shape suffixes as in `attention.py`; here B sequences of a block, L its longest, Q queries of a sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llm_blender_ray.actors.pairrm.attention import Distances, PositionTables, Queries, padded_distances


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Sequences of like length that are taken together. Their tokens follow each other, each padded to L."""

    start: int  # its first token among the N
    sequences: slice  # of the batch
    longest: int  # L
    padding: Tensor | None  # B x 1 x 1 x L, true where there is no token; None where all are of one length

    @property
    def size(self) -> int:
        """B."""
        return self.sequences.stop - self.sequences.start

    def tokens(self, x_N: Tensor) -> Tensor:
        """The block's part of what holds a row per token, B x L x ..."""
        return x_N[self.start : self.start + self.size * self.longest].unflatten(0, (self.size, self.longest))


class Workspace:
    """Memory for one block's scores. Allocated anew it is paged in anew: a quarter of the time at 400 tokens."""

    def __init__(
        self,
        blocks: Sequence[AttentionBlock],
        few: int,
        heads: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        longest = [(block.size * max(block.longest, few), block.longest) for block in blocks]
        scores, bias = (max(rows * width(L) for rows, L in longest) * heads for width in (padded_distances, int))
        self._scores = torch.empty(scores, device=device, dtype=dtype)
        self._bias = torch.empty(bias, device=device, dtype=dtype)

    def scores(self, *shape: int) -> Tensor:
        """Memory for products with a table, h x B·Q x R."""
        return self._scores[: math.prod(shape)].view(shape)

    def bias(self, *shape: int) -> Tensor:
        """Memory for their sum, B x h x Q x L."""
        return self._bias[: math.prod(shape)].view(shape)


class BlockLayout:
    """See `actors.pairrm.attention.AttentionLayout`: one block after the other."""

    def __init__(
        self,
        blocks: Sequence[AttentionBlock],
        distances: Distances,
        *,
        markers: int,
        heads: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """markers: tokens of a sequence whose context may be asked for alone, M."""
        self._blocks = blocks
        self._rows = [distances.rows(block.longest) for block in blocks]
        self._workspace = Workspace(blocks, markers, heads, device=device, dtype=dtype)

    def attend(
        self, query_Qhd: Tensor, key_Nhd: Tensor, value_Nhd: Tensor, tables: PositionTables, queries: Queries | None
    ) -> Tensor:
        """See `actors.pairrm.attention.AttentionLayout`."""
        contexts = []
        for block, rows_R in zip(self._blocks, self._rows, strict=True):
            if queries is None:
                query_BQhd, positions_BQ = block.tokens(query_Qhd), None
            else:
                query_BQhd = query_Qhd.unflatten(0, queries.positions.shape)[block.sequences]
                positions_BQ = queries.positions[block.sequences]
            key_BLhd = block.tokens(key_Nhd)
            context_BhQd = functional.scaled_dot_product_attention(
                query_BQhd.transpose(1, 2),
                key_BLhd.transpose(1, 2),
                block.tokens(value_Nhd).transpose(1, 2),
                attn_mask=self._mask(query_BQhd, key_BLhd, positions_BQ, block, rows_R, tables),
                scale=1.0,
            )
            contexts.append(context_BhQd.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(contexts)

    def _mask(
        self,
        query_BQhd: Tensor,
        key_BLhd: Tensor,
        positions_BQ: Tensor | None,
        block: AttentionBlock,
        rows_R: Tensor,
        tables: PositionTables,
    ) -> Tensor | None:
        """Additive mask of the position terms, B x h x Q x L; -inf for padding."""
        bias_BhQL = None
        if tables.query is not None:
            s_hRd = tables.query.index_select(1, rows_R)
            term_BhQL = _key_to_position(key_BLhd, s_hRd, positions_BQ, self._workspace)
            bias_BhQL = self._workspace.bias(*term_BhQL.shape).copy_(term_BhQL)
        if tables.key is not None:
            r_hRd = tables.key.index_select(1, rows_R.flip(0))
            term_BhQL = _query_to_position(query_BQhd, r_hRd, block.longest, positions_BQ, self._workspace)
            bias_BhQL = term_BhQL if bias_BhQL is None else bias_BhQL.add_(term_BhQL)
        if block.padding is None:
            return bias_BhQL
        return ~block.padding if bias_BhQL is None else bias_BhQL.masked_fill_(block.padding, -math.inf)


def _query_to_position(
    query_BQhd: Tensor, r_hRd: Tensor, L: int, positions_BQ: Tensor | None, workspace: Workspace
) -> Tensor:
    """q_i · r_(i-j), B x h x Q x L.

    Args:
        query_BQhd: The queries.
        r_hRd: Largest distance first, smallest last.
        L: Number of keys.
        positions_BQ: i; None when every token is a query.
        workspace: Memory to reuse.
    """
    B, Q, h, _ = query_BQhd.shape
    R = r_hRd.shape[1]
    query_hNd = query_BQhd.flatten(0, 1).transpose(0, 1)
    scores_hNR = torch.bmm(query_hNd, r_hRd.mT, out=workspace.scores(h, B * Q, R))
    # distance i - j is in column R-L-i + j of row i
    if positions_BQ is None:
        return scores_hNR.as_strided((B, h, L, L), (L * R, B * L * R, R - 1, 1), R - L)
    windows_hBQLL = scores_hNR.unflatten(1, (B, Q)).unfold(-1, L, 1)
    first_hBQ11 = (R - L - positions_BQ)[None, :, :, None, None]
    return windows_hBQLL.take_along_dim(first_hBQ11, dim=3).squeeze(3).transpose(0, 1)


def _key_to_position(key_BLhd: Tensor, s_hRd: Tensor, positions_BQ: Tensor | None, workspace: Workspace) -> Tensor:
    """k_j · s_(i-j), B x h x Q x L.

    Args:
        key_BLhd: The keys.
        s_hRd: Smallest distance first.
        positions_BQ: i; None when every token is a query.
        workspace: Memory to reuse.
    """
    B, L, h, _ = key_BLhd.shape
    R = s_hRd.shape[1]
    key_hNd = key_BLhd.flatten(0, 1).transpose(0, 1)
    scores_hNR = torch.bmm(key_hNd, s_hRd.mT, out=workspace.scores(h, B * L, R))
    # distance i - j is in column L-1+i - j of row j
    scores_BhLL = scores_hNR.as_strided((B, h, L, L), (L * R, B * L * R, 1, R - 1), L - 1)
    if positions_BQ is None:
        return scores_BhLL
    sequences_B1 = torch.arange(B, device=positions_BQ.device)[:, None]
    return scores_BhLL.transpose(1, 2)[sequences_B1, positions_BQ].transpose(1, 2)
