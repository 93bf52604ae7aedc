"""Kinds of backbones of a PairRanker, and their registry: how a pair is tokenized and what the head reads.

Another kind is a class as these, and one line of the registry (or an entry point `llm_blender_ray.backbones`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.pooling import LastTokenPooling, MarkerPooling
from llm_blender_ray.actors.pairrm.prompt import CAUSAL_ARCHITECTURE, PromptPairTokenizer
from llm_blender_ray.actors.pairrm.tokenization import (
    ENCODER_ARCHITECTURE,
    MARKERS,
    PairBudget,
    PairTokenization,
    PairTokenizer,
)
from llm_blender_ray.actors.tokens import load_tokenizer_backend
from llm_blender_ray.actors.weights import load_tokenizer, quiet
from llm_blender_ray.configs.registry import Registry


class Backbone(Protocol):
    """A kind of backbone. Its instances hold nothing.

    Attributes:
        architecture: Name of a ranker on it in `architectures` of its config.json.
    """

    architecture: ClassVar[str]

    def fits(self, architectures: Sequence[str]) -> bool:
        """Whether a model with these `architectures` in its config.json is a backbone of this kind."""
        ...

    def assemble(
        self, model: PreTrainedModel, folder: Path, budget: PairBudget, *, n_tasks: int, dropout: float
    ) -> tuple[PairRMNetwork, PairTokenization]:
        """A ranker on the model with a new head.

        Args:
            model: As `AutoModel` makes it; it becomes a part of the ranker.
            folder: Where its tokenizer is.
            budget: Token budgets.
            n_tasks: Outputs of the head.
            dropout: Of the head.

        Raises:
            ModelLoadError: The tokenizer lacks what a pair needs.
        """
        ...


class EncoderBackbone:
    """Encoders (DeBERTa, RoBERTa, BERT), with the paper's four markers added to their vocabulary."""

    architecture: ClassVar[str] = ENCODER_ARCHITECTURE

    def fits(self, architectures: Sequence[str]) -> bool:
        """See Backbone. Some encoders' configs name no architecture."""
        return True

    def assemble(
        self, model: PreTrainedModel, folder: Path, budget: PairBudget, *, n_tasks: int, dropout: float
    ) -> tuple[PairRMNetwork, PairTokenizer]:
        """See Backbone."""
        names = load_tokenizer(folder)  # only for what the special tokens are called
        if names.cls_token is None or names.sep_token is None or names.pad_token is None:
            raise ModelLoadError(f"{folder}: its tokenizer lacks a CLS, SEP or PAD token")
        backend = load_tokenizer_backend(folder)
        backend.add_tokens([AddedToken(marker, normalized=True, special=False) for marker in MARKERS])
        tokenizer = PairTokenizer(backend, budget, cls=names.cls_token, sep=names.sep_token, pad=names.pad_token)
        with quiet():  # it warns how new rows are initialised; a ranker's are read or trained
            model.resize_token_embeddings(tokenizer.vocab_size)
        pooling = MarkerPooling(tokenizer.source_id, tokenizer.left_id, tokenizer.right_id)
        return PairRMNetwork(model, pooling, n_tasks=n_tasks, dropout=dropout), tokenizer


class CausalBackbone:
    """Causal LMs (Llama, Qwen, Phi, Gemma, GPT-2), read at the last token of a prompt with both candidates."""

    architecture: ClassVar[str] = CAUSAL_ARCHITECTURE

    def fits(self, architectures: Sequence[str]) -> bool:
        """See Backbone."""
        return any(name.endswith(("ForCausalLM", "GPT2LMHeadModel")) for name in architectures)

    def assemble(
        self, model: PreTrainedModel, folder: Path, budget: PairBudget, *, n_tasks: int, dropout: float
    ) -> tuple[PairRMNetwork, PromptPairTokenizer]:
        """See Backbone."""
        names = load_tokenizer(folder)
        end, begin = names.eos_token, names.bos_token
        if end is None:
            raise ModelLoadError(f"{folder}: its tokenizer lacks an EOS token, which ends each text of a pair")
        backend = load_tokenizer_backend(folder)
        adds_begin = begin is not None and backend.encode("a").ids[:1] == [backend.token_to_id(begin)]
        tokenizer = PromptPairTokenizer(
            backend, budget, end=end, pad=names.pad_token or end, begin=begin if adds_begin else None
        )
        model.config.use_cache = False  # nothing is generated
        network = PairRMNetwork(
            model,
            LastTokenPooling(),
            n_tasks=n_tasks,
            dropout=dropout,
            gpu_dtype=torch.bfloat16,  # hidden states of some LMs overflow float16
        )
        return network, tokenizer


BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone of a PairRanker",
    "llm_blender_ray.backbones",
    {"causal": f"{__name__}:CausalBackbone", "encoder": f"{__name__}:EncoderBackbone"},
)


def registered_backbones() -> list[Backbone]:
    """One of each kind. Encoders are last: they fit every model that no other kind does."""
    kinds = [BACKBONES.get(name)() for name in BACKBONES.names()]
    return sorted(kinds, key=lambda kind: isinstance(kind, EncoderBackbone))
