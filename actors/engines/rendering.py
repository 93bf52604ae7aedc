"""Chats as their template writes them, with nothing of the user's left out.

Templates differ in what they take: a system message or none, contents as text or as a list of parts. What one
doesn't take it may drop without a word, so the rendered chat is searched for the messages that went in.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llm_blender_ray.actors.engines.reasoning import AnswerFilter
from llm_blender_ray.actors.errors import PromptError, one_line
from llm_blender_ray.actors.records import Message

_OTHER = "\ue000"  # a content that no chat has
_SYSTEM = ("system", "developer")
_IGNORED = re.compile(r"\s+|/(no_?)?think\b")  # templates trim; some take these switches out of the text
_PARTS = ("'type': 'text'", '"type": "text"')  # of a list of parts that was written as it is


def render_chat(apply: Callable[[list[Any]], str], messages: Sequence[Message]) -> str:
    """Render a chat by the model's own template.

    A system message that the template refuses or drops goes in front of the first user message, where the makers of
    such models put it. Contents are given as text, then as a list of parts. Earlier answers may be left out:
    templates of reasoning models cut them on purpose.

    Args:
        apply: The template, on messages.
        messages: The chat.

    Returns:
        The rendered chat.

    Raises:
        PromptError: The template refuses the chat, or leaves out a message.
    """
    needed = list(_needed(messages))
    refusal: Exception | None = None
    missing = ""
    for turns in (list(messages), _folded(messages)):
        try:
            text = apply(turns)
        except Exception as error:  # a template is a program of the model's maker
            refusal = error
        else:
            refusal, missing = None, _missing(apply, turns, text, needed)
            if not missing:
                return text
        if (in_parts := _in_parts(apply, turns, needed)) is not None:
            return in_parts
        if turns == _folded(messages):
            break
    if refusal is not None:
        raise PromptError(f"the model's chat template refuses this chat: {one_line(refusal)}") from refusal
    raise PromptError(f"the model's chat template leaves out the text of a {missing} message")


def _in_parts(
    apply: Callable[[list[Any]], str], turns: Sequence[Message], needed: Sequence[tuple[str, str]]
) -> str | None:
    shaped = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    try:
        text = apply(shaped)
    except Exception:  # the refusal of the usual form is the one to report
        return None
    as_they_are = any(mark in text and not any(mark in turn["content"] for turn in turns) for mark in _PARTS)
    return None if as_they_are or _missing(apply, shaped, text, needed) else text


def _missing(
    apply: Callable[[list[Any]], str], turns: Sequence[Any], text: str, needed: Sequence[tuple[str, str]]
) -> str:
    """Role of the first message that is absent from the rendered chat; empty if none is.

    What the template itself writes is no message: a content of "<" is in "<|user|>" too. So contents are counted
    against the same chat with other contents.
    """
    try:
        own = apply([{**turn, "content": _replaced(turn["content"])} for turn in turns])
    except Exception:  # it refuses such contents; then nothing is known of its own text
        own = ""
    return next((role for role, content in needed if not _holds(text, content, own)), "")


def _replaced(content: Any) -> Any:
    return _OTHER if isinstance(content, str) else [{**part, "text": _OTHER} for part in content]


def _needed(messages: Sequence[Message]) -> Iterable[tuple[str, str]]:
    """Role and text of what must be in the rendered chat."""
    for message in messages:
        if message["role"] != "assistant":
            yield message["role"], message["content"]
    if messages[-1]["role"] == "assistant":  # it is what a reward model scores
        answer = AnswerFilter()
        yield "assistant", answer.add(messages[-1]["content"]) + answer.rest()


def _holds(text: str, content: str, own: str) -> bool:
    """Whether the rendered text has the content, give or take blanks and case, or as JSON has it.

    Args:
        text: The rendered chat.
        content: What is looked for.
        own: What the template writes by itself.
    """
    here, there = _comparable(text), _comparable(own)
    forms = {content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]}
    wanted = map(_comparable, forms)
    return any(here.count(form) > there.count(form) if form else True for form in wanted)


def _comparable(text: str) -> str:
    return _IGNORED.sub("", text).casefold()


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The chat without system messages: their text stands in front of the first user message."""
    system = [m["content"] for m in messages if m["role"] in _SYSTEM]
    turns = [m for m in messages if m["role"] not in _SYSTEM]
    if not system:
        return turns
    first = next((i for i, m in enumerate(turns) if m["role"] == "user"), None)
    if first is None:
        return [Message(role="user", content="\n\n".join(system)), *turns]
    turns[first] = Message(role="user", content="\n\n".join([*system, turns[first]["content"]]))
    return turns
