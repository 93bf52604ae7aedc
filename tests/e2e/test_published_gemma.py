"""A real LLM of another family, Gemma 3 270M (base): BOS, sliding windows, ends; against plain transformers.

Its weights come under Gemma's terms of use, which every user accepts: `make test-real GEMMA=1` says that you do.
"""

import asyncio
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_blender_ray.actors.engines import Completion, Engine, load_engine
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling, TransformersModel
from llm_blender_ray.pipelines.miniature.published import PUBLISHED, fetch_llm

NAME = "gemma-3-270m"
TOKENS = 12
# as https://ai.google.dev/gemma/docs/core/prompt-structure has it
TURNS = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LETTER = "Dear neighbours, the bridge over the mill stream is closed this week. "
TEXTS = {
    "count": "1, 2, 3, 4,",
    "code": "def larger(a, b):\n    return",
    "fact": "The capital of France is",
    "characters": "🦊🚀 naïve Straße 東京 👩‍👩‍👧",
    "longer than a window of 512 tokens": f"{LETTER * 40}\n\nDear",
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        os.environ.get(str(PUBLISHED[NAME].accepted_by)) != "1",
        reason="Gemma's terms of use: make test-real GEMMA=1, if you accept them",
    ),
]


@functools.cache
def folder() -> Path:
    """The model's folder, made once per checkout."""
    return fetch_llm(NAME, ROOT / "out" / "real")


@functools.cache
def reference() -> tuple[Any, Any]:
    """Tokenizer and model of plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder()), model.eval()


@functools.cache
def continued(name: str, max_tokens: int = TOKENS, eos_bias: float = 0.0) -> tuple[str, str, int]:
    """Greedy continuation of one of `TEXTS` by `generate`, alone: text, finish reason, new tokens."""
    tokenizer, model = reference()
    encoded = tokenizer(TEXTS[name], return_tensors="pt")
    bias = {"sequence_bias": {(tokenizer.eos_token_id,): eos_bias}} if eos_bias else {}
    with torch.inference_mode():
        ids = model.generate(**encoded, max_new_tokens=max_tokens, do_sample=False, **bias)[
            0, encoded["input_ids"].shape[1] :
        ]
    ended = ids[-1] == tokenizer.eos_token_id
    return (
        tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True),
        "stop" if ended else "length",
        len(ids),
    )


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner) -> Iterator[Engine]:
    settings = {"name": "gemma", "model": str(folder()), "dtype": "float32", "chat_template": "bare"}
    made = load_engine(TransformersModel(engine="transformers", device="cpu", **settings))
    yield made
    runner.run(made.close())


def asked(name: str) -> list[Message]:
    return [Message(role="user", content=TEXTS[name])]


def numbers(completion: Completion) -> tuple[str, str, int | None]:
    return completion.text, completion.finish_reason, completion.completion_tokens


def test_a_text_begins_with_bos_once_bare_and_in_turns(engine: Engine, runner: asyncio.Runner) -> None:
    tokenizer, _ = reference()
    for name, text in TEXTS.items():
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        completion = runner.run(engine.generate(asked(name), Sampling(max_tokens=1)))
        assert completion.prompt_tokens == len(ids)
    turns = ChatTokenizer(tokenizer, TURNS).encode(asked("fact"))
    shown = tokenizer.convert_ids_to_tokens(turns)
    assert shown[:4] == ["<bos>", "<start_of_turn>", "user", "\n"]
    assert shown[-4:] == ["\n", "<start_of_turn>", "model", "\n"] and shown.count("<bos>") == 1
    assert turns == tokenizer.apply_chat_template(
        asked("fact"), chat_template=TURNS, add_generation_prompt=True, return_dict=False
    )


def test_greedy_answers_are_transformers_own_alone_and_in_a_batch(engine: Engine, runner: asyncio.Runner) -> None:
    expected = {name: continued(name) for name in TEXTS}
    for name in TEXTS:
        assert numbers(runner.run(engine.generate(asked(name), Sampling(max_tokens=TOKENS)))) == expected[name], (
            name
        )

    async def together() -> list[Completion]:
        calls = (engine.generate(asked(name), Sampling(max_tokens=TOKENS)) for name in [*TEXTS, *TEXTS])
        return await asyncio.gather(*calls)

    assert list(map(numbers, runner.run(together()))) == [*expected.values()] * 2
    assert len({text for text, _, _ in expected.values()}) == len(TEXTS)


def test_an_answer_ends_at_its_eos(engine: Engine, runner: asyncio.Runner) -> None:
    """A base model writes long answers; a bias makes its end likely, in both."""
    eos, bias = reference()[0].eos_token_id, 9.0
    ends = {name: continued(name, eos_bias=bias) for name in TEXTS}
    sampling = Sampling(max_tokens=TOKENS, logit_bias={eos: bias})
    assert {name: numbers(runner.run(engine.generate(asked(name), sampling))) for name in TEXTS} == ends
    assert any(reason == "stop" and count > 1 for _, reason, count in ends.values())
    assert not any("<eos>" in text for text, _, _ in ends.values())


def test_a_stream_is_the_whole_answer_in_pieces(engine: Engine, runner: asyncio.Runner) -> None:
    async def pieces() -> list[str | Completion]:
        return [piece async for piece in engine.stream(asked("code"), Sampling(max_tokens=TOKENS))]

    *texts, last = runner.run(pieces())
    assert isinstance(last, Completion) and numbers(last) == continued("code")
    assert "".join(map(str, texts)) == last.text and len(texts) > 3
