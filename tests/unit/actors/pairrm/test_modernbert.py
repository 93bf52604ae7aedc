"""Rankers on a long-context encoder: ModernBERT, with rotary positions, local attention and no token types."""

from pathlib import Path

import pytest
import torch

from llm_blender_ray.actors.pairrm.checkpoints import create_pairrm, load_pairrm, save_pairrm
from llm_blender_ray.actors.pairrm.inference import PairRMForward
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenization, PairTokenizer
from llm_blender_ray.pipelines.miniature.blank import save_blank_modernbert

LONG = PairBudget(512, 512)
WORDS = ("acorn", "badge", "candle", "desert", "engine", "feather", "garden", "hammer")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modernbert")
    save_blank_modernbert(folder, seed=0)
    return folder


@pytest.fixture
def ranker(backbone: Path) -> tuple[PairRMNetwork, PairTokenization]:
    torch.manual_seed(0)
    network, tokenizer = create_pairrm(str(backbone), LONG)
    return network.eval(), tokenizer


def words(count: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(count))


def pair(tokenizer: PairTokenization, prompt: str, left: str, right: str) -> list[int]:
    source = tokenizer.encode_source(prompt)
    return tokenizer.join(source, *(tokenizer.encode_candidate(text, len(source)) for text in (left, right)))


def logit(network: PairRMNetwork, ids: list[int]) -> float:
    """As transformers computes it, of one sequence without padding."""
    with torch.no_grad():
        return float(network.logits(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)))


def test_it_is_an_encoder_with_its_own_special_tokens(ranker: tuple[PairRMNetwork, PairTokenization]) -> None:
    network, tokenizer = ranker
    assert isinstance(tokenizer, PairTokenizer)
    assert network.pretrained_model.config.model_type == "modernbert"
    assert network.pretrained_model.get_input_embeddings().num_embeddings == tokenizer.vocab_size
    ids = pair(tokenizer, words(3), words(2), words(2, 1))
    assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)


def test_sequences_of_more_than_a_thousand_tokens_rank_like_short_ones_beside_padding(
    ranker: tuple[PairRMNetwork, PairTokenization],
) -> None:
    network, tokenizer = ranker
    texts = [(words(500), words(480, 3), words(400, 5)), (words(4), words(2), words(9)), (words(60), "", words(30))]
    pairs = [pair(tokenizer, *text) for text in texts]
    assert max(map(len, pairs)) > 1200 > 100 > min(map(len, pairs))
    expected = [logit(network, ids) for ids in pairs]
    found = PairRMForward(network, device=torch.device("cpu"), dtype=torch.float32).logits(pairs)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(one, 4) for one in expected}) == 3


def test_the_end_of_a_long_candidate_counts(ranker: tuple[PairRMNetwork, PairTokenization]) -> None:
    """Its token 500 is a thousand tokens from the marker of the other candidate: nothing is cut at 512 tokens."""
    network, tokenizer = ranker
    answers = [words(500) + f" {word}" for word in ("acorn", "badge")]
    pairs = [pair(tokenizer, "Say it.", answer, words(500, 2)) for answer in answers]
    assert pairs[0] != pairs[1]
    assert logit(network, pairs[0]) != logit(network, pairs[1])


def test_it_is_saved_and_loaded(ranker: tuple[PairRMNetwork, PairTokenization], tmp_path: Path) -> None:
    network, tokenizer = ranker
    save_pairrm(network, tokenizer, tmp_path)
    loaded, loaded_tokenizer = load_pairrm(str(tmp_path))
    assert loaded_tokenizer.budget == LONG
    ids = pair(tokenizer, words(3), words(20), words(20, 1))
    assert pair(loaded_tokenizer, words(3), words(20), words(20, 1)) == ids
    assert logit(loaded, ids) == pytest.approx(logit(network, ids), abs=1e-6)
