"""The kind of backbone that a model is taken for."""

from collections.abc import Sequence

import pytest

from llm_blender_ray.actors.pairrm.backbones import (
    BACKBONES,
    CausalBackbone,
    EncoderBackbone,
    registered_backbones,
)


class ToyBackbone:
    """Of another package."""

    architecture = "ToyPairRM"

    def fits(self, architectures: Sequence[str]) -> bool:
        return "ToyModel" in architectures


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES._added, "toy", ToyBackbone)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("architectures", "kind"),
    [
        (["ToyModel"], ToyBackbone),
        (["LlamaForCausalLM"], CausalBackbone),
        (["DebertaV2Model"], EncoderBackbone),
        ([], EncoderBackbone),
    ],
)
def test_an_encoder_is_what_no_other_kind_fits(architectures: list[str], kind: type) -> None:
    assert type(next(one for one in registered_backbones() if one.fits(architectures))) is kind
