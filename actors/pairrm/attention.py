"""DeBERTa-v2's disentangled attention (He et al., arXiv 2006.03654), for inference over sequences of any lengths.

The score of query i and key j is q_i·k_j + q_i·r_(i-j) + k_j·s_(i-j), where r and s are projections of a table of
relative positions, which depend on weights alone: they are made once per model, with the scale folded in. How the
scores of a batch are computed is its layout's business: `block_attention.py` on CPU, `packed_attention.py` on GPUs.

Shape suffixes: B sequences, L tokens of the longest, N tokens of all, Q queries (N, or the few asked for), h heads,
d head size, A = h·d, H hidden, R distances, P rows of the table of relative positions.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config

from llm_blender_ray.actors.pairrm import onednn
from llm_blender_ray.actors.pairrm.transformers_deberta import log_buckets

TILE = 32  # columns: products with fewer left over are up to a quarter faster (AMX)


@dataclass(frozen=True, slots=True)
class PositionTables:
    """Projections of the table of relative positions, each h x P x d; None for a term that the config lacks."""

    key: Tensor | None  # r, which scaled queries meet (c2p)
    query: Tensor | None  # s, scaled, which keys meet (p2c)


@dataclass(frozen=True, slots=True)
class Queries:
    """The few tokens whose context is asked for, M in each sequence."""

    positions: Tensor  # B x M, in their sequences
    tokens: Tensor  # B·M, among the N tokens


class AttentionLayout(Protocol):
    """How a batch's tokens lie among the N, and attention over them."""

    def attend(
        self, query_Qhd: Tensor, key_Nhd: Tensor, value_Nhd: Tensor, tables: PositionTables, queries: Queries | None
    ) -> Tensor:
        """Context, Q x A.

        Args:
            query_Qhd: Scaled queries, of all tokens or of `queries`.
            key_Nhd: Keys.
            value_Nhd: Values.
            tables: The layer's.
            queries: Which tokens ask; None for all.
        """
        ...


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

        self._tables = PositionTables(
            table("c2p", key, "pos_key_proj", 1.0), table("p2c", query, "pos_query_proj", scale)
        )

    def __call__(self, hidden_NH: Tensor, layout: AttentionLayout, queries: Queries | None = None) -> Tensor:
        """Context of every token, N x A, or of `queries` alone, B·M x A."""
        heads = (self._heads, -1)
        query_Qhd = self._query(hidden_NH if queries is None else hidden_NH[queries.tokens]).unflatten(1, heads)
        key_Nhd, value_Nhd = self._key_value(hidden_NH).unflatten(1, (2, *heads)).unbind(1)
        return layout.attend(query_Qhd, key_Nhd, value_Nhd, self._tables, queries)
