"""Encoders read at a few positions only, and a DeBERTa-v2/v3 forward written for that.

PairRanker's head reads three tokens of some hundred, and every text is read n(n-1) times: most of ranking is this
forward. It gives what transformers' `DebertaV2Model` gives (He et al., arXiv 2006.03654 and 2111.09543) from the
same weights, with less work:

- tokens of all sequences lie packed, one after the other, so that the linear layers see no padding;
- attention (`attention.py`) projects relative positions once per model, not once per batch and layer; on a GPU it
  is one fused kernel;
- the last layer computes queries, output and feed-forward at the markers alone.

Other backbones (RoBERTa, BERT, DeBERTa v1) run through transformers as they are, behind the same interface.
Shape suffixes: B sequences, L tokens, N tokens of a whole batch, M markers per sequence, H hidden, I intermediate.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedModel
from transformers.activations import ACT2FN, GELUActivation

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm import packed_attention
from llm_blender_ray.actors.pairrm.attention import Attention, AttentionLayout, Distances, Linear, Queries
from llm_blender_ray.actors.pairrm.block_attention import AttentionBlock, BlockLayout
from llm_blender_ray.actors.pairrm.packed_attention import PackedLayout
from llm_blender_ray.actors.pairrm.transformers_deberta import missing_internals

_log = logging.getLogger(__name__)

CPU_BLOCK = 2**16  # B·L² of a block; 2**15 and 2**17 are as fast: what matters is to stay in a core's cache


class MarkerEncoder(Protocol):
    """Encoder interface that a PairRanker needs."""

    def at_markers(self, ids: Sequence[Sequence[int]], markers: Sequence[Sequence[int]]) -> Tensor:
        """Last hidden states at the markers, B x M x H.

        A sequence's result does not depend on the others, beyond rounding.

        Args:
            ids: B sequences of token ids, of any lengths, at least one.
            markers: M positions in each.
        """
        ...

    def positions(self, lengths: Sequence[int]) -> int:
        """Number of tokens computed for sequences of these lengths, padding included."""
        ...


def marker_encoder(encoder: PreTrainedModel, *, device: torch.device, dtype: torch.dtype) -> MarkerEncoder:
    """An inference-only encoder with the weights of `encoder`, shared where device and dtype are the same.

    The caller gives `encoder` away: it may be moved and cast.
    """
    if isinstance(encoder, DebertaV2Model):
        if missing := missing_internals(encoder):
            _log.warning("transformers has no %s in its DeBERTa here; ranking uses its slower forward", missing)
            return PlainMarkerEncoder(encoder, device=device, dtype=dtype)
        return DebertaMarkerEncoder(encoder, device=device, dtype=dtype)
    return PlainMarkerEncoder(encoder, device=device, dtype=dtype)


def sequence_flops(config: DebertaV2Config, length: int, markers: int = 3) -> int:
    """Floating-point operations in the matrix products of one sequence's DeBERTa forward, two per multiply-add.

    With L tokens, hidden size H, intermediate size I, M markers and R = 2L-1 distances, a layer is

        queries and output   2 · 2LH²        feed-forward             2 · 2LHI
        keys and values      2 · 2LH²        scores and context       2 · 2L²H
        and 2LRH for each of the position terms that the config has;

    in the last layer it is M instead of L (once instead of twice for L²), except in keys, values and p2c.
    """
    L, M, H = length, markers, config.hidden_size
    terms = set(config.pos_att_type or ()) if config.relative_attention else set()

    def layer(queries: int) -> int:
        per_query = 4 * H * H + 4 * H * config.intermediate_size + 4 * L * H
        positions = ("c2p" in terms) * queries + ("p2c" in terms) * L
        return queries * per_query + 4 * L * H * H + 2 * positions * (2 * L - 1) * H

    embedding_size = getattr(config, "embedding_size", H)
    projection = 2 * L * embedding_size * H if embedding_size != H else 0
    convolution = 2 * L * H * H * getattr(config, "conv_kernel_size", 0) // getattr(config, "conv_groups", 1)
    return projection + convolution + (config.num_hidden_layers - 1) * layer(L) + layer(M)


class PlainMarkerEncoder:
    """Any encoder of transformers: padded batches, every position computed."""

    def __init__(self, encoder: PreTrainedModel, *, device: torch.device, dtype: torch.dtype) -> None:
        self._encoder = encoder.to(device=device, dtype=dtype).eval()
        self._device = device

    @torch.inference_mode()
    def at_markers(self, ids: Sequence[Sequence[int]], markers: Sequence[Sequence[int]]) -> Tensor:
        """See MarkerEncoder."""
        longest = max(map(len, ids))
        pad = self._encoder.config.pad_token_id or 0
        ids_BL = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=self._device)
        lengths_B1 = torch.tensor([[len(row)] for row in ids], device=self._device)
        mask_BL = torch.arange(longest, device=self._device) < lengths_B1
        hidden_BLH = self._encoder(input_ids=ids_BL, attention_mask=mask_BL.long(), return_dict=True)[0]
        rows_B1 = torch.arange(len(ids), device=self._device)[:, None]
        return hidden_BLH[rows_B1, torch.tensor(markers, device=self._device)]

    def positions(self, lengths: Sequence[int]) -> int:
        """See MarkerEncoder."""
        return len(lengths) * max(lengths)


class DebertaMarkerEncoder:
    """DeBERTa-v2 or v3, in every variant of its config."""

    @torch.no_grad()
    def __init__(self, encoder: DebertaV2Model, *, device: torch.device, dtype: torch.dtype) -> None:
        body = encoder.encoder
        relative_PH = body.get_rel_embedding()  # None where positions are absolute only
        self._device = device
        self._packed = packed_attention.has_kernel(device, dtype, body.layer[0].attention.self.attention_head_size)
        self._heads = encoder.config.num_attention_heads
        self._embeddings = _Embeddings(encoder.embeddings, device, dtype)
        self._distances = Distances(encoder.config, device)
        self._layers = [_Layer(layer, relative_PH, device, dtype) for layer in body.layer]
        self._convolution = None if body.conv is None else _Convolution(body.conv, device, dtype)

    @torch.inference_mode()
    def at_markers(self, ids: Sequence[Sequence[int]], markers: Sequence[Sequence[int]]) -> Tensor:
        """See MarkerEncoder.

        Raises:
            BlendError: A sequence is longer than the model has absolute positions.
        """
        batch = _Batch(ids, markers, self._device, packed=self._packed)
        embedded_NH = hidden_NH = self._embeddings(batch)
        layout = self._layout(batch, embedded_NH.dtype)
        for i, layer in enumerate(self._layers):
            queries = batch.queries if i == len(self._layers) - 1 else None
            hidden_NH = layer(hidden_NH, layout, queries)
            if i == 0 and self._convolution is not None:
                hidden_NH = self._convolution(embedded_NH, hidden_NH, batch.blocks, queries)
        return batch.in_order(hidden_NH)

    def _layout(self, batch: "_Batch", dtype: torch.dtype) -> AttentionLayout:
        if self._packed:
            return PackedLayout(batch.lengths, batch.queries, self._distances, device=self._device, dtype=dtype)
        return BlockLayout(
            batch.blocks,
            self._distances,
            markers=batch.queries.positions.shape[1],
            heads=self._heads,
            device=self._device,
            dtype=dtype,
        )

    def positions(self, lengths: Sequence[int]) -> int:
        """See MarkerEncoder."""
        longest_first = sorted(lengths, reverse=True)
        blocks = _blocks(longest_first, packed=self._packed)
        return sum((block.stop - block.start) * longest_first[block.start] for block in blocks)


class _Batch:
    """Sequences as tokens that follow each other, the longest sequence first, cut into blocks."""

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        markers: Sequence[Sequence[int]],
        device: torch.device,
        *,
        packed: bool,
    ) -> None:
        """packed: without padding, each block of sequences of one length."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        self.lengths = lengths = [len(ids[i]) for i in order]
        self.longest = lengths[0]
        self.blocks: list[AttentionBlock] = []
        tokens: list[int] = []
        places: list[int] = []  # of the tokens in their sequences
        starts: list[int] = []  # of the sequences among the tokens
        for part in _blocks(lengths, packed=packed):
            longest = lengths[part.start]
            padding = None
            if lengths[part.stop - 1] < longest:
                lengths_B111 = torch.tensor(lengths[part], device=device)[:, None, None, None]
                padding = torch.arange(longest, device=device) >= lengths_B111
            self.blocks.append(AttentionBlock(len(tokens), part, longest, padding))
            for i in order[part]:
                starts.append(len(tokens))
                tokens += [*ids[i], *[0] * (longest - len(ids[i]))]
                places += range(longest)
        self.ids_N = torch.tensor(tokens, device=device)
        self.places_N = torch.tensor(places, device=device)
        positions_BM = torch.tensor([markers[i] for i in order], device=device)
        starts_B1 = torch.tensor(starts, device=device)[:, None]
        self.queries = Queries(positions_BM, (starts_B1 + positions_BM).flatten())
        self._order_B = torch.tensor(order, device=device)

    def in_order(self, hidden_NH: Tensor) -> Tensor:
        """Hidden states of the markers, B x M x H, in the order of the given sequences."""
        hidden_BMH = hidden_NH.unflatten(0, self.queries.positions.shape)
        return hidden_BMH[self._order_B.argsort()]


