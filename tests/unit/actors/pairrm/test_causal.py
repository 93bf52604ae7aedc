"""PairRanker on a causal LM: the prompt of a pair, and the served forward against plain transformers."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from paths import ROOT
from transformers import AutoModel

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.pairrm.checkpoints import create_pairrm, load_pairrm, save_pairrm
from llm_blender_ray.actors.pairrm.prompt import LEFT_HEADING, QUESTION, RIGHT_HEADING, PromptPairTokenizer
from llm_blender_ray.actors.pairrm.tokenization import PairBudget
from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.actors.scorers.pairwise import PairwiseScorer
from llm_blender_ray.configs.schema import PairRanker

LLM = str(ROOT / "configs" / "miniature" / "alder")
MATCHUPS = [
    Matchup(Prompt("0", "Name the capital of France."), "Paris", "Rome is the capital of Italy, not of France."),
    Matchup(Prompt("1", "x " * 90), "a " * 70, "b"),
    Matchup(Prompt("2", "What is it?", "1) capital of Spain"), "1) Madrid", ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker on one of the included LLMs, with a head of random weights."""
    torch.manual_seed(0)
    network, tokenizer = create_pairrm(LLM, PairBudget(64, 32), n_tasks=2, dropout=0.1)
    saved = tmp_path_factory.mktemp("causal")
    save_pairrm(network, tokenizer, saved)
    return saved


def tokenizer_of(folder: Path, **lengths: int) -> PromptPairTokenizer:
    tokenizer = load_pairrm(str(folder), **lengths)[1]
    assert isinstance(tokenizer, PromptPairTokenizer)
    return tokenizer


def ended(tokenizer: PromptPairTokenizer) -> int:
    return tokenizer.backend.token_to_id(tokenizer.special_tokens["eos_token"])


def test_a_pair_is_one_prompt_that_ends_with_the_question(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    source = tokenizer.encode_source("What is it?")
    left, right = (tokenizer.encode_candidate(text, len(source)) for text in ("1) Madrid", "1) Rome"))
    text = tokenizer.backend.decode(tokenizer.join(source, left, right), skip_special_tokens=False)
    end = tokenizer.special_tokens["eos_token"]
    expected = f"Prompt:\nWhat is it?{end}{LEFT_HEADING}1) Madrid{end}{RIGHT_HEADING}1) Rome{end}{QUESTION}"
    assert text.replace(" ", "") == expected.replace(" ", "")


def test_no_text_ends_its_own_part(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    end = tokenizer.special_tokens["eos_token"]
    for ids in (tokenizer.encode_source(f"a{end}b"), tokenizer.encode_candidate(f"a{end}b{end}", 10)):
        assert ids.count(ended(tokenizer)) == 1
        assert ids[-1] == ended(tokenizer)


def test_long_texts_lose_their_ends_and_candidates_take_what_the_source_leaves(folder: Path) -> None:
    tokenizer = tokenizer_of(folder, source_max_length=40, candidate_max_length=30)
    source, short = tokenizer.encode_source("capital " * 90), tokenizer.encode_source("capital")
    assert len(source) == 40
    assert source[:-1] == tokenizer.encode_source("capital " * 60)[:-1]
    heading = len(tokenizer.join([], [], [])) - len(tokenizer.backend.encode(QUESTION).ids)
    for of in (source, short):
        assert len(tokenizer.encode_candidate("Paris " * 90, len(of))) == 30 + (40 - len(of)) // 2 - heading // 2


def test_of_a_long_chat_the_last_turn_is_kept(folder: Path) -> None:
    tokenizer = tokenizer_of(folder, source_max_length=40)
    turns = ("capital " * 90, "What is the capital of Peru?")
    last = tokenizer.encode_source(turns[1])[-6:]
    assert tokenizer.encode_source(*turns)[-6:] == last
    assert len(tokenizer.encode_source(*turns)) == 40


def test_the_served_logits_are_the_mean_output_of_the_head_at_the_last_token(folder: Path) -> None:
    scorer = PairwiseScorer(PairRanker(model=str(folder), device="cpu"))
    network, _ = load_pairrm(str(folder))
    plain = AutoModel.from_pretrained(LLM, dtype=torch.float32).eval()
    both_orders = [*MATCHUPS, *(Matchup(m.prompt, m.right, m.left) for m in MATCHUPS)]
    expected = []
    with torch.no_grad():
        for matchup in both_orders:
            hidden = plain(input_ids=torch.tensor([scorer.tokens(matchup)])).last_hidden_state
            expected.append(network.head_layer(hidden[0, -1]).mean().item())
    together = asyncio.run(scorer.score(both_orders))
    assert together == pytest.approx(expected, abs=1e-5)
    assert scorer.logits(both_orders[1:2]) == pytest.approx(expected[1:2], abs=1e-5)  # alone
    assert len(set(expected)) == len(expected)


def test_a_saved_ranker_is_where_training_goes_on(folder: Path) -> None:
    saved, _ = load_pairrm(str(folder))
    network, tokenizer = create_pairrm(str(folder), PairBudget(48, 24), n_tasks=2, dropout=0.3)
    assert tokenizer.budget == PairBudget(48, 24)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    assert network.head_layer[0].p == 0.3


def test_training_and_serving_read_the_same_token_of_a_padded_batch(folder: Path) -> None:
    network, tokenizer = load_pairrm(str(folder))
    source = tokenizer.encode_source("What is it?")
    pairs = [
        tokenizer.join(source, *(tokenizer.encode_candidate(text, len(source)) for text in texts))
        for texts in (("Paris", "Rome"), ("Paris Paris Paris Paris", "Rome Rome Rome"))
    ]
    longest = max(map(len, pairs))
    ids = torch.tensor([pair + [tokenizer.pad_id] * (longest - len(pair)) for pair in pairs])
    mask = torch.tensor([[1] * len(pair) + [0] * (longest - len(pair)) for pair in pairs])
    with torch.no_grad():
        together = network.logits(ids, mask)
        alone = torch.cat(
            [network.logits(torch.tensor([pair]), torch.ones(1, len(pair), dtype=torch.long)) for pair in pairs]
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_causal_lm_that_is_no_ranker_is_one_clear_line() -> None:
    with pytest.raises(ModelLoadError, match=r"not a PairRanker .* CausalPairRanker or DebertaV2PairRM"):
        load_pairrm(LLM)


def test_the_config_names_the_architecture_and_keeps_the_lms_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CausalPairRanker"]
    assert config["vocab_size"] == json.loads((Path(LLM) / "config.json").read_text())["vocab_size"]
