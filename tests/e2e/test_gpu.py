"""The original's answers on a GPU, in float32 and in the half precision that is the default there."""

import asyncio
import json

import pytest
import torch
from deberta_models import POSITIONS, VARIANTS, config, own, random_model, sequences
from paths import GOLDEN
from transformers import DebertaV2Model

from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.pairrm import packed_attention
from llm_blender_ray.actors.pairrm.deberta import marker_encoder
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.configs.schema import GenFuser, PairRanker

PAIRS = json.loads((GOLDEN / "pairranker.json").read_text())
FUSIONS = json.loads((GOLDEN / "genfuser.json").read_text())

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float16", 0.02), ("bfloat16", 0.1)])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "blocks"])
def test_ranker(dtype: str, tolerance: float, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if packed:
        assert packed_attention.has_kernel(torch.device("cuda"), torch.float32, 64), "the kernel doesn't run"
    else:
        monkeypatch.setattr(packed_attention, "has_kernel", lambda *_: False)
    ranker = Ranker(
        PairRanker(
            model=str(GOLDEN / "checkpoints" / "PairRM"),
            source_max_length=PAIRS["source_maxlength"],
            candidate_max_length=PAIRS["candidate_maxlength"],
            device="cuda",
            dtype=dtype,
        )
    )
    cases = [case for case in PAIRS["cases"] if "error" not in case]
    rows = [
        (Prompt("", case["instruction"], case["input"]), [Candidate(None, text) for text in case["candidates"]])
        for case in cases
    ]
    for case, ranking in zip(cases, asyncio.run(ranker.rank(rows)), strict=True):
        assert ranking.scores == pytest.approx(case["scores_max_logits"], abs=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_of_long_sequences(variant: str) -> None:
    """Of every length around the kernel's tiles and the reach of positions."""
    model = random_model(DebertaV2Model(config(**VARIANTS[variant])))
    longest = POSITIONS if model.config.position_biased_input else 700
    ids, markers = sequences([longest, 1, 31, 32, 33, min(longest, 513), 17])
    expected = own(model, ids, markers)
    device = torch.device("cuda")
    ours = marker_encoder(model, device=device, dtype=torch.float32).at_markers(ids, markers)
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=1e-4)


def test_fuser() -> None:
    fuser = GenFuserModel(
        GenFuser(
            model=str(GOLDEN / "checkpoints" / "gen_fuser"),
            device="cuda",
            dtype="float32",
            num_beams=FUSIONS["num_beams"],
            max_new_tokens=FUSIONS["max_new_tokens"],
            max_length=FUSIONS["max_length"],
            candidate_max_length=FUSIONS["candidate_maxlength"],
        )
    )
    items = [(Prompt("", case["instruction"], case["input"]), case["candidates"]) for case in FUSIONS["cases"]]
    expected = [case["fused_beam4_max24"] for case in FUSIONS["cases"]]
    assert fuser.fuse_all(items) == expected

    async def main() -> list[str]:
        try:
            return [answer.text for answer in await asyncio.gather(*(fuser.fuse(*item) for item in items))]
        finally:
            await fuser.close()

    assert asyncio.run(main()) == expected
