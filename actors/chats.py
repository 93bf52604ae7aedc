"""Chat messages as clients, agents and datasets write them, and the one form in which models get them.

One reader serves bulk rows and HTTP requests (`read_messages`). What changes nothing in the answer is passed by:
`name`, `reasoning_content`, `cache_control`, `tool_calls`, thinking parts, assistant turns without text. What can't
be blended as text, and what would change the answer, is refused by name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeGuard

from llm_blender_ray.actors.errors import FieldError

Role = Literal["system", "user", "assistant"]
# Tool calls are passed by, and a tool's result without its call is refused by templates: it's user text.
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
_MAY_BE_EMPTY = ("assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PASSED_PARTS = ("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_call", "function_call")
_REFUSED = ("audio", "image", "images", "video", "videos", "files", "prefix", "partial")  # they change the answer


class Message(TypedDict):
    """One turn of a chat, as OpenAI's API has it."""

    role: str
    content: str


def is_missing(value: Any) -> bool:
    """Whether the value stands for none: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether the value is a list of items, in JSON's sense."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def check_unicode(field: str, text: str) -> str:
    """The text, if every character has UTF-8: JSON can spell half of a surrogate pair.

    Raises:
        FieldError: The value is malformed.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FieldError(field, "text with half of a surrogate pair, which is no character") from None
    return text


def read_messages(value: Any, field: str = "messages", most: int | None = None) -> tuple[Message, ...]:
    """The turns that models get.

    Args:
        value: A list of messages in OpenAI's form.
        field: Path of the list, for what is wrong with it.
        most: Largest number of messages and content parts together; None for no limit.

    Raises:
        FieldError: The first thing that is wrong; nothing after it is looked at.
    """
    if not is_list(value) or not value:
        raise FieldError(field, "expected a list of at least one message")
    if most is not None:
        count = len(value)
        for one in value if count <= most else ():
            content = one.get("content") if isinstance(one, Mapping) else None
            count += len(content) if isinstance(content, list) else 0
        if count > most:
            raise FieldError(field, f"more than {most} messages and parts")
    turns = (_message(f"{field}[{i}]", one) for i, one in enumerate(value))
    return tuple(turn for turn in turns if turn is not None)


def _message(field: str, value: Any) -> Message | None:
    """The turn; None for one that is passed by."""
    if not isinstance(value, Mapping):
        raise FieldError(field, f"expected an object with role and content, got {type(value).__name__}")
    given = value.get("role")
    if given is None:
        raise FieldError(f"{field}.role", "missing", "missing")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        shown = f"{given[:40]!r}" if isinstance(given, str) else type(given).__name__
        raise FieldError(f"{field}.role", f"expected one of {', '.join(ROLES)}, got {shown}")
    for name in _REFUSED:
        if value.get(name) and not is_missing(value[name]):
            raise FieldError(f"{field}.{name}", "only text can be blended", "unsupported")
    content = read_content(value.get("content"), f"{field}.content")
    if content is None and given == "assistant" and isinstance(value.get("refusal"), str):
        content = check_unicode(f"{field}.refusal", value["refusal"])
    if given in _MAY_BE_EMPTY and not (content or "").strip():
        return None
    if content is None:
        if "content" not in value:
            raise FieldError(f"{field}.content", "missing", "missing")
        raise FieldError(f"{field}.content", "expected text or text parts, got none")
    return Message(role=role, content=content)


def read_content(value: Any, field: str) -> str | None:
    """A message's content as one text; None where it has none.

    Raises:
        FieldError: The value is malformed.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        return check_unicode(field, value)
    if not is_list(value):
        raise FieldError(field, f"expected text or text parts, got {type(value).__name__}")
    texts = [_part(part, f"{field}[{i}]") for i, part in enumerate(value)]
    kept = [text for text in texts if text is not None]
    return "".join(kept) if kept else None


def _part(value: Any, field: str) -> str | None:
    """The text of a content part; None for one that is passed by."""
    if isinstance(value, str):
        return check_unicode(field, value)
    if not isinstance(value, Mapping):
        raise FieldError(field, f"expected a text part, got {type(value).__name__}")
    kind = value.get("type")
    if kind in _PASSED_PARTS:
        return None
    name = "refusal" if kind == "refusal" else "text"
    if kind is not None and kind not in (*_TEXT_PARTS, "refusal"):
        raise FieldError(f"{field}.type", f"only text parts can be blended, got {str(kind)[:40]!r}")
    text = value.get(name)
    if text is None and name not in value:
        raise FieldError(f"{field}.{name}", "missing", "missing")
    if not isinstance(text, str):
        raise FieldError(f"{field}.{name}", f"only text parts can be blended, got {type(text).__name__}")
    return check_unicode(f"{field}.{name}", text)


def read_answer(value: Any, field: str) -> str | None:
    """An answer as one text: itself, the last turn of a conversation (TRL), or content parts; None for none.

    Raises:
        FieldError: It is neither.
    """
    if is_list(value) and value and isinstance(value[-1], Mapping) and "role" in value[-1]:
        last = value[-1]
        if last["role"] != "assistant":
            raise FieldError(field, f"expected the assistant's turn last, got {str(last['role'])[:40]!r}")
        return read_content(last.get("content"), field)
    return read_content(value, field)
