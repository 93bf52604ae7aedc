"""What is the transformers engine's own: batches, architectures, exact sampling, rows that break a batch."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FACTS, save_plain_model, save_seq2seq_model

from actors.engines import Completion
from actors.engines.transformers_engine import TransformersEngine, _GumbelNoise
from actors.errors import GenerationError, ModelLoadError
from actors.records import Message
from configs.schema import Sampling, TransformersModel

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


def test_calls_made_together_are_decoded_together(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(plain, max_batch_size=8)
    sizes = []
    decode = engine._decode

    def counting(rows: list[list[int]], requests: Any) -> list[Completion]:
        sizes.append(len(rows))
        return decode(rows, requests)

    monkeypatch.setattr(engine, "_decode", counting)

    async def main() -> None:
        await answers(engine, list(FACTS))
        await engine.close()

    asyncio.run(main())
    assert sizes == [8, 8, 4]


def test_token_without_embedding_fails_alone(plain: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings, as some published ones have."""
    engine = make_engine(plain)
    engine._tokenizer.add_tokens(["<|unknown to the model|>"])

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, ["a fox", "<|unknown to the model|>", "numbers"])
        finally:
            await engine.close()

    first, second, third = asyncio.run(main())
    assert isinstance(first, Completion)
    assert isinstance(second, GenerationError) and "embedding" in str(second)
    assert isinstance(third, Completion)


def test_batch_that_breaks_is_decoded_one_by_one(plain: Path) -> None:
    """Memory for one row at a time, and for short prompts only: the long one fails alone."""
    engine = make_engine(plain)
    texts = ["a fox", "word " * 20, "numbers"]

    def main() -> list[Completion | BaseException]:
        return runner.run(answers(engine, texts))

    def limit(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows, length = kwargs["input_ids"].shape
        if rows > 1 or length > 20:
            raise torch.OutOfMemoryError("simulated")

    with asyncio.Runner() as runner:
        plenty = main()
        engine._model.register_forward_pre_hook(limit, with_kwargs=True)
        scarce = main()
        runner.run(engine.check_health())
        runner.run(engine.close())
    assert all(isinstance(answer, Completion) for answer in plenty)
    assert [scarce[0], scarce[2]] == [plenty[0], plenty[2]]
    assert isinstance(scarce[1], GenerationError) and "memory" in str(scarce[1])


def test_abandoned_answers_are_not_finished(plain: Path) -> None:
    """The model would write 100 tokens; with its only caller gone it stops at the next one."""
    engine = make_engine(plain)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(engine.generate(chat("capital of Spain"), Sampling(max_tokens=100)))
        steps, gone = 0, Future[None]()

        def leave_at_the_third(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                loop.call_soon_threadsafe(task.cancel)
                gone.result(timeout=60)

        engine._model.register_forward_hook(leave_at_the_third)
        with pytest.raises(asyncio.CancelledError):
            await task
        gone.set_result(None)
        await engine.close()  # waits for the batch
        return steps

    assert asyncio.run(main()) == 3


def test_closing_fails_what_is_waiting_and_what_comes_later(plain: Path) -> None:
    engine = make_engine(plain, max_batch_size=1)

    async def main() -> list[Completion | BaseException]:
        tasks = [asyncio.create_task(engine.generate(chat(text), SAMPLING)) for text in FACTS]
        await asyncio.sleep(0)  # each has handed its prompt over
        await engine.close()
        return [*await asyncio.gather(*tasks, return_exceptions=True), *await answers(engine, ["late"])]

    results = asyncio.run(main())
    assert isinstance(results[-1], GenerationError)
    assert sum(isinstance(result, GenerationError) for result in results) >= len(FACTS) - 1


def test_seq2seq_prompt_needs_no_room_for_the_answer(seq2seq: Path) -> None:
    engine = make_engine(seq2seq, max_model_len=16, sampling=Sampling(max_tokens=15))

    async def main() -> list[Completion | BaseException]:
        try:
            return await answers(engine, ["a fox", "word " * 20], Sampling(max_tokens=15))
        finally:
            await engine.close()

    fits, too_long = asyncio.run(main())
    assert isinstance(fits, Completion)
    assert isinstance(too_long, GenerationError)


def test_gumbel_noise_samples_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 20_000
    torch.manual_seed(0)
    noise = _GumbelNoise([None] * rows, torch.device("cpu"))
    scores = noise(torch.empty(0), probabilities.log().repeat(rows, 1))
    counts = torch.bincount(scores.argmax(dim=1), minlength=5)
    five_sigma = 5 * (rows * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - rows * probabilities).abs() <= five_sigma).all()


def test_answers_of_different_seeds_are_decoded_together(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each is what it is alone, whatever its neighbours' seeds; one without a seed takes nothing from them."""
    engine = make_engine(plain, max_batch_size=8)
    seeds = [1, None, 2, 1, 3, None]
    samplings = [Sampling(max_tokens=12, temperature=1.0, seed=seed) for seed in seeds]
    sizes = []
    decode = engine._decode

    def counting(rows: list[list[int]], requests: Any) -> list[Completion]:
        sizes.append(len(rows))
        return decode(rows, requests)

    monkeypatch.setattr(engine, "_decode", counting)

    async def main() -> tuple[list[Completion], list[Completion]]:
        try:
            together = await asyncio.gather(*(engine.generate(chat("numbers"), one) for one in samplings))
            return together, [await engine.generate(chat("numbers"), one) for one in samplings]
        finally:
            await engine.close()

    together, alone = asyncio.run(main())
    assert sizes == [6, *[1] * 6]
    seeded = [i for i, seed in enumerate(seeds) if seed is not None]
    assert [together[i] for i in seeded] == [alone[i] for i in seeded]
    assert together[0] == together[3]
    assert len({answer.text for answer in (*together, alone[1], alone[5])}) == 7  # 3 seeded, 4 draws without a seed


def test_max_tokens_beyond_the_context_is_told_at_load(plain: Path) -> None:
    with pytest.raises(ModelLoadError, match="max_tokens"):
        make_engine(plain, max_model_len=12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_told_at_load(plain: Path) -> None:
    with pytest.raises(ModelLoadError, match="no GPU"):
        make_engine(plain, device="cuda")