def _blocks(lengths: Sequence[int], *, packed: bool) -> Iterator[slice]:
    """Cut sequences, the longest first, into blocks: of one length if packed, else as many as a cache holds."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths):
            full = True
        elif packed:
            full = lengths[stop] < lengths[start]
        else:
            full = (stop + 1 - start) * lengths[start] ** 2 > CPU_BLOCK
        if full:
            yield slice(start, stop)
            start = stop


def _in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The activation, over its input where it can be: memory for a result costs more time than computing it."""
    if isinstance(activation, GELUActivation) and activation.act is functional.gelu:
        return torch.ops.aten.gelu_.default
    return activation


class _Norm:
    def __init__(self, norm: nn.LayerNorm, device: torch.device, dtype: torch.dtype) -> None:
        self._weight = norm.weight.to(device, dtype)
        self._bias = norm.bias.to(device, dtype)
        self._eps = norm.eps

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(hidden, hidden.shape[-1:], self._weight, self._bias, self._eps)


class _Embeddings:
    def __init__(self, embeddings: Any, device: torch.device, dtype: torch.dtype) -> None:
        def weight(module: nn.Embedding | nn.Linear | None) -> Tensor | None:
            return None if module is None else module.weight.to(device, dtype)

        self._words = embeddings.word_embeddings.weight.to(device, dtype)
        self._positions = weight(embeddings.position_embeddings)
        self._types = weight(embeddings.token_type_embeddings)
        self._project = weight(embeddings.embed_proj)
        self._norm = _Norm(embeddings.LayerNorm, device, dtype)

    def __call__(self, batch: _Batch) -> Tensor:
        """N x H."""
        hidden_NE = functional.embedding(batch.ids_N, self._words)
        if self._positions is not None:
            if batch.longest > len(self._positions):
                raise BlendError(
                    f"a pair of {batch.longest} tokens is longer than the {len(self._positions)} positions of the "
                    "ranker's encoder; lower source_max_length and candidate_max_length"
                )
            hidden_NE += functional.embedding(batch.places_N, self._positions)
        if self._types is not None:
            hidden_NE += self._types[0]
        return self._norm(hidden_NE if self._project is None else functional.linear(hidden_NE, self._project))


