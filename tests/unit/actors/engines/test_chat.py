"""From chats to token ids: templates that take system messages, refuse them, drop them, or aren't there."""

import pytest
from tiny_models import CHAT_TEMPLATE, make_tokenizer

from llm_blender_ray.actors.engines import chat
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.errors import ModelLoadError, PromptError, TooLongError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling

SYSTEM = Message(role="system", content="Be brief.")
USER = Message(role="user", content="Why?")
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
DROPS_SYSTEM = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)
FOLDED = "<|user|>Be brief.\n\nWhy?<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"),
        (REFUSES_SYSTEM, FOLDED),
        (DROPS_SYSTEM, FOLDED),
        (None, "Be brief.\nWhy?"),
    ],
    ids=["takes system", "refuses system", "drops system", "no template"],
)
def test_rendering(template: str | None, expected: str) -> None:
    tokenizer = make_tokenizer(template)
    assert tokenizer.decode(ChatTokenizer(tokenizer).encode([SYSTEM, USER])) == expected


def test_template_s_special_tokens_are_not_doubled() -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + CHAT_TEMPLATE)
    tokenizer.bos_token = "<|pad|>"
    tokenizer.add_bos_token = True
    ids = ChatTokenizer(tokenizer).encode([USER])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_system_message_without_a_user_turn_becomes_one() -> None:
    tokenizer = make_tokenizer(REFUSES_SYSTEM)
    assert tokenizer.decode(ChatTokenizer(tokenizer).encode([SYSTEM])) == "<|user|>Be brief.<|end|><|assistant|>"


def test_chat_that_a_template_refuses_is_that_prompt_s_error() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    for messages in ([USER, USER], [SYSTEM, USER]):
        with pytest.raises(PromptError, match="roles must alternate"):
            ChatTokenizer(tokenizer).encode(messages)


def test_room_in_the_context() -> None:
    chat.check_fits(6, 4, 10)
    chat.check_fits(10**9, 4, None)
    with pytest.raises(TooLongError, match=r"7 tokens and max_tokens \(4\) exceed the model's context of 10"):
        chat.check_fits(7, 4, 10)
    with pytest.raises(PromptError, match="no tokens"):
        chat.check_fits(0, 4, 10)
    chat.check_fits(5, 4, 10, 5)
    with pytest.raises(TooLongError, match=r"6 tokens exceed max_prompt_tokens \(5\)"):
        chat.check_fits(6, 4, 10, 5)
    chat.check_room(Sampling(max_tokens=9), 10)
    with pytest.raises(ModelLoadError, match=r"max_tokens \(10\)"):
        chat.check_room(Sampling(max_tokens=10), 10)
