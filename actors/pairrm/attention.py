"""DeBERTa-v2's disentangled attention (He et al., arXiv 2006.03654), for inference over sequences of any lengths.

The score of query i and key j is q_i·k_j + q_i·r_(i-j) + k_j·s_(i-j), where r and s are projections of a table of
relative positions.

- The projections depend on weights alone, so they are made once per model; the scale is folded into the weights.
- Of a table only the rows of distances that occur (2L-1 of them) are selected, *before* the product with queries
  or keys. Row i of the product then holds what query i gives at every distance, and what it gives for the keys
  0 ... L-1 is a window of that, one further along in every row: a strided view (a skew), with no gather.
- The sum of both is the additive mask of one scaled_dot_product_attention.
- On CPU sequences are taken one by one (short ones a few together), so that the L x L matrices of all heads stay
  in a core's cache, in memory that all layers reuse.

Shape suffixes: B sequences of a block, L its longest, N tokens of all blocks, Q queries of a sequence (L, or the
few asked for), h heads, d head size, A = h·d, H hidden, R distances, P rows of the table of relative
positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config

from llm_blender_ray.actors.pairrm import onednn
from llm_blender_ray.actors.pairrm.transformers_deberta import log_buckets

TILE = 32  # columns: products with fewer left over are up to a quarter faster (AMX)


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Sequences of like length that attention takes together. Their tokens follow each other, each padded to L."""

    start: int  # its first token among the N
    sequences: slice  # of the batch
    longest: int  # L
    padding: Tensor | None  # B x 1 x 1 x L, true where there is no token; None where all are of one length
    distances: Tensor  # R rows of the table of relative positions, for the distances 1-L ... L-1 and some more

    @property
    def size(self) -> int:
        """B."""
        return self.sequences.stop - self.sequences.start

    def tokens(self, x_N: Tensor) -> Tensor:
        """The block's part of what holds a row per token, B x L x ..."""
        return x_N[self.start : self.start + self.size * self.longest].unflatten(0, (self.size, self.longest))


@dataclass(frozen=True, slots=True)
class Queries:
    """The few tokens whose context is asked for, Q in each sequence."""

    positions: Tensor  # B x Q, in their sequences
    tokens: Tensor  # B·Q, among the N tokens

    def of(self, block: AttentionBlock, x_NQ: Tensor) -> Tensor:
        """The block's part of what holds a row per query, B x Q x ..."""
        return x_NQ.unflatten(0, self.positions.shape)[block.sequences]


