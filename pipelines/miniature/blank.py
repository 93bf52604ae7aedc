"""Small models with random weights in the shapes of the published ones, such as the miniature's before training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
)

from llm_blender_ray.actors.fusers.genfuser import REQUEST
from llm_blender_ray.pipelines.miniature.tokenizer import build_tokenizer

_SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}


def save_blank_encoder(folder: Path, seed: int, backend: Tokenizer | None = None) -> None:
    """Write a DeBERTa-v2 with PairRM's attention: disentangled, log buckets, keys shared with positions.

    Args:
        folder: Where to write it.
        seed: Of its weights.
        backend: Its tokenizer, with DeBERTa's special tokens, padding first; None: that of the miniature's world.
    """
    backend = backend or build_tokenizer(list(_SPECIAL.values()))
    torch.manual_seed(seed)
    model = DebertaV2Model(
        DebertaV2Config(
            vocab_size=backend.get_vocab_size(),
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=512,
            relative_attention=True,
            position_buckets=128,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
    )
    _save_encoder(model, backend, folder)


def save_blank_modernbert(folder: Path, seed: int, backend: Tokenizer | None = None) -> None:
    """Write a ModernBERT: rotary positions, every third layer of global and the others of local attention.

    Args:
        folder: Where to write it.
        seed: Of its weights.
        backend: Its tokenizer, with BERT's special tokens, padding first; None: that of the miniature's world.
    """
    backend = backend or build_tokenizer(list(_SPECIAL.values()))
    torch.manual_seed(seed)
    model = ModernBertModel(
        ModernBertConfig(
            vocab_size=backend.get_vocab_size(),
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=8192,
            global_attn_every_n_layers=3,
            local_attention=128,
            pad_token_id=0,
            cls_token_id=backend.token_to_id(_SPECIAL["cls_token"]),
            sep_token_id=backend.token_to_id(_SPECIAL["sep_token"]),
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    _save_encoder(model, backend, folder)


def _save_encoder(model: PreTrainedModel, backend: Tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, **_SPECIAL).save_pretrained(folder)


def save_blank_seq2seq(folder: Path, seed: int) -> None:
    """Write a T5Gemma (an encoder-decoder with rotary positions): from scratch it learns faster than a T5."""
    slots = [f"<extra_id_{i}>" for i in range(20)]
    template = ["Instruction: Input: Candidate 0:", REQUEST]
    backend = build_tokenizer(["<pad>", "</s>", "<s>", "<unk>", *slots], template)
    shape = T5GemmaModuleConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        initializer_range=0.09,  # 1/sqrt(hidden size); with the usual 0.02 it does not learn
        query_pre_attn_scalar=32,
        max_position_embeddings=1024,
        layer_types=["full_attention"] * 3,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(seed)
    model = T5GemmaForConditionalGeneration(
        T5GemmaConfig(
            encoder=shape.to_dict(),
            decoder=shape.to_dict(),
            vocab_size=backend.get_vocab_size(),
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
            decoder_start_token_id=2,  # not the padding, which training masks and cached decoding does not
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=1024,
    ).save_pretrained(folder)
