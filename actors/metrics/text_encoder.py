"""Tokenizer and checkpoint of a metric's model."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.weights import load_config, load_model, load_tokenizer, locate, quiet, resolve_device
from llm_blender_ray.configs.metrics import MetricModel

_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # as a reward model's
# Position 0 is not theirs: that many of their positions are left over for texts.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"})


class TextEncoder:
    """A checkpoint and its tokenizer, loaded from a local folder or the hub.

    Attributes:
        model: In evaluation mode, on `device`.
        max_length: Most tokens of a text, or of a pair, with special tokens.
        batch_tokens: Most tokens of a forward, padding included.
    """

    @quiet()
    def __init__(self, settings: MetricModel, auto_class: Any, *, unused: Sequence[str] = ()) -> None:
        """Load them.

        Args:
            settings: Those of the metric.
            auto_class: One of transformers' Auto classes.
            unused: Prefixes of tensors that the metric does not read, so that a checkpoint may lack them.

        Raises:
            ModelLoadError: The model can't be used.
        """
        folder = locate(settings.model, settings.revision)
        remote = settings.trust_remote_code
        self.config = load_config(folder, trust_remote_code=remote)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=remote)
        self.device = resolve_device(settings.device)
        self.model: PreTrainedModel = load_model(
            auto_class,
            folder,
            device=self.device,
            dtype=resolve_dtype(settings.dtype, self.device, self.config.dtype),
            trust_remote_code=remote,
            unused=unused,
        )
        longest = min(self.tokenizer.model_max_length, positions_of(self.config))
        self.max_length = min(settings.max_length or longest, longest)
        self.batch_tokens = settings.batch_tokens or _BATCH_TOKENS["cpu" if self.device.type == "cpu" else "cuda"]
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self._vocabulary = self.model.get_input_embeddings().num_embeddings
        self._space_first = _lacks_prefix_space(self.tokenizer.backend_tokenizer.to_str())

    def encode(self, texts: Sequence[str], second: Sequence[str] | None = None, **options: Any) -> Any:
        """Tokens of texts, or of pairs of texts, with special tokens, cut to `max_length`.

        No text can spell a special token.

        Raises:
            BlendError: The tokenizer has a token that the model has no embedding for.
        """
        encoded = self.tokenizer(
            list(texts),
            None if second is None else list(second),
            truncation=True,
            max_length=self.max_length,
            split_special_tokens=True,
            **options,
        )
        if any(max(ids, default=0) >= self._vocabulary for ids in encoded["input_ids"]):  # ends a GPU's process
            raise BlendError("a text has a token that the model has no embedding for")
        return encoded

    def as_sentence(self, text: str) -> str:
        """The text as one that follows others: a byte-level vocabulary has other tokens at the start of a text."""
        text = text.strip()
        return f" {text}" if text and self._space_first else text


def positions_of(config: PreTrainedConfig) -> int:
    """Most tokens that a model has positions for."""
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if not positions or positions < 0:
        return 1 << 30
    return positions - (text.pad_token_id + 1 if text.model_type in _OFFSET_POSITIONS else 0)


def _lacks_prefix_space(tokenizer: str) -> bool:
    """Whether a tokenizer, by its JSON, has byte-level words and puts no space before a text's first one."""
    outer = json.loads(tokenizer)["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", [outer])
    return any(step.get("type") == "ByteLevel" and not step["add_prefix_space"] for step in steps)
