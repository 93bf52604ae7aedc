"""Continuous batching of causal models over transformers' `generate`: rows join and leave between its steps.

`generate` decodes until a row is over or a request waits. Rows that are over then leave the key-value cache, the
prompts of new rows are prefilled, their keys and values are put beside the others', and `generate` continues.
Inputs, masks, positions and the forward pass stay transformers' own; only the cache's tensors are joined here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_blender_ray.actors.adapters import rows_adapters
from llm_blender_ray.actors.batching import padded, token_mask

# Tokens that are best prefilled at once, padding included: the other rows' next token waits for them.
PREFILL_TOKENS = 1024


class Row(Protocol):
    """An answer in the making.

    Attributes:
        ids: Ids of the prompt and of the answer so far, at least one.
        adapter: Number of its adapter (`adapters.with_adapters`); None: the model alone.
        processors: Turn its logits into scores whose argmax is the next token. They belong to this row and see its
            ids without padding.
    """

    ids: list[int]
    adapter: int | None
    processors: LogitsProcessorList

    @property
    def tokens_left(self) -> int:
        """How many more it may get: at least one, unless it is over."""
        ...

    @property
    def over(self) -> bool:
        """Whether no more tokens are wanted."""
        ...

    def push(self, token: int) -> None:
        """Take the next token."""
        ...


class UnjoinableCacheError(Exception):
    """The model's cache isn't one whose rows can be joined."""


class RunningBatch:
    """Rows that are decoded together, and their keys and values."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        """Begin without rows.

        Args:
            model: A causal model for which `can_join` holds.
            pad_id: Any token; padding is masked.
        """
        self._model, self._pad_id = model, pad_id
        self.rows: list[Row] = []
        self._cache: Any = None

    def join(self, rows: Sequence[Row]) -> None:
        """Prefill the prompts of new rows, which gives each its first token.

        Args:
            rows: The new ones; they are decoded with the others.

        Raises:
            UnjoinableCacheError: The model's cache has another form. The rows may have got their first token.
        """
        if not rows:
            return
        cache = self._generate(rows, None, lambda: True)
        if not _is_joinable(cache):
            raise UnjoinableCacheError
        self._cache = cache if self._cache is None else _joined(self._cache, cache)
        self.rows = [*self.rows, *rows]
        self._drop()

    def decode(self, until: Callable[[], bool]) -> None:
        """Decode all rows until one is over, which then leaves.

        Args:
            until: Read after every step; True ends it sooner.
        """
        if self.rows:
            self._cache = self._generate(self.rows, self._cache, until)
            self._drop()

    def _drop(self) -> None:
        """Drop the rows that are over, and the padding that no row needs any more."""
        kept = [i for i, row in enumerate(self.rows) if not row.over]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            self._cache = None
            return
        self._cache.batch_select_indices(torch.tensor(kept, device=self._model.device))
        _resize(self._cache, max(len(row.ids) for row in self.rows) - 1)  # the last token is not in it yet

    def _generate(self, rows: Sequence[Row], cache: Any, until: Callable[[], bool]) -> Any:
        """Decode until a row is over or `until()`.

        Args:
            rows: B of them.
            cache: Keys and values of all their tokens but the last ones; None: of no token.
            until: Read after every step.

        Returns:
            Keys and values of all tokens but the last ones.
        """
        ids = [row.ids for row in rows]
        ids_B_T = padded(ids, self._pad_id, device=self._model.device, side="left")
        step = _Step(rows, [ids_B_T.shape[1] - len(row) for row in ids], until)
        return self._model.generate(
            input_ids=ids_B_T,
            attention_mask=token_mask(ids, device=self._model.device, side="left"),
            past_key_values=cache,
            max_new_tokens=max(row.tokens_left for row in rows),
            do_sample=False,  # a row's last processor adds the randomness
            logits_processor=LogitsProcessorList([_RowProcessors(step)]),
            stopping_criteria=StoppingCriteriaList([step]),
            return_dict_in_generate=True,
            **rows_adapters(self._model, [row.adapter for row in rows]),
        ).past_key_values


class _Step(StoppingCriteria):
    """Reads every step's tokens. All rows stop when one is over."""

    def __init__(self, rows: Sequence[Row], paddings: Sequence[int], until: Callable[[], bool]) -> None:
        self.rows, self.paddings, self._until = rows, paddings, until
        self.stopped = False  # on MPS `generate` makes one step more, and undoes it

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if not self.stopped:
            for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                row.push(token)
            self.stopped = self._until() or any(row.over for row in self.rows)
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)


class _RowProcessors(LogitsProcessor):
    """Applies each row's own processors."""

    def __init__(self, step: _Step) -> None:
        self._step = step

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        if self._step.stopped:
            return scores_B_V
        for i, (row, padding) in enumerate(zip(self._step.rows, self._step.paddings, strict=True)):
            if row.processors:
                scores_B_V[i] = row.processors(input_ids[i : i + 1, padding:], scores_B_V[i : i + 1])[0]
        return scores_B_V


def can_join(model: PreTrainedModel) -> bool:
    """Whether rows of different lengths and ages can share the model's cache, as far as its config says.

    Not with positions that depend on the longest row of a batch (`dynamic` and `longrope`), nor where a layer is
    neither full nor sliding-window attention.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    layers = set(getattr(config, "layer_types", None) or ())
    return (
        not model.config.is_encoder_decoder
        and not kinds & {"dynamic", "longrope"}
        and layers <= {"full_attention", "sliding_attention"}
        and getattr(config, "attention_chunk_size", None) is None
    )


def _is_joinable(cache: Any) -> bool:
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _joined(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """The rows of both in `first`, as long as the longer one."""
    length = max(first.get_seq_length(), second.get_seq_length())
    _resize(first, length)
    _resize(second, length)
    for layer, other in zip(first.layers, second.layers, strict=True):
        layer.keys, layer.values = torch.cat([layer.keys, other.keys]), torch.cat([layer.values, other.values])
    return first


def _resize(cache: DynamicCache, length: int) -> None:
    """Add or cut padding on the left, so that the cache holds `length` tokens."""
    for layer in cache.layers:
        held = length
        if isinstance(layer, DynamicSlidingWindowLayer):
            held = min(length, layer.sliding_window - 1)
            layer.cumulative_length = length
        # keys and values are B x heads x tokens x width; a negative padding cuts
        added = (0, 0, held - layer.keys.shape[2], 0)
        layer.keys, layer.values = pad(layer.keys, added), pad(layer.values, added)
