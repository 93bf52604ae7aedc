"""The forward written for ranking against transformers' own, in every variant that a DeBERTa-v2 config has."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm import deberta
from llm_blender_ray.actors.pairrm.deberta import DebertaMarkerEncoder, marker_encoder, sequence_flops

CPU = torch.device("cpu")
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


@pytest.fixture(params=[2**16, 2**30], ids=["blocks", "one block"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences a few at a time, as on CPU, and all at once, as elsewhere."""
    monkeypatch.setattr(deberta, "CPU_BLOCK", request.param)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_gives_what_transformers_gives(changes: dict) -> None:
    model = random_model(DebertaV2Model(config(**changes)))
    longest = POSITIONS if model.config.position_biased_input else 5 * POSITIONS
    ids, markers = sequences([17, longest, 1, 40, 17, longest - 1, 3])
    expected = own(model, ids, markers)
    ours = marker_encoder(model, device=CPU, dtype=torch.float32)
    assert isinstance(ours, DebertaMarkerEncoder)
    torch.testing.assert_close(ours.at_markers(ids, markers), expected, rtol=0, atol=1e-5)


def test_more_sequences_than_a_block_holds() -> None:
    model = random_model(DebertaV2Model(config()))
    ids, markers = sequences([250, 120, 251, 119, 30, 118, 249, 31])
    ours = marker_encoder(model, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(ours.at_markers(ids, markers), own(model, ids, markers), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def encoder() -> DebertaMarkerEncoder:
    return DebertaMarkerEncoder(random_model(DebertaV2Model(config())), device=CPU, dtype=torch.float32)


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=7))
def test_neighbours_do_not_matter(encoder: DebertaMarkerEncoder, lengths: list[int]) -> None:
    ids, markers = sequences(lengths)
    together = encoder.at_markers(ids, markers)
    alone = torch.cat([encoder.at_markers([row], [places]) for row, places in zip(ids, markers, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)  # float32, in another order of adding


def test_bfloat16_differs_by_rounding_only() -> None:
    """No further from the exact result than transformers' own bfloat16."""
    model = random_model(DebertaV2Model(config()))
    ids, markers = sequences([200, 150, 149, 80, 12])
    exact = own(model, ids, markers)
    ours = marker_encoder(model, device=CPU, dtype=torch.bfloat16).at_markers(ids, markers)
    theirs = own(model.to(torch.bfloat16), ids, markers)
    assert ours.dtype is torch.bfloat16
    assert (ours - exact).square().mean() < 1.1 * (theirs - exact).square().mean() < 1e-2 * exact.square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_left_as_they_were(dtype: torch.dtype) -> None:
    model = random_model(DebertaV2Model(config()))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    marker_encoder(model, device=CPU, dtype=dtype).at_markers(*sequences([9, 5]))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_more_tokens_than_absolute_positions() -> None:
    model = DebertaV2Model(config(position_biased_input=True))
    ours = marker_encoder(model, device=CPU, dtype=torch.float32)
    with pytest.raises(BlendError, match=r"65 tokens.*64 positions.*source_max_length"):
        ours.at_markers(*sequences([POSITIONS + 1]))


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SIZES)),
        RobertaModel(RobertaConfig(**SIZES, pad_token_id=1)),
        DebertaModel(DebertaConfig(**SIZES, relative_attention=True, pos_att_type="c2p|p2c")),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_backbones(model: PreTrainedModel) -> None:
    random_model(model)
    ids, markers = sequences([30, 4, 12])
    expected = own(model, ids, markers)
    ours = marker_encoder(model, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(ours.at_markers(ids, markers), expected, rtol=0, atol=1e-5)


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], **_: object) -> int:
    return sdpa_flop_count(query, key, value)


@pytest.mark.parametrize(
    "name", ["v3", "c2p", "p2c", "neither", "absolute positions", "small embedding", "v2-xlarge", "one layer"]
)
def test_flops_are_those_of_the_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_blender_ray.actors.pairrm.attention.TILE", 1)  # what fills up tiles isn't needed
    model = DebertaV2Model(config(**VARIANTS[name]))
    ours = marker_encoder(model, device=CPU, dtype=torch.float32)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter knows only CUDA's
    with FlopCounterMode(display=False, custom_mapping={attention: attention_flops}) as counter:
        ours.at_markers(*sequences([45]))
    assert counter.get_total_flops() == sequence_flops(model.config, 45)
