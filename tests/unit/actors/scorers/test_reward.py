"""The reward scorer against what transformers says of one answer at a time, and under every strategy."""

import asyncio
import functools
import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from tiny_models import CHAT_TEMPLATE, FACTS, SHOUT, make_tokenizer, save_classifier, save_plain_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Message, Prompt, Ranking
from llm_blender_ray.actors.scorers import ScoringError
from llm_blender_ray.actors.scorers import reward as reward_module
from llm_blender_ray.actors.scorers.reward import AnswerTokenizer, RewardScorer
from llm_blender_ray.configs.schema import RewardModel

KINDS = ("deberta", "bert", "gpt2", "llama")
ANSWERS = sorted(FACTS.values())
PROMPTS = [
    Prompt("instruction", "capital of France"),
    Prompt("with input", "opposite of", "hot"),
    Prompt("chat", messages=(Message(role="user", content="a fox"),)),
    Prompt(
        "turns",
        messages=(
            Message(role="system", content=SHOUT),
            Message(role="user", content="numbers"),
            Message(role="assistant", content="one two three"),
            Message(role="user", content="past of go"),
        ),
    ),
]
SPECIAL = {
    "deberta": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
    "llama": ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_classifier(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@functools.cache
def answer_tokenizer(folder: Path, max_length: int = 10**6) -> AnswerTokenizer:
    return AnswerTokenizer(folder, max_length, trust_remote_code=False)


def make_scorer(folder: Path, **more: Any) -> RewardScorer:
    return RewardScorer(RewardModel(kind="reward", model=str(folder), device="cpu", **more))


def score(scorer: RewardScorer, matchups: list[Matchup]) -> list[float]:
    scores = asyncio.run(scorer.score(matchups))
    assert not any(isinstance(score, ScoringError) for score in scores)
    return scores


def all_matchups() -> list[Matchup]:
    return [Matchup(prompt, *pair) for prompt in PROMPTS for pair in itertools.permutations(ANSWERS, 2)]


@contextmanager
def counted(scorer: RewardScorer) -> Iterator[list[int]]:
    """How many sequences each forward of the block was given."""
    rows: list[int] = []
    hook = scorer._model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    hook.remove()


def own_rewards(folder: Path, prompt: Prompt) -> dict[str, float]:
    """What transformers makes of each answer by itself, with its own tokenizer's form of a pair or a chat."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rewards = {}
    for answer in ANSWERS:
        if tokenizer.chat_template:
            chat = [*prompt.chat(), {"role": "assistant", "content": answer}]
            inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
        else:
            inputs = tokenizer("\n".join(filter(None, prompt.texts())), answer, return_tensors="pt")
        with torch.inference_mode():
            rewards[answer] = model(**inputs).logits.item()
    return rewards


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_differences_of_the_model_s_own_rewards(folders: dict[str, Path], kind: str) -> None:
    """All in one call, so that a sequence shares its batch and its padding with others."""
    matchups = all_matchups()
    scores = score(make_scorer(folders[kind], batch_tokens=300), matchups)
    own = {prompt.id: own_rewards(folders[kind], prompt) for prompt in PROMPTS}
    assert all(len({round(reward, 3) for reward in own[prompt.id].values()}) > 10 for prompt in PROMPTS)
    expected = [own[m.prompt.id][m.left] - own[m.prompt.id][m.right] for m in matchups]
    assert scores == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_order_is_the_exact_opposite(folders: dict[str, Path], kind: str) -> None:
    scorer = make_scorer(folders[kind])
    matchups = all_matchups()
    swapped = [Matchup(m.prompt, m.right, m.left) for m in matchups]
    assert score(scorer, swapped) == [-margin for margin in score(scorer, matchups)]
    assert score(scorer, [Matchup(PROMPTS[0], "Paris", "Paris")]) == [0.0]


def test_an_answer_is_read_once(folders: dict[str, Path]) -> None:
    scorer = make_scorer(folders["llama"], batch_tokens=100)
    matchups = all_matchups()
    with counted(scorer) as rows:
        first = score(scorer, matchups)
        assert sum(rows) == len(PROMPTS) * len(ANSWERS)
        assert len(rows) > 3  # batches
        rows.clear()
        assert score(scorer, matchups[::-1]) == first[::-1]
        assert rows == []
    one_prompt = [m for m in matchups if m.prompt is PROMPTS[0]]
    assert scorer.traits.forwards(one_prompt) == len(ANSWERS)


def test_only_the_latest_rewards_are_kept(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_module, "REWARDS_KEPT", 4)
    scorer = make_scorer(folders["llama"])
    pairs = [Matchup(PROMPTS[0], *ANSWERS[i : i + 2]) for i in range(0, 6, 2)]
    with counted(scorer) as rows:
        together = score(scorer, pairs)  # more than are kept
        for asked, forwards in ((pairs[2], 0), (pairs[1], 0), (pairs[0], 2), (pairs[1], 0), (pairs[2], 2)):
            rows.clear()
            assert score(scorer, [asked]) == pytest.approx([together[pairs.index(asked)]], abs=1e-5)
            assert sum(rows) == forwards


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TURN = st.builds(
    lambda role, content: Message(role=role, content=content), st.sampled_from(["system", "user"]), TEXT
)


@pytest.mark.parametrize("kind", ["deberta", "llama"])
@settings(max_examples=60)
@given(turns=st.lists(TURN, min_size=1, max_size=4), answer=TEXT, max_length=st.integers(24, 64))
def test_a_long_prompt_loses_its_left_end(
    folders: dict[str, Path], kind: str, turns: list[Message], answer: str, max_length: int
) -> None:
    """As much of the prompt's right end is read as fits, and the answer is whole where it fits by itself."""
    prompt = Prompt("", messages=tuple(turns))
    unlimited = answer_tokenizer(folders[kind])
    limited = answer_tokenizer(folders[kind], max_length)
    whole, alone = unlimited.encode(prompt, answer), unlimited.encode(prompt_of_blanks(prompt), answer)
    ids = limited.encode(prompt, answer).ids
    assert len(ids) <= max_length
    if len(whole) <= max_length:
        assert ids == whole.ids
        return
    assert ids[0] == whole.ids[0]  # [CLS], or the first turn's mark
    assert len(ids) > max_length - 8  # a character may be several tokens, and is cut as one
    if len(alone) <= max_length:
        tail = len(unlimited.backend.encode(answer, add_special_tokens=False))
        assert ids[-tail - 1 :] == whole.ids[-tail - 1 :]


def prompt_of_blanks(prompt: Prompt) -> Prompt:
    if prompt.messages is None:
        return Prompt(prompt.id)
    return Prompt(prompt.id, messages=tuple(Message(role=turn["role"], content="") for turn in prompt.messages))


@pytest.mark.parametrize("kind", ["deberta", "llama"])
def test_what_is_left_of_a_long_text(folders: dict[str, Path], kind: str) -> None:
    tokenizer = answer_tokenizer(folders[kind], 40)
    words = " ".join(f"{i}" for i in range(10, 99))
    long_prompt = tokenizer.backend.decode(tokenizer.encode(Prompt("", words), "the end").ids)
    assert "98" in long_prompt and "the end" in long_prompt and "10 11" not in long_prompt
    long_answer = tokenizer.backend.decode(tokenizer.encode(Prompt("", "why so"), words).ids)
    assert "10 11" in long_answer and "98" not in long_answer and "why" not in long_answer


def test_length_is_the_checkpoint_s_own(folders: dict[str, Path]) -> None:
    assert make_scorer(folders["llama"]).tokenizer.max_length == 128  # the model's positions
    assert make_scorer(folders["llama"], max_length=50).tokenizer.max_length == 50


def test_a_template_longer_than_the_limit_is_told(folders: dict[str, Path]) -> None:
    scorer = make_scorer(folders["llama"], max_length=8)
    turns = tuple(Message(role="user", content=text) for text in "abcdefgh")
    (error,) = asyncio.run(scorer.score([Matchup(Prompt("", messages=turns), "x", "y")]))
    assert isinstance(error, ScoringError) and "max_length (8)" in str(error)


@pytest.mark.parametrize("kind", ["deberta", "llama"])
@settings(max_examples=60)
@given(data=st.data())
def test_text_can_t_spell_special_tokens(folders: dict[str, Path], kind: str, data: st.DataObject) -> None:
    tokenizer = answer_tokenizer(folders[kind])
    special = [tokenizer.backend.token_to_id(token) for token in SPECIAL[kind] if token != "[UNK]"]
    piece = st.one_of(st.sampled_from(SPECIAL[kind]), st.sampled_from(["<", "<|", "[", "]", "|>", "a", " ", "CLS"]))
    text = st.lists(piece, max_size=12).map("".join)
    prompt, answer = Prompt("", data.draw(text)), data.draw(text)

    def count(prompt: Prompt, answer: str) -> int:
        return sum(token in special for token in tokenizer.encode(prompt, answer).ids)

    assert count(prompt, answer) == count(Prompt("", "a"), "a")


def test_a_row_that_can_t_be_read_fails_alone(tmp_path: Path) -> None:
    refuses = "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + CHAT_TEMPLATE
    save_classifier(tmp_path, "llama", chat_template=refuses)
    tokenizer = make_tokenizer(refuses)
    tokenizer.add_tokens(["unknown_word"])  # as some published tokenizers have more than the model
    tokenizer.save_pretrained(tmp_path)
    scorer = make_scorer(tmp_path)
    good, refused = Matchup(PROMPTS[0], "Paris", "Rome"), Matchup(PROMPTS[3], "went", "go")
    unknown, surrogate = Matchup(PROMPTS[0], "Paris", "unknown_word"), Matchup(PROMPTS[0], "\ud800", "Paris")
    scores = asyncio.run(scorer.score([good, refused, unknown, surrogate, good]))
    assert scores[0] == scores[4] and isinstance(scores[0], float)
    assert isinstance(scores[1], ScoringError) and "one question only" in str(scores[1])
    assert isinstance(scores[2], ScoringError) and "no embedding" in str(scores[2])
    assert isinstance(scores[3], ScoringError)


def test_nothing_to_read_is_told(folders: dict[str, Path]) -> None:
    (error,) = asyncio.run(make_scorer(folders["gpt2"]).score([Matchup(Prompt(""), "", "a fox")]))
    assert isinstance(error, ScoringError) and "no tokens" in str(error)


def test_a_reward_that_is_no_number_is_told(folders: dict[str, Path]) -> None:
    scorer = make_scorer(folders["llama"])
    scorer._model.score.weight.data.fill_(math.inf)
    (error,) = asyncio.run(scorer.score([Matchup(PROMPTS[0], "Paris", "Rome")]))
    assert isinstance(error, ScoringError) and "float32" in str(error)


def test_checkpoints_that_are_no_reward_models_are_refused(tmp_path: Path) -> None:
    for name in ("two labels", "causal", "causal with one label"):
        (tmp_path / name).mkdir()
    two = save_classifier(tmp_path / "two labels", "llama", labels=2)
    with pytest.raises(ModelLoadError, match="2 labels"):
        make_scorer(two)
    causal = save_plain_model(tmp_path / "causal")
    with pytest.raises(ModelLoadError, match="2 labels"):  # transformers' own default
        make_scorer(causal)
    one = save_classifier(tmp_path / "causal with one label", "llama")
    shutil.copy(causal / "model.safetensors", one)
    with pytest.raises(ModelLoadError, match=r"score\.weight"):
        make_scorer(one)
    golden = GOLDEN / "checkpoints" / "PairRM-hf"
    with pytest.raises(ModelLoadError) as told:
        make_scorer(golden)
    assert "\n" not in str(told.value)


def test_identity_is_of_what_decides_a_reward(folders: dict[str, Path], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache.sqlite")

    def identity(folder: Path, **more: Any) -> str | None:
        return make_scorer(folder, cache=cache, **more).traits.identity

    here = folders["llama"]
    assert make_scorer(here).traits.identity is None
    copy = Path(shutil.copytree(here, tmp_path / "copy"))
    same = {identity(here), identity(copy), identity(here, batch_tokens=64, max_length=128)}
    assert len(same) == 1 and None not in same
    other = {identity(here, max_length=64), identity(here, dtype="bfloat16"), identity(folders["gpt2"])}
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE + " ")
    other.add(identity(copy))
    model = AutoModelForSequenceClassification.from_pretrained(here)
    model.score.weight.data[0, 0] += 1e-3
    model.save_pretrained(copy)
    shutil.copy(here / "chat_template.jinja", copy)
    other.add(identity(copy))
    assert len(other) == 5 and not other & same


STRATEGIES = ["full", "sparse:degree=4", "sparse-refine", "swiss", "knockout", "bubble", "reference"]


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["deberta", "llama"])
def test_every_strategy_finds_the_best(folders: dict[str, Path], kind: str, strategy: str, orders: str) -> None:
    """Margins without noise; a row costs as many forwards as it has different answers."""
    texts = [*ANSWERS[:9], ANSWERS[0]]
    candidates = [*(Candidate("m", text) for text in texts), Candidate("m", error="it broke")]
    chosen = f"{strategy}{',' if ':' in strategy else ':'}orders={orders}"
    given = RewardModel(kind="reward", model=str(folders[kind]), device="cpu", strategy=chosen, top_k=3)
    scorer = RewardScorer(given)
    with counted(scorer) as rows:
        rankings = asyncio.run(Ranker(given, scorer).rank([(prompt, candidates) for prompt in PROMPTS]))
    for prompt, ranking in zip(PROMPTS, rankings, strict=True):
        assert isinstance(ranking, Ranking)
        own = own_rewards(folders[kind], prompt)
        best = sorted(set(texts), key=own.__getitem__, reverse=True)
        found = list(dict.fromkeys(texts[i] for i in ranking.order))
        assert found[:3] == best[:3]
        assert ranking.comparisons == 9
    assert sum(rows) == 9 * len(PROMPTS)


def test_a_later_run_takes_its_scores_from_the_cache(folders: dict[str, Path], tmp_path: Path) -> None:
    given = RewardModel(
        kind="reward", model=str(folders["llama"]), device="cpu", strategy="full", cache=str(tmp_path / "c.sqlite")
    )
    row = (PROMPTS[0], [Candidate("m", text) for text in ANSWERS[:4]])
    (first,), (second,) = (asyncio.run(Ranker(given).rank([row])) for _ in range(2))
    assert isinstance(first, Ranking) and isinstance(second, Ranking)
    assert (first.comparisons, second.comparisons) == (4, 0)
    assert (second.order, second.scores) == (first.order, first.scores)
