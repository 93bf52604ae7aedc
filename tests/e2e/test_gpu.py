"""The original's answers on a GPU, in float32 and in the half precision that is the default there."""

import asyncio
import json

import pytest
import torch
from paths import GOLDEN

from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.configs.schema import GenFuser, PairRanker

PAIRS = json.loads((GOLDEN / "pairranker.json").read_text())
FUSIONS = json.loads((GOLDEN / "genfuser.json").read_text())

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("auto", 0.05)])
def test_ranker(dtype: str, tolerance: float) -> None:
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
