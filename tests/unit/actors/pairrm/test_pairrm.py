"""PairRanker against the original's answers (llm-blender 0.0.2, float32, one case per call)."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from paths import GOLDEN
from safetensors.torch import load_file, save_file

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm, save_pairrm
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Message, Prompt, Ranking
from llm_blender_ray.configs.schema import PairRanker

ANSWERS = json.loads((GOLDEN / "pairranker.json").read_text())
CASES = ANSWERS["cases"]
LAYOUTS = ("PairRM", "PairRM-hf")


def settings(layout: str, **changes: object) -> PairRanker:
    return PairRanker(
        model=str(GOLDEN / "checkpoints" / layout),
        source_max_length=ANSWERS["source_maxlength"],
        candidate_max_length=ANSWERS["candidate_maxlength"],
        device="cpu",
        **changes,
    )


def row(case: dict) -> tuple[Prompt, list[Candidate]]:
    prompt = Prompt("", case["instruction"], case["input"])
    return prompt, [Candidate(f"m{i}", text) for i, text in enumerate(case["candidates"])]


def rank(ranker: Ranker, rows: list) -> list[Ranking]:
    rankings = asyncio.run(ranker.rank(rows))
    assert all(isinstance(ranking, Ranking) for ranking in rankings), rankings
    return rankings


@pytest.fixture(scope="module", params=LAYOUTS)
def ranker(request: pytest.FixtureRequest) -> Ranker:
    return Ranker(settings(request.param))


@pytest.fixture(scope="module")
def rankings(ranker: Ranker) -> list:
    """All cases in one call, so in batches with others: a row's result must be what it is alone."""
    return rank(ranker, [row(case) for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_golden_case(rankings: list, number: int) -> None:
    case, ranking = CASES[number], rankings[number]
    n = len(case["candidates"])
    if "error" in case:  # the original stops here; the marker in the text is text, and all are ranked
        assert sorted(ranking.order) == list(range(n))
        assert all(score is not None for score in ranking.scores)
        return
    for i in range(n):
        for j in range(n):
            if i != j:
                assert ranking.logits[i][j] == pytest.approx(case["logits"][i][j], abs=1e-4)
        assert ranking.logits[i][i] is None
    assert ranking.scores == pytest.approx(case["scores_max_logits"], abs=1e-4)
    ranks = {i: rank for rank, i in enumerate(ranking.order, 1)}
    distinct = len(set(case["candidates"])) == n
    if distinct:
        assert [ranks[i] for i in range(n)] == case["ranks"]
        assert ranking.comparisons == n * (n - 1)
    else:
        assert [case["ranks"][i] for i in ranking.order] == sorted(case["ranks"])
        assert ranking.comparisons < n * (n - 1)


def test_a_row_is_the_same_alone_and_among_others(ranker: Ranker, rankings: list) -> None:
    for number in (0, 7, 14, 33):
        alone = rank(ranker, [row(CASES[number])])[0]
        assert alone.order == rankings[number].order
        assert alone.scores == pytest.approx(rankings[number].scores, abs=1e-5)


@pytest.mark.parametrize("marker", ["<|candidate1|>", "<|source|>", "[CLS]", "[MASK]", "[PAD]", "<|candidate|>"])
def test_text_that_spells_a_marker_stays_text(marker: str) -> None:
    _, tokenizer = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM-hf"))
    special = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.source_id, tokenizer.left_id}
    special |= {tokenizer.right_id, tokenizer.candidate_id, tokenizer.backend.token_to_id("[MASK]")}
    cls, mark, *text, sep = tokenizer.encode_source(f"before {marker} after")
    assert (cls, mark, sep) == (tokenizer.cls_id, tokenizer.source_id, tokenizer.sep_id)
    assert text and not special & set(text)


HISTORY = ({"role": "user", "content": "word " * 600}, {"role": "assistant", "content": "word " * 600})


@pytest.mark.parametrize(
    "system", [(), ({"role": "system", "content": "Be brief. " * 100},)], ids=["chat", "system"]
)
def test_a_long_chat_is_ranked_by_its_last_turn(ranker: Ranker, system: tuple[Message, ...]) -> None:
    questions = ["What is the capital of France?", "What is the past tense of go?"]
    chats = [Prompt("", messages=(*system, *HISTORY, {"role": "user", "content": text})) for text in questions]
    candidates = [Candidate(None, text) for text in ("Paris", "went", "a fox")]
    first, second = rank(ranker, [(chat, candidates) for chat in chats])
    assert first.logits != second.logits


def test_a_long_chat_keeps_its_last_turn_and_what_is_just_before_it() -> None:
    _, tokenizer = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM-hf"), source_max_length=20)
    turns = Prompt("", messages=(*HISTORY, {"role": "user", "content": "a b [SEP] c"})).turns()
    ids = tokenizer.encode_source(*turns)
    last = tokenizer.encode_source("USER: a b   c")
    assert len(ids) == 20 and ids[:2] == [tokenizer.cls_id, tokenizer.source_id]
    assert ids[-1] == tokenizer.sep_id and tokenizer.sep_id not in ids[:-1]
    assert ids[-len(last) + 2 :] == last[2:]


def test_a_chat_that_fits_is_written_out_whole() -> None:
    _, tokenizer = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM-hf"))
    chat = Prompt("", messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    assert tokenizer.encode_source(*chat.turns()) == tokenizer.encode_source("USER: a\nASSISTANT: b")


def test_separator_in_a_text_is_a_space_as_in_the_original() -> None:
    _, tokenizer = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM"))
    assert tokenizer.encode_source("a [SEP] b") == tokenizer.encode_source("a   b")


@pytest.mark.parametrize("texts", [["only one"], ["", "not empty"], ["same", "same"], ["x" * 20_000, "y", "z"]])
def test_any_number_and_length_of_candidates(ranker: Ranker, texts: list[str]) -> None:
    ranking = rank(ranker, [(Prompt("", "a question"), [Candidate(None, text) for text in texts])])[0]
    assert sorted(ranking.order) == list(range(len(texts)))
    if len(set(texts)) == 1:
        assert set(ranking.scores) == {0.0}
        assert ranking.order == tuple(range(len(texts)))


def test_failed_candidates_are_left_out(ranker: Ranker) -> None:
    texts = ["first answer", None, "second one", None]
    ranking = rank(ranker, [(Prompt("", "q"), [Candidate(None, text) for text in texts])])[0]
    assert sorted(ranking.order) == [0, 2]
    assert [score is None for score in ranking.scores] == [False, True, False, True]
    assert ranking.comparisons == 2
    kept = rank(ranker, [(Prompt("", "q"), [Candidate(None, text) for text in texts if text is not None])])[0]
    assert [ranking.scores[0], ranking.scores[2]] == pytest.approx(kept.scores, abs=1e-6)


def test_bfloat16_keeps_clear_orders() -> None:
    """On three short cases: a processor without bfloat16 takes minutes for all."""
    exact, rough = Ranker(settings("PairRM")), Ranker(settings("PairRM", dtype="bfloat16"))
    rows = [row(CASES[number]) for number in (3, 18, 19)]
    pairs = [
        (a, b)
        for e, r in zip(rank(exact, rows), rank(rough, rows), strict=True)
        for a, b in zip(e.scores, r.scores, strict=True)
    ]
    a, b = torch.tensor(pairs).T
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99


def test_saved_checkpoint_loads_with_the_same_logits(tmp_path: Path) -> None:
    network, tokenizer = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM"))
    save_pairrm(network, tokenizer, tmp_path)
    again, again_tokenizer = load_pairrm(str(tmp_path))
    assert again_tokenizer.budget == tokenizer.budget
    source = tokenizer.encode_source("What is it?")
    left, right = (tokenizer.encode_candidate(text, len(source)) for text in ("a thing", "nothing"))
    ids = torch.tensor([tokenizer.join(source, left, right)])
    assert again_tokenizer.encode_source("What is it?") == source
    with torch.inference_mode():
        assert torch.equal(network.logits(ids, torch.ones_like(ids)), again.logits(ids, torch.ones_like(ids)))


def test_pickled_weights_of_an_early_checkpoint_load(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "checkpoints" / "PairRM-hf", tmp_path / "ranker")
    weights = tmp_path / "ranker" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "ranker" / "pytorch_model.bin")
    weights.unlink()
    network, _ = load_pairrm(str(tmp_path / "ranker"))
    expected, _ = load_pairrm(str(GOLDEN / "checkpoints" / "PairRM-hf"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), expected.state_dict().values(), strict=True)
    )


