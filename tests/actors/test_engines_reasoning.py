"""Reasoning before an answer: what of a text it is, and real models and servers that write it."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from endings import followed, told_or
from endpoint_server import EndpointServer, chunk, completion, respond, stream
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, FACTS, make_tokenizer, save_chat_model

from actors.engines import Completion, Engine, chat, load_engine
from actors.engines.reasoning import AnswerFilter
from actors.errors import GenerationError
from actors.records import Message
from configs.schema import EndpointModel, Model, Sampling, TransformersModel

OPENS = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
REASONING = "<think>Which one?</think>\n\n"
QUESTION = [Message(role="user", content="capital of France")]
GREEDY = Sampling(max_tokens=32)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Four.", "Four."),
        ("Four.\n", "Four.\n"),
        (" \n Four.", " \n Four."),
        ("<think>3? 4?</think>\n\nFour.", "Four."),
        ("\n<think>\n3? 4?\n</think>Four. ", "Four. "),
        ("<think>a</think> <think>b</think> Four.", "Four."),
        ("<think></think>Four.", "Four."),
        ("<think>a < b</thin></think>Four.", "Four."),
        ("<thinking> is the word.", "<thinking> is the word."),
        (" <thin", " <thin"),
        ("I <think>it is</think> four.", "I <think>it is</think> four."),
        ("<think>a</think>Four <think>b</think>.", "Four <think>b</think>."),
        ("<think>never ends", ""),
        ("<think>a</think> \n", ""),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_what_the_answer_is(text: str, answer: str) -> None:
    def read(cuts: list[int], text: str = text, reasoning: bool = False) -> str:
        filter = AnswerFilter(reasoning)
        ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        return "".join([*(filter.add(text[a:b]) for a, b in pairwise(ends)), filter.rest()])

    assert read([]) == read([*range(len(text))]) == answer
    for cut in range(len(text)):
        assert read([cut]) == read([cut, cut + 1]) == answer
        if text.startswith("<think>"):
            assert read([cut], text.removeprefix("<think>"), reasoning=True) == answer


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "word", " ", "</", "\n"])), st.booleans())
def test_where_a_text_is_cut_makes_no_difference(pieces: list[str], reasoning: bool) -> None:
    whole, cut = AnswerFilter(reasoning), AnswerFilter(reasoning)
    assert "".join([*map(cut.add, pieces), cut.rest()]) == whole.add("".join(pieces)) + whole.rest()
    assert cut.reasoning == whole.reasoning


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (OPENS, True),
        (OPENS.replace("<think>", "<think>\n"), True),
        (CHAT_TEMPLATE, False),
        (OPENS.replace("<think>", "<think>\n\n</think>\n\n"), False),  # Qwen3's, told not to
        ("{{ raise_exception('no') }}", False),
        (None, False),
    ],
)
def test_a_template_that_opens_the_reasoning_is_known(template: str | None, opens: bool) -> None:
    assert chat.opens_reasoning(make_tokenizer(template)) is opens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("reasoning"), steps=200, reasoning=REASONING)


@pytest.fixture(params=[CHAT_TEMPLATE, OPENS], ids=["the LLM writes <think>", "the template does"])
def reasoner(request: pytest.FixtureRequest, folder: Path) -> Callable[..., TransformersModel]:
    """Settings of an LLM that reasons before each answer."""
    make_tokenizer(request.param).save_pretrained(folder)

    def settings(**more: Any) -> TransformersModel:
        own = {"name": "r", "model": str(folder), "device": "cpu", "sampling": GREEDY}
        return TransformersModel(engine="transformers", **own, **more)

    return settings


def both(model: Model, sampling: Sampling = GREEDY) -> tuple[Completion | GenerationError, list[str]]:
    """How the answer ends, which is the same whole and streamed; and the stream's pieces."""

    async def main() -> tuple[Completion | GenerationError, list[str]]:
        engine = load_engine(model)
        try:
            return await _both(engine, sampling)
        finally:
            await engine.close()

    return asyncio.run(main())


async def _both(engine: Engine, sampling: Sampling) -> tuple[Completion | GenerationError, list[str]]:
    whole = await told_or(engine.generate(QUESTION, sampling))
    pieces, last = await followed(engine.stream(QUESTION, sampling))
    assert str(last) == str(whole) and type(last) is type(whole)
    return whole, pieces


def test_a_real_model_s_reasoning_is_left_out(reasoner: Callable[..., TransformersModel]) -> None:
    answer, pieces = both(reasoner())
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason) == (FACTS["capital of France"], "stop")
    assert "".join(pieces) == answer.text
    tokens = make_tokenizer()(answer.text)["input_ids"]
    assert answer.completion_tokens is not None and answer.completion_tokens > len(tokens) + 5  # all were written


def test_it_is_kept_where_the_settings_say_so(reasoner: Callable[..., TransformersModel]) -> None:
    answer, pieces = both(reasoner(keep_reasoning=True))
    assert isinstance(answer, Completion)
    assert f"<think>{answer.text.removeprefix('<think>')}" == f"{REASONING}{FACTS['capital of France']}"
    assert "".join(pieces) == answer.text


def test_an_answer_that_does_not_get_beyond_its_reasoning_is_none(
    reasoner: Callable[..., TransformersModel],
) -> None:
    error, pieces = both(reasoner(), Sampling(max_tokens=6))
    assert isinstance(error, GenerationError) and not pieces
    assert str(error) == "the answer ends within its reasoning; raise sampling.max_tokens"


@pytest.mark.parametrize(
    ("texts", "pieces"),
    [
        (["<th", "ink>3?", " 4?</think", ">\n", "Four", " it is."], ["Four", " it is."]),
        (["<", "thi"], ["<thi"]),
        ([" ", "Four"], [" Four"]),
    ],
)
def test_nothing_of_a_server_s_reasoning_is_streamed(texts: list[str], pieces: list[str]) -> None:
    async def main() -> tuple[Completion | GenerationError, list[str]]:
        whole = respond(200, completion("".join(texts)))
        async with EndpointServer([whole, stream(*map(chunk, texts), chunk(finish_reason="stop"))]) as server:
            model = EndpointModel(name="e", engine="endpoint", model="m", base_url=server.url, max_retries=0)
            engine = load_engine(model)
            try:
                return await _both(engine, GREEDY)
            finally:
                await engine.close()

    assert asyncio.run(main()) == (Completion("".join(pieces), "stop"), pieces)
