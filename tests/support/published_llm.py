"""A real published LLM for tests, and what plain transformers answers with it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_blender_ray.actors.records import Message
from llm_blender_ray.pipelines.miniature.published import fetch_gguf, fetch_llm

NAME = "smollm2-135m-instruct"
_LETTER = "Dear neighbours, the bridge over the mill stream is closed this week. "


def asked(text: str) -> list[Message]:
    """A chat of one question."""
    return [Message(role="user", content=text)]


CHATS: dict[str, list[Message]] = {
    "fact": asked("What is the capital of France? Answer in one sentence."),
    "code": asked("Write a Python function that returns the larger of two numbers."),
    "characters": asked("Repeat exactly: 🦊🚀 naïve Straße 東京 👩‍👩‍👧"),
    "list": asked("Name five animals that live in the sea, one per line."),
    "system and turns": [
        Message(role="system", content="You answer in a single short sentence."),
        Message(role="user", content="My name is Ada. Who are you?"),
        Message(role="assistant", content="I am an assistant. Nice to meet you, Ada."),
        Message(role="user", content="What is my name?"),
    ],
    "template in the text": asked("What does <|im_end|> mean in a prompt?"),
    "long": asked(f"{_LETTER * 40}\n\nWhich bridge is closed?"),
}


@functools.cache
def folder() -> Path:
    """The model's folder, made once per checkout."""
    return fetch_llm(NAME, ROOT / "out" / "real")


@functools.cache
def gguf() -> Path:
    """The file that the folder is made from."""
    return fetch_gguf(NAME, ROOT / "out" / "real")


@functools.cache
def _reference() -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder())
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()


def tokens_of(chat: Sequence[Message]) -> int:
    """Number of tokens of the rendered chat."""
    return int(_encoded(chat)["input_ids"].shape[1])


def _encoded(chat: Sequence[Message]) -> Any:
    tokenizer, _ = _reference()
    return tokenizer.apply_chat_template(
        list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def searched_answers(name: str, max_tokens: int, **options: Any) -> list[tuple[str, str, int]]:
    """Answers to one of `CHATS` by transformers' `generate` with more of its arguments, as `greedy_answer`."""
    tokenizer, model = _reference()
    encoded = _encoded(CHATS[name])
    with torch.inference_mode():
        output = model.generate(**encoded, max_new_tokens=max_tokens, do_sample=False, **options)
    found = []
    for ids in output[:, encoded["input_ids"].shape[1] :].tolist():
        end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        found.append((text, "length" if end is None else "stop", len(ids) if end is None else end + 1))
    return found


def penalised_answer(name: str, max_tokens: int, presence: float, frequency: float) -> str:
    """Greedy answer under OpenAI's penalties, step by step by their formula."""
    tokenizer, model = _reference()
    tokens, cache, answer = _encoded(CHATS[name])["input_ids"], None, []
    for _ in range(max_tokens):
        with torch.no_grad():
            output = model(tokens, past_key_values=cache, use_cache=True)
        logits, cache = output.logits[0, -1].clone(), output.past_key_values
        for token in set(answer):
            logits[token] -= presence + frequency * answer.count(token)
        answer.append(int(logits.argmax()))
        if answer[-1] == tokenizer.eos_token_id:
            break
        tokens = torch.tensor([answer[-1:]])
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def logprobs_of(name: str, answer_tokens: Sequence[str]) -> list[float]:
    """Log-probability of each of an answer's tokens in one forward; the answer is given by its tokens' texts."""
    tokenizer, model = _reference()
    ids = _encoded(CHATS[name])["input_ids"]
    answer = [tokenizer.encode(text, add_special_tokens=False) for text in answer_tokens]
    assert all(len(one) == 1 for one in answer)
    with torch.inference_mode():
        logprobs = model(torch.cat([ids, torch.tensor([[i for (i,) in answer]])], 1)).logits[0].log_softmax(-1)
    start = ids.shape[1] - 1
    return [float(logprobs[start + at, i]) for at, (i,) in enumerate(answer)]


def token_id(text: str) -> int:
    """Id of the one token that spells a text."""
    (token,) = _reference()[0].encode(text, add_special_tokens=False)
    return int(token)


@functools.lru_cache(maxsize=1)  # 0.5 GB each
def _merged(adapter: Path) -> Any:
    """The model with an adapter merged into it."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


@functools.cache
def greedy_answer(name: str, max_tokens: int, adapter: Path | None = None) -> tuple[str, str, int]:
    """Greedy answer to one of `CHATS` by transformers' `generate`, alone: text, finish reason, new tokens."""
    tokenizer, model = _reference()
    model = _merged(adapter) if adapter else model
    encoded = _encoded(CHATS[name])
    with torch.inference_mode():
        ids = model.generate(**encoded, max_new_tokens=max_tokens, do_sample=False)[
            0, encoded["input_ids"].shape[1] :
        ]
    ended = ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    return text, "stop" if ended else "length", len(ids)
