"""Adapter of transformers' private DeBERTa-v2 modules, whose weights and bucket function `deberta.py` takes.

`missing_internals` names what another release of transformers has renamed; rankers then run transformers' forward.
"""

from functools import cache
from typing import Any

from torch import Tensor
from transformers import DebertaV2Model

# What is read of an encoder, below its first layer where "layer.0" is.
_READ = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.embed_proj",
    "embeddings.LayerNorm",
    "encoder.get_rel_embedding",
    "encoder.conv",
    "encoder.layer.0.attention.self.num_attention_heads",
    "encoder.layer.0.attention.self.attention_head_size",
    "encoder.layer.0.attention.self.pos_att_type",
    "encoder.layer.0.attention.self.query_proj",
    "encoder.layer.0.attention.self.key_proj",
    "encoder.layer.0.attention.self.value_proj",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.0.intermediate.intermediate_act_fn",
    "encoder.layer.0.output.dense",
    "encoder.layer.0.output.LayerNorm",
)


def missing_internals(encoder: DebertaV2Model) -> str | None:
    """Find what the installed transformers lacks.

    Args:
        encoder: A DeBERTa-v2 or v3 encoder.

    Returns:
        The path of the first missing attribute or function; None when all are there.
    """
    for path in _READ:
        value: Any = encoder
        for name in path.split("."):
            try:
                value = value[int(name)] if name.isdigit() else getattr(value, name)
            except (AttributeError, IndexError, TypeError):
                return path
    try:
        _bucket_function()
    except (ImportError, AttributeError):
        return "make_log_bucket_position"
    return None


def log_buckets(distances: Tensor, buckets: int, furthest: int) -> Tensor:
    """Map distances of tokens to logarithmic buckets."""
    return _bucket_function()(distances, buckets, furthest)


@cache
def _bucket_function() -> Any:
    from transformers.models.deberta_v2 import modeling_deberta_v2

    return modeling_deberta_v2.make_log_bucket_position
