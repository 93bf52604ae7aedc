"""The forward written for ranking against transformers' own, in every variant that a DeBERTa-v2 config has."""

from collections.abc import Sequence

import pytest
import torch
from deberta_models import POSITIONS, SIZES, VARIANTS, config, own, random_model, sequences
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm import deberta
from llm_blender_ray.actors.pairrm.deberta import DebertaMarkerEncoder, marker_encoder, sequence_flops

CPU = torch.device("cpu")


@pytest.fixture(params=[2**16, 2**30], ids=["blocks", "one block"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences a few at a time, and all at once."""
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
