"""DeBERTa-v2 models of every variant of the config, with random weights, and what transformers makes of them."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DebertaV2Config, PreTrainedModel

POSITIONS = 64
SIZES = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": POSITIONS,
}
V3 = {  # as microsoft/deberta-v3-*, smaller
    "relative_attention": True,
    "position_buckets": 8,
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
VARIANTS = {
    "v3": {},
    "v2-xlarge": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "convolution in groups": {"conv_kernel_size": 5, "conv_groups": 4},
    "convolution, one layer": {"conv_kernel_size": 3, "num_hidden_layers": 1},
    "one layer": {"num_hidden_layers": 1},
    "no buckets": {"position_buckets": -1},
    "no buckets, near positions": {"position_buckets": -1, "max_relative_positions": 10},
    "buckets, near positions": {"max_relative_positions": 20},
    "buckets, odd": {"position_buckets": 7},
    "c2p": {"pos_att_type": "c2p"},
    "p2c": {"pos_att_type": "p2c"},
    "neither": {"pos_att_type": None},
    "own projections": {"share_att_key": False},
    "own projections, c2p": {"share_att_key": False, "pos_att_type": "c2p"},
    "own projections, p2c": {"share_att_key": False, "pos_att_type": "p2c"},
    "positions not normed": {"norm_rel_ebd": "none"},
    "absolute positions": {"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
    "terms without relative attention": {"relative_attention": False},
    "both positions, types": {"position_biased_input": True, "type_vocab_size": 2},
    "small embedding": {"embedding_size": 32},
    "relu": {"hidden_act": "relu"},
    "gelu_new": {"hidden_act": "gelu_new"},
}


def config(**changes: object) -> DebertaV2Config:
    return DebertaV2Config(**SIZES | V3 | changes)


def random_model(model: PreTrainedModel) -> PreTrainedModel:
    """Weights so large that every part of the network shows in the result, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25 + ("LayerNorm.weight" in name))
    return model.eval()


def sequences(lengths: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids, and three positions in each sequence."""
    random_ids = random.Random(sum(lengths))
    ids = [[random_ids.randrange(1, 99) for _ in range(length)] for length in lengths]
    return ids, [[length - 1, 0, length // 2] for length in lengths]


@torch.inference_mode()
def own(model: PreTrainedModel, ids: list[list[int]], markers: list[list[int]]) -> Tensor:
    """What transformers gives, in one padded batch."""
    longest = max(map(len, ids))
    pad = model.config.pad_token_id
    ids_BL = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    hidden_BLH = model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    return hidden_BLH[torch.arange(len(ids))[:, None], torch.tensor(markers)]