class _Layer:
    def __init__(self, layer: Any, relative_PH: Tensor | None, device: torch.device, dtype: torch.dtype) -> None:
        def linear(module: nn.Linear) -> Linear:
            return Linear(module.weight, module.bias, device=device, dtype=dtype)

        self._attention = Attention(layer.attention.self, relative_PH, device=device, dtype=dtype)
        self._attention_output = linear(layer.attention.output.dense)
        self._attention_norm = _Norm(layer.attention.output.LayerNorm, device, dtype)
        self._up = linear(layer.intermediate.dense)
        self._activation = _in_place(layer.intermediate.intermediate_act_fn)
        self._down = linear(layer.output.dense)
        self._norm = _Norm(layer.output.LayerNorm, device, dtype)

    def __call__(self, hidden_NH: Tensor, layout: AttentionLayout, queries: Queries | None) -> Tensor:
        """N x H, or B·M x H when only the markers are asked for."""
        context_NA = self._attention(hidden_NH, layout, queries)
        residual_NH = hidden_NH if queries is None else hidden_NH[queries.tokens]
        hidden_NH = self._attention_norm(self._attention_output.plus(context_NA, residual_NH))
        return self._norm(self._down.plus(self._activation(self._up(hidden_NH)), hidden_NH))


class _Convolution:
    """Of DeBERTa-v2 xlarge and xxlarge: after the first layer, its output plus a convolution of its input."""

    def __init__(self, layer: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._convolve = deepcopy(layer.conv).to(device, dtype)
        self._activation: Callable[[Tensor], Tensor] = ACT2FN[layer.conv_act]
        self._norm = _Norm(layer.LayerNorm, device, dtype)

    def __call__(
        self, embedded_NH: Tensor, hidden_NH: Tensor, blocks: Sequence[AttentionBlock], queries: Queries | None
    ) -> Tensor:
        outputs = []
        # TF32, which cuDNN takes otherwise, keeps 10 bits of a float32
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for block in blocks:
                embedded_BLH = block.tokens(embedded_NH)
                if block.padding is not None:
                    embedded_BLH = embedded_BLH.masked_fill(block.padding[:, 0, 0, :, None], 0)
                outputs.append(self._convolve(embedded_BLH.mT).mT.flatten(0, 1))
        local_NH = torch.cat(outputs)
        if queries is not None:
            local_NH = local_NH[queries.tokens]
        return self._norm(hidden_NH + self._activation(local_NH))
