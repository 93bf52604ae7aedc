"""The contract of an engine, the same tests over all, on one small model that knows its answers by heart.

The endpoint engine asks a real HTTP server behind which that model runs. The vLLM engine is started once.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from endpoint_server import EndpointServer, chunk, completion, usage_chunk
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONTEXT, FACTS, SHOUT, save_chat_model

from llm_blender_ray.actors.engines import Completion, Engine, load_engine
from llm_blender_ray.actors.errors import GenerationError, ModelLoadError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import EchoModel, EndpointModel, Sampling, TransformersModel, VLLMModel

VLLM_MARKS = (
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # vLLM's own import
)
GREEDY = Sampling(max_tokens=40)
T = TypeVar("T")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the whole module: an engine belongs to the loop of its first call."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


def transformers_model(folder: Path, **settings: Any) -> TransformersModel:
    return TransformersModel(
        name="local", engine="transformers", model=str(folder), device="cpu", sampling=GREEDY, **settings
    )


def start_vllm(folder: Path) -> Engine:
    model = VLLMModel(name="v", engine="vllm", model=str(folder), dtype="float32", sampling=GREEDY)
    return load_engine(model)


async def start_endpoint(inner: Engine) -> tuple[EndpointServer, Engine]:
    """An OpenAI-compatible server in front of an engine, and an engine that asks it."""

    def sampling(body: dict[str, Any]) -> Sampling:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
        return Sampling(**{name: body[name] for name in names if name in body})

    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        try:
            done = await inner.generate(body["messages"], sampling(body))
        except GenerationError as error:
            return {"error": {"message": str(error)}}
        usage = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens}
        return completion(done.text, done.finish_reason, usage=usage)

    async def chunks(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield chunk("")
        try:
            async with aclosing(inner.stream(body["messages"], sampling(body))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield chunk(piece)
                    else:
                        yield chunk(finish_reason=piece.finish_reason)
                        yield usage_chunk(piece.prompt_tokens, piece.completion_tokens)
        except GenerationError as error:
            yield {"error": {"message": str(error)}}

    server = await EndpointServer(answer=answer, chunks=chunks).__aenter__()
    model = EndpointModel(name="far", engine="endpoint", model="m", base_url=server.url, max_retries=0)
    return server, load_engine(model)


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "endpoint",
        pytest.param("vllm", marks=VLLM_MARKS),
    ],
)
def engine(request: pytest.FixtureRequest, runner: asyncio.Runner, chat_model: Path) -> Iterator[Engine]:
    if request.param == "vllm":
        engine = start_vllm(chat_model)
        yield engine
        runner.run(engine.close())
        return
    inner = load_engine(transformers_model(chat_model))
    if request.param == "transformers":
        yield inner
    else:
        server, engine = runner.run(start_endpoint(inner))
        yield engine
        runner.run(engine.close())
        runner.run(server.__aexit__(None, None, None))
    runner.run(inner.close())


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


async def gather(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    return await asyncio.gather(*coroutines)


async def streamed(
    engine: Engine, messages: list[Message], sampling: Sampling = GREEDY
) -> tuple[list[str], Completion]:
    """All pieces of an answer, and what comes after them."""
    pieces: list[str | Completion] = [piece async for piece in engine.stream(messages, sampling)]
    *texts, last = pieces
    assert isinstance(last, Completion)
    assert all(isinstance(text, str) and text for text in texts)
    return [text for text in texts if isinstance(text, str)], last


def test_answers_end_by_themselves(engine: Engine, runner: asyncio.Runner) -> None:
    answer = runner.run(engine.generate(user("capital of France"), GREEDY))
    assert (answer.text, answer.finish_reason) == ("Paris", "stop")


def test_many_at_once_are_all_right_and_in_order(engine: Engine, runner: asyncio.Runner) -> None:
    answers = runner.run(gather(*(engine.generate(user(question), GREEDY) for question in FACTS)))
    assert [answer.text for answer in answers] == list(FACTS.values())  # Japanese, accents and a fox among them


def test_system_prompt_is_obeyed(engine: Engine, runner: asyncio.Runner) -> None:
    chat = [Message(role="system", content=SHOUT), *user("opposite of hot")]
    assert runner.run(engine.generate(chat, GREEDY)).text == "COLD"


def test_max_tokens(engine: Engine, runner: asyncio.Runner) -> None:
    whole = runner.run(engine.generate(user("numbers"), GREEDY))
    part = runner.run(engine.generate(user("numbers"), Sampling(max_tokens=6)))
    assert (whole.finish_reason, part.finish_reason) == ("stop", "length")
    assert part.completion_tokens == 6
    assert part.text and whole.text.startswith(part.text) and part.text != whole.text


def test_half_a_character_is_left_out(engine: Engine, runner: asyncio.Runner) -> None:
    texts = [
        runner.run(engine.generate(user("hello in Japanese"), Sampling(max_tokens=tokens))).text
        for tokens in range(1, 8)
    ]
    assert all("こんにちは".startswith(text) for text in texts)


def test_token_counts(engine: Engine, runner: asyncio.Runner) -> None:
    short, longer = runner.run(
        gather(*(engine.generate(user(q), GREEDY) for q in ("numbers", "capital of Norway")))
    )
    assert short.prompt_tokens is not None and longer.prompt_tokens is not None
    assert 0 < short.prompt_tokens < longer.prompt_tokens
    assert longer.completion_tokens is not None and short.completion_tokens is not None
    assert 1 < longer.completion_tokens < short.completion_tokens < GREEDY.max_tokens


def test_stop_string_ends_the_answer_and_is_cut_off(engine: Engine, runner: asyncio.Runner) -> None:
    sampling = Sampling(max_tokens=40, stop=("zero", "e fo"))
    answer = runner.run(engine.generate(user("numbers"), sampling))
    assert (answer.text, answer.finish_reason) == ("one two thre", "stop")
    whole = runner.run(engine.generate(user("numbers"), GREEDY))
    assert answer.completion_tokens is not None and whole.completion_tokens is not None
    assert answer.completion_tokens < whole.completion_tokens


def test_stop_string_counts_in_the_answer_only(engine: Engine, runner: asyncio.Runner) -> None:
    sampling = Sampling(max_tokens=40, stop=("capital", "France", ">P"))  # "...<|assistant|>" + "Paris"
    assert runner.run(engine.generate(user("capital of France"), sampling)).text == "Paris"


def test_seed_fixes_the_sample(engine: Engine, runner: asyncio.Runner) -> None:
    def ask(seed: int, copies: int) -> list[str]:
        sampling = Sampling(max_tokens=20, temperature=2.0, seed=seed)
        answers = runner.run(gather(*(engine.generate(user("numbers"), sampling) for _ in range(copies))))
        return [answer.text for answer in answers]

    alone = ask(seed=1, copies=1)
    assert ask(seed=1, copies=3) == alone * 3
    assert len({*alone, *ask(seed=2, copies=1), *ask(seed=3, copies=1)}) == 3


@pytest.mark.parametrize("seed", [None, 11])
def test_samples_of_a_prompt_at_once_differ(engine: Engine, runner: asyncio.Runner, seed: int | None) -> None:
    samplings = [Sampling(max_tokens=20, temperature=2.0, seed=seed).nth(sample) for sample in range(6)]
    together = runner.run(gather(*(engine.generate(user("numbers"), sampling) for sampling in samplings)))
    assert len({answer.text for answer in together}) > 1
    if seed is not None:
        assert together == [runner.run(engine.generate(user("numbers"), sampling)) for sampling in samplings]


def test_narrow_sampling_is_greedy(engine: Engine, runner: asyncio.Runner) -> None:
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        sampling = Sampling(max_tokens=40, temperature=2.0, **narrow)
        assert runner.run(engine.generate(user("numbers"), sampling)).text == FACTS["numbers"]


def test_settings_of_neighbours_do_not_mix(engine: Engine, runner: asyncio.Runner) -> None:
    samplings = [Sampling(max_tokens=n) for n in (2, 40, 3, 40, 2)]
    answers = runner.run(gather(*(engine.generate(user("numbers"), sampling) for sampling in samplings)))
    ends = [(answer.completion_tokens, answer.finish_reason) for answer in answers]
    assert ends[0] == ends[4] == (2, "length")
    assert ends[2] == (3, "length")
    assert answers[1] == answers[3]
    assert answers[1].text == FACTS["numbers"]


def test_too_long_a_prompt_fails_alone(engine: Engine, runner: asyncio.Runner) -> None:
    async def main() -> list[Completion | BaseException]:
        prompts = ["numbers", "word " * CONTEXT, "capital of Peru"]
        calls = (engine.generate(user(prompt), GREEDY) for prompt in prompts)
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = runner.run(main())
    assert isinstance(first, Completion) and first.text == FACTS["numbers"]
    assert isinstance(second, GenerationError)
    assert isinstance(third, Completion) and third.text == FACTS["capital of Peru"]


def test_cancelled_calls_leave_the_others_alone(engine: Engine, runner: asyncio.Runner) -> None:
    async def main() -> tuple[BaseException | Completion, Completion]:
        lost = asyncio.create_task(engine.generate(user("numbers"), Sampling(max_tokens=100, temperature=2.0)))
        kept = asyncio.create_task(engine.generate(user("numbers"), GREEDY))
        await asyncio.sleep(0)
        lost.cancel()
        return (await asyncio.gather(lost, return_exceptions=True))[0], await kept

    lost, kept = runner.run(main())
    assert isinstance(lost, asyncio.CancelledError)
    assert kept.text == FACTS["numbers"]


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(max_tokens=6),
        Sampling(max_tokens=40, stop=("zero", "e fo")),
        Sampling(max_tokens=40, stop=("one",)),
        Sampling(max_tokens=40, stop=("ten eleven",)),
        Sampling(max_tokens=20, temperature=2.0, seed=5),
        Sampling(max_tokens=20, temperature=2.0, seed=5, stop=("e", "o")),
    ],
    ids=str,
)
def test_stream_is_the_same_answer_in_pieces(engine: Engine, runner: asyncio.Runner, sampling: Sampling) -> None:
    questions = [*FACTS][-4:]  # numbers, and what takes many bytes

    async def main() -> None:
        whole = await gather(*(engine.generate(user(question), sampling) for question in questions))
        both = await gather(*(streamed(engine, user(question), sampling) for question in questions))
        assert [last for _, last in both] == whole
        assert ["".join(pieces) for pieces, _ in both] == [answer.text for answer in whole]

    runner.run(main())


def test_stream_has_many_pieces(engine: Engine, runner: asyncio.Runner) -> None:
    pieces, _ = runner.run(streamed(engine, user("numbers")))
    assert len(pieces) > 3


def test_closed_stream_leaves_the_others_alone(engine: Engine, runner: asyncio.Runner) -> None:
    async def main() -> Completion:
        stream = engine.stream(user("numbers"), Sampling(max_tokens=100, temperature=2.0))
        assert isinstance(await anext(stream), str)
        await stream.aclose()
        return await engine.generate(user("numbers"), GREEDY)

    assert runner.run(main()).text == FACTS["numbers"]


def test_cancelled_stream_stops(engine: Engine, runner: asyncio.Runner) -> None:
    async def follow() -> None:
        task = asyncio.current_task()
        assert task
        async for _ in engine.stream(user("numbers"), Sampling(max_tokens=100, temperature=2.0)):
            task.cancel()  # comes true at the latest when the next piece is waited for

    async def main() -> Completion:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(follow())
        return await engine.generate(user("numbers"), GREEDY)

    assert runner.run(main()).text == FACTS["numbers"]


def test_stream_of_too_long_a_prompt_fails(engine: Engine, runner: asyncio.Runner) -> None:
    with pytest.raises(GenerationError, match="context"):
        runner.run(streamed(engine, user("word " * CONTEXT)))


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "", "ba"]), min_size=1, max_size=8).map(" ".join)


@given(text=WORDS, max_tokens=st.integers(1, 9), stop=st.lists(WORDS.filter(bool), max_size=2).map(tuple))
def test_echo(text: str, max_tokens: int, stop: tuple[str, ...]) -> None:
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    engine = load_engine(EchoModel(name="e", engine="echo", model="e"))
    whole = asyncio.run(engine.generate(user(text), sampling))
    pieces, last = asyncio.run(streamed(engine, user(text), sampling))
    assert last == whole and "".join(pieces) == whole.text
    assert text.startswith(whole.text) and not any(each in whole.text for each in stop)
    assert whole.completion_tokens is not None and whole.completion_tokens <= max_tokens
    if whole.finish_reason == "length" or not any(each in text for each in stop):
        assert whole.text.split(" ") == text.split(" ")[:max_tokens]


def test_missing_vllm_is_told_at_load(monkeypatch: pytest.MonkeyPatch, chat_model: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelLoadError, match=r"pip install 'llm-blender-ray\[vllm\]'"):
        start_vllm(chat_model)


def test_healthy(engine: Engine, runner: asyncio.Runner) -> None:
    runner.run(engine.check_health())
