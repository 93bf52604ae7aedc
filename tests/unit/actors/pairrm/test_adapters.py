"""Adapters of private parts of torch and transformers: what happens where another release lacks them."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from llm_blender_ray.actors.pairrm import onednn, transformers_deberta
from llm_blender_ray.actors.pairrm.attention import Linear
from llm_blender_ray.actors.pairrm.deberta import DebertaMarkerEncoder, PlainMarkerEncoder, marker_encoder

CPU = torch.device("cpu")
SETTINGS = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}


def encoder() -> DebertaV2Model:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return DebertaV2Model(DebertaV2Config(**sizes, **SETTINGS, intermediate_size=32, share_att_key=True)).eval()


def test_nothing_is_missing_in_the_tested_release() -> None:
    assert transformers_deberta.missing_internals(encoder()) is None


def test_without_an_internal_transformers_forward_gives_the_same(caplog: pytest.LogCaptureFixture) -> None:
    ids, markers = [[1, 5, 9, 2], [3, 4, 7, 8, 6]], [[0, 2], [1, 4]]
    ours = marker_encoder(encoder(), device=CPU, dtype=torch.float32)
    lacking = encoder()
    del lacking.encoder.conv
    with caplog.at_level(logging.WARNING):
        theirs = marker_encoder(_with_conv_for_itself(lacking), device=CPU, dtype=torch.float32)
    assert isinstance(ours, DebertaMarkerEncoder) and isinstance(theirs, PlainMarkerEncoder)
    assert "no encoder.conv" in caplog.text
    torch.testing.assert_close(ours.at_markers(ids, markers), theirs.at_markers(ids, markers), atol=1e-5, rtol=1e-5)


def _with_conv_for_itself(model: DebertaV2Model) -> DebertaV2Model:
    """The model, whose own forward reads `conv` though the adapter finds none."""
    forward = model.encoder.forward

    def patched(*args: object, **kwargs: object) -> object:
        model.encoder.conv = None
        return forward(*args, **kwargs)

    model.encoder.forward = patched
    return model


def test_without_the_bucket_function_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise AttributeError("make_log_bucket_position")

    monkeypatch.setattr(transformers_deberta, "_bucket_function", missing)
    assert transformers_deberta.missing_internals(encoder()) == "make_log_bucket_position"


def test_without_onednn_operators_a_linear_layer_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = torch.randn(4, 8), torch.randn(4), torch.randn(3, 8).bfloat16()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(), raising=False)
    assert not onednn.is_available(CPU, torch.bfloat16)
    layer = Linear(weight, bias, device=CPU, dtype=torch.bfloat16)
    expected = torch.nn.functional.linear(x, weight.bfloat16(), bias.bfloat16())
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.plus(x, expected), expected + expected)
