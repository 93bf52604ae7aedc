"""What is the transformers engine's own: architectures, special tokens, and what a prompt may be.

How requests share batches is tested in `test_decoding`.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FACTS, make_tokenizer, save_plain_model, save_seq2seq_model

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.transformers_engine import TransformersEngine
from llm_blender_ray.actors.errors import ModelLoadError, PromptError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling, TransformersModel

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seq2seq_model(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module", params=["plain", "seq2seq"])
def engine(request: pytest.FixtureRequest) -> Iterator[TransformersEngine]:
    """A causal LM without a chat template, and an encoder-decoder; both write nonsense."""
    engine = make_engine(request.getfixturevalue(request.param), max_batch_size=8)
    yield engine
    asyncio.run(engine.close())


def make_engine(folder: Path, **more: Any) -> TransformersEngine:
    given = {"device": "cpu", "sampling": SAMPLING, **more}
    return TransformersEngine(TransformersModel(name="t", engine="transformers", model=str(folder), **given))


def chat(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


async def answers(
    engine: TransformersEngine, texts: list[str], sampling: Sampling = SAMPLING
) -> list[Completion | BaseException]:
    calls = (engine.generate(chat(text), sampling) for text in texts)
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@settings(max_examples=10, deadline=None)
@given(texts=st.lists(st.sampled_from(list(FACTS)), min_size=1, max_size=20))
def test_an_answer_does_not_depend_on_its_batch(
    engine: TransformersEngine, temperature: float, texts: list[str]
) -> None:
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=5)

    async def main() -> None:
        together = await answers(engine, texts, sampling)
        alone = [(await answers(engine, [text], sampling))[0] for text in texts]
        assert together == alone

    asyncio.run(main())


def test_answers_are_the_model_s_own_greedy_ones(plain: Path) -> None:
    """Against a plain loop over the model's argmax: the right padding, positions and special tokens."""
    engine = make_engine(plain)
    tokenizer, model = engine._tokenizer, engine._model
    expected = []
    for text in FACTS:
        ids = tokenizer(text)["input_ids"]
        prompt = len(ids)
        for _ in range(SAMPLING.max_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        expected.append((tokenizer.decode(ids[prompt:], skip_special_tokens=True).rstrip("�"), len(ids) - prompt))

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, list(FACTS))
        finally:
            await engine.close()

    completions = asyncio.run(main())
    assert [(c.text, c.completion_tokens) for c in completions if isinstance(c, Completion)] == expected


def test_token_without_embedding_fails_alone(plain: Path, tmp_path: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings, as some published ones have."""
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.add_tokens(["unknown_to_the_model"])
    tokenizer.save_pretrained(tmp_path)
    engine = make_engine(tmp_path)

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, ["a fox", "unknown_to_the_model", "numbers"])
        finally:
            await engine.close()

    first, second, third = asyncio.run(main())
    assert isinstance(first, Completion)
    assert isinstance(second, PromptError) and "embedding" in str(second)
    assert isinstance(third, Completion)


def test_seq2seq_prompt_needs_no_room_for_the_answer(seq2seq: Path) -> None:
    engine = make_engine(seq2seq, max_model_len=16, sampling=Sampling(max_tokens=15))

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, ["a fox", "word " * 20], Sampling(max_tokens=15))
        finally:
            await engine.close()

    fits, too_long = asyncio.run(main())
    assert isinstance(fits, Completion)
    assert isinstance(too_long, PromptError)


def test_longer_prompts_than_allowed_are_refused(plain: Path) -> None:
    engine = make_engine(plain, max_prompt_tokens=5)

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, ["a fox", "numbers one two three four five"])
        finally:
            await engine.close()

    fits, too_long = asyncio.run(main())
    assert isinstance(fits, Completion)
    assert isinstance(too_long, PromptError) and "max_prompt_tokens (5)" in str(too_long)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_the_answer_in_pieces(engine: TransformersEngine, temperature: float) -> None:
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=7)

    async def main() -> None:
        for text in list(FACTS)[:4]:
            *pieces, completion = [piece async for piece in engine.stream(chat(text), sampling)]
            assert completion == await engine.generate(chat(text), sampling)
            assert "".join(pieces) == completion.text and len(pieces) > 1

    asyncio.run(main())


def test_max_tokens_beyond_the_context_is_told_at_load(plain: Path) -> None:
    with pytest.raises(ModelLoadError, match="max_tokens"):
        make_engine(plain, max_model_len=12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_told_at_load(plain: Path) -> None:
    with pytest.raises(ModelLoadError, match="no GPU"):
        make_engine(plain, device="cuda")