class TestCheckpointsThatCantBeUsed:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        shutil.copytree(GOLDEN / "checkpoints" / "PairRM-hf", tmp_path / "ranker")
        return tmp_path / "ranker"

    def fails(self, folder: Path, *words: str) -> None:
        with pytest.raises(ModelLoadError) as caught:
            load_pairrm(str(folder))
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "nowhere", "nowhere", "no such folder")

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        self.fails(folder, "no config.json")

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        self.fails(folder, "no model.safetensors")

    def test_missing_tensor(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["head_layer.4.bias"]
        save_file(weights, folder / "model.safetensors")
        self.fails(folder, "lacks 1 of", "head_layer.4.bias")

    def test_truncated_weights(self, folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:1000])
        self.fails(folder, "can't be read")

    def test_another_model(self, folder: Path) -> None:
        self.fails(GOLDEN / "checkpoints" / "gen_fuser", "not a PairRanker checkpoint")

    def test_no_tokenizer(self, folder: Path) -> None:
        for name in (
            "tokenizer.json",
            "spm.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ):
            (folder / name).unlink()
        self.fails(folder, "tokenizer")

    def test_wrong_config(self, folder: Path) -> None:
        config = json.loads((GOLDEN / "checkpoints" / "PairRM" / "config.json").read_text())
        config["source_maxlength"] = "long"
        (folder / "config.json").write_text(json.dumps(config))
        self.fails(folder, "source_maxlength")
