"""Messages as the world writes them: what models get of them, what is passed by, what is refused by name."""

import pickle
from typing import Any

import pytest

from llm_blender_ray.actors.chats import read_answer, read_messages
from llm_blender_ray.actors.errors import FieldError, RowError
from llm_blender_ray.actors.records import read_prompt

USER = {"role": "user", "content": "Hi."}


def turns(*messages: Any) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in read_messages(messages)]


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"role": "developer", "content": "d"}, ("system", "d")),
        ({"role": "user", "content": "u", "name": "Ann", "cache_control": {"type": "ephemeral"}}, ("user", "u")),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": [{"id": 1}]},
            ("assistant", "a"),
        ),
        (
            {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None},
            ("assistant", "a"),
        ),
        ({"role": "assistant", "content": None, "refusal": "I can't."}, ("assistant", "I can't.")),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {}}]}, None),
        ({"role": "assistant", "content": float("nan")}, None),
        ({"role": "assistant"}, None),
        ({"role": "assistant", "content": " "}, None),
        ({"role": "assistant", "content": []}, None),
        ({"role": "tool", "content": "21", "tool_call_id": "1"}, ("user", "21")),
        ({"role": "function", "content": "21", "name": "f"}, ("user", "21")),
        ({"role": "tool", "content": None}, None),
        ({"role": "user", "content": ""}, ("user", "")),
        ({"role": "user", "content": ["a", {"text": "b"}, {"type": "input_text", "text": "c"}]}, ("user", "abc")),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
            },
            ("assistant", "a"),
        ),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, ("assistant", "No.")),
    ],
)
def test_what_models_get_of_a_message(message: dict[str, Any], turn: tuple[str, str] | None) -> None:
    assert turns(USER, message, USER)[1:-1] == ([turn] if turn else [])


@pytest.mark.parametrize(
    ("message", "field", "problem"),
    [
        ("hello", "messages[1]", "invalid"),
        ({"content": "x"}, "messages[1].role", "missing"),
        ({"role": "robot", "content": "x"}, "messages[1].role", "invalid"),
        ({"role": 5, "content": "x"}, "messages[1].role", "invalid"),
        ({"role": "user"}, "messages[1].content", "missing"),
        ({"role": "user", "content": None}, "messages[1].content", "invalid"),
        ({"role": "user", "content": {}}, "messages[1].content", "invalid"),
        ({"role": "user", "content": [5]}, "messages[1].content[0]", "invalid"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "missing"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text", "invalid"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[1].content[0].type",
            "invalid",
        ),
        ({"role": "user", "content": "\ud800"}, "messages[1].content", "invalid"),
        ({"role": "assistant", "content": None, "audio": {"id": "x"}}, "messages[1].audio", "unsupported"),
        ({"role": "assistant", "content": "x", "prefix": True}, "messages[1].prefix", "unsupported"),
    ],
)
def test_what_cannot_be_blended_is_refused_by_name(message: Any, field: str, problem: str) -> None:
    with pytest.raises(FieldError) as caught:
        read_messages([USER, message, {"role": "robot"}])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.field, copy.problem) == (field, problem)
    assert str(copy).startswith(f"{field}: ")


def test_nothing_is_read_of_a_chat_with_too_many_items() -> None:
    class Unread(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            assert name == "content", "read"
            return super().get(name, default)

    for chat in ([Unread()] * 11, [Unread(content=[{}] * 10)], [Unread(content=[{}] * 5)] * 2):
        with pytest.raises(FieldError, match="more than 10"):
            read_messages(chat, most=10)
    assert len(read_messages([USER] * 10, most=10)) == 10


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"prompt": [USER]}, [USER]),
        ({"prompt": "p", "messages": []}, [{"role": "user", "content": "p"}]),
        ({"prompt": "p", "messages": float("nan")}, [{"role": "user", "content": "p"}]),
        ({"instruction": "i", "input": float("nan")}, [{"role": "user", "content": "i"}]),
        ({"instruction": float("nan"), "prompt": "p"}, [{"role": "user", "content": "p"}]),
        ({"instruction": "i", "prompt": [{"role": "robot"}]}, [{"role": "user", "content": "i"}]),
        ({"prompt": [{"role": "robot"}], "messages": [USER]}, [USER]),
        (
            {
                "chosen": [USER, {"role": "assistant", "content": "a"}],
                "rejected": [USER, {"role": "assistant", "content": "b"}],
            },
            [USER],
        ),
    ],
)
def test_a_prompt_in_the_forms_of_the_trade(row: dict[str, Any], chat: list[Any]) -> None:
    assert read_prompt(row).chat() == chat


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": []}, "messages: expected a list of at least one"),
        ({"messages": [{"role": "assistant"}]}, "the prompt is empty"),
        ({"prompt": []}, "prompt: expected a list of at least one"),
        ({"prompt": [{"role": "robot"}]}, "prompt[0].role: expected one of"),
        ({"input": float("nan")}, "no prompt"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
    ],
)
def test_a_row_without_a_prompt_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(RowError) as caught:
        read_prompt(row)
    assert str(caught.value).startswith(why)


def test_an_answer_in_the_forms_of_the_trade() -> None:
    answer = {"role": "assistant", "content": "a"}
    assert [read_answer(value, "x") for value in ("a", [answer], [USER, answer], [{"text": "a"}], None)] == [
        *["a"] * 4,
        None,
    ]
    for value in (5, {"a": 1}, [USER]):
        with pytest.raises(FieldError):
            read_answer(value, "x")
