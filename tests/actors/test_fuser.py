"""GenFuser against the original's answers: the same input ids, the same text."""

import json
from pathlib import Path

import pytest

from actors.errors import ModelLoadError
from actors.fuser import Fuser
from actors.records import Prompt
from configs.schema import Fuser as FuserSettings

GOLDEN = Path(__file__).parent.parent / "golden"
ANSWERS = json.loads((GOLDEN / "genfuser.json").read_text())
CASES = ANSWERS["cases"]


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(
        FuserSettings(
            model=str(GOLDEN / "checkpoints" / "gen_fuser"),
            device="cpu",
            num_beams=ANSWERS["num_beams"],
            max_new_tokens=ANSWERS["max_new_tokens"],
            max_length=ANSWERS["max_length"],
            candidate_max_length=ANSWERS["candidate_maxlength"],
            max_batch_size=5,
        )
    )


def item(case: dict) -> tuple[Prompt, list[str]]:
    return Prompt("", case["instruction"], case["input"]), case["candidates"]


@pytest.mark.parametrize("case", CASES)
def test_input_ids(fuser: Fuser, case: dict) -> None:
    assert fuser.template.input_ids(case["instruction"], case["input"], case["candidates"]) == case["input_ids"]


def test_fused_text_in_batches(fuser: Fuser) -> None:
    assert fuser.fuse([item(case) for case in CASES]) == [case["fused_beam4_max24"] for case in CASES]


def test_fused_text_alone(fuser: Fuser) -> None:
    assert fuser.fuse([item(CASES[3])]) == [CASES[3]["fused_beam4_max24"]]


def test_more_candidates_than_the_tokenizer_has_markers_is_refused_at_loading() -> None:
    with pytest.raises(ModelLoadError, match=r"no <extra_id_100>, which a fuser with top_k 101 reads"):
        Fuser(FuserSettings(model=str(GOLDEN / "checkpoints" / "gen_fuser"), device="cpu", top_k=101))


def test_nothing_to_fuse(fuser: Fuser) -> None:
    assert fuser.fuse([]) == []


@pytest.mark.parametrize("spelled", ["</s>", "<extra_id_0>", "<pad>", "<unk>"])
def test_text_that_spells_a_special_token_stays_text(fuser: Fuser, spelled: str) -> None:
    plain = fuser.template.input_ids("do", "it", ["an answer"])
    marked = fuser.template.input_ids("do", "it", [f"an {spelled} answer"])
    special = [i for i in plain if i < 3 or i >= 2000]
    assert [i for i in marked if i < 2 or i >= 2000] == [i for i in special if i != 2]


def test_long_candidates_are_cut_and_the_input_is_bounded(fuser: Fuser) -> None:
    long = "word " * 5000
    ids = fuser.template.input_ids("do", "it", [long] * 20)
    assert len(ids) == ANSWERS["max_length"]
    one = fuser.template.input_ids("do", "it", [long])
    assert len(one) < ANSWERS["candidate_maxlength"] + 80