class Workspace:
    """Memory for one block's scores. Allocated anew it is paged in anew: a quarter of the time at 400 tokens."""

    def __init__(
        self,
        blocks: Sequence[AttentionBlock],
        queries: Queries,
        heads: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        few = queries.positions.shape[1]
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


class Linear:
    """x Wᵀ + b, in bfloat16 on CPU with W laid out once for the matrix units (else every call does that)."""

    def __init__(self, weight: Tensor, bias: Tensor, *, device: torch.device, dtype: torch.dtype) -> None:
        self._weight = weight.detach().to(device, dtype)
        self._bias = bias.detach().to(device, dtype)
        self._packed = onednn.is_available(device, dtype)
        if self._packed:
            self._weight = onednn.pack(self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ + b."""
        if self._packed:
            return onednn.linear(x, self._weight, self._bias)
        return functional.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute x Wᵀ + b + residual."""
        if self._packed:
            return onednn.linear_plus(x, residual, self._weight, self._bias)
        return self(x).add_(residual)


def padded_distances(longest: int) -> int:
    """R for a length L: the 2L-1 distances that occur, and a few more, since whole tiles are multiplied faster."""
    return math.ceil((2 * longest - 1) / TILE) * TILE


class Distances:
    """Rows of the table of relative positions by the distance i - j of query and key."""

    def __init__(self, config: DebertaV2Config, device: torch.device) -> None:
        self._buckets: int = getattr(config, "position_buckets", -1)  # logarithmic, where there are any
        self._furthest: int = config.max_relative_positions
        if self._furthest < 1:
            self._furthest = config.max_position_embeddings
        self._span = self._buckets if self._buckets > 0 else self._furthest
        self._device = device

    def rows(self, longest: int) -> Tensor:
        """Rows for the distances 1-longest ... longest-1 and some more, R numbers."""
        distances_R = torch.arange(padded_distances(longest), device=self._device) + 1 - longest
        if self._buckets > 0:
            distances_R = log_buckets(distances_R, self._buckets, self._furthest).long()
        return (distances_R + self._span).clamp_(0, 2 * self._span - 1)


class Attention:
    """One layer's attention, up to and without its output projection."""

    def __init__(
        self,
        module: Any,  # transformers' DisentangledSelfAttention
        relative_PH: Tensor | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """relative_PH: the encoder's table of relative positions, where it has one."""
        self._heads = module.num_attention_heads
        terms = {"c2p", "p2c"} & set(module.pos_att_type)
        scale = (module.attention_head_size * (1 + len(terms))) ** -0.5
        query, key, value = module.query_proj, module.key_proj, module.value_proj
        self._query = Linear(query.weight * scale, query.bias * scale, device=device, dtype=dtype)
        self._key_value = Linear(
            torch.cat([key.weight, value.weight]), torch.cat([key.bias, value.bias]), device=device, dtype=dtype
        )

        def table(term: str, shared: nn.Linear, own: str, scale: float) -> Tensor | None:
            if relative_PH is None or term not in terms:
                return None
            project = shared if module.share_att_key else getattr(module, own)
            table_PA = project(relative_PH[: 2 * module.pos_ebd_size]) * scale
            table_hPd = table_PA.detach().unflatten(1, (self._heads, -1)).transpose(0, 1)
            return table_hPd.to(device, dtype).contiguous()

        self._key_table_hPd = table("c2p", key, "pos_key_proj", 1.0)  # r; the queries it meets are scaled
        self._query_table_hPd = table("p2c", query, "pos_query_proj", scale)  # s

    def __call__(
        self,
        hidden_NH: Tensor,
        blocks: Sequence[AttentionBlock],
        workspace: Workspace,
        queries: Queries | None = None,
    ) -> Tensor:
        """Context of every token, N x A, or of `queries` alone, B·Q x A."""
        heads = (self._heads, -1)
        query_NQhd = self._query(hidden_NH if queries is None else hidden_NH[queries.tokens]).unflatten(1, heads)
        key_Nhd, value_Nhd = self._key_value(hidden_NH).unflatten(1, (2, *heads)).unbind(1)
        contexts = []
        for block in blocks:
            query_BQhd = block.tokens(query_NQhd) if queries is None else queries.of(block, query_NQhd)
            key_BLhd = block.tokens(key_Nhd)
            positions_BQ = None if queries is None else queries.positions[block.sequences]
            context_BhQd = functional.scaled_dot_product_attention(
                query_BQhd.transpose(1, 2),
                key_BLhd.transpose(1, 2),
                block.tokens(value_Nhd).transpose(1, 2),
                attn_mask=self._mask(query_BQhd, key_BLhd, positions_BQ, block, workspace),
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
        workspace: Workspace,
    ) -> Tensor | None:
        """Additive mask of the position terms, B x h x Q x L; -inf for padding."""
        bias_BhQL = None
        if self._query_table_hPd is not None:
            s_hRd = self._query_table_hPd.index_select(1, block.distances)
            term_BhQL = _key_to_position(key_BLhd, s_hRd, positions_BQ, workspace)
            bias_BhQL = workspace.bias(*term_BhQL.shape).copy_(term_BhQL)
        if self._key_table_hPd is not None:
            r_hRd = self._key_table_hPd.index_select(1, block.distances.flip(0))
            term_BhQL = _query_to_position(query_BQhd, r_hRd, block.longest, positions_BQ, workspace)
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
