"""Rows of preference data sets: two answers of a prompt in columns of their own.

`chosen` and `rejected` are TRL's and RewardBench's; `conversation_a`, `conversation_b` and `turn` are those of
MT-bench's human judgments and of the arena's files.
"""

from collections.abc import Mapping
from typing import Any

from llm_blender_ray.actors.chats import Message, is_list, is_missing, read_answer, read_messages
from llm_blender_ray.actors.errors import FieldError

PAIR = ("chosen", "rejected")  # TRL's names for the answers of a preference pair
CONVERSATIONS = ("conversation_a", "conversation_b")
# Columns that prompt and candidates may be made of.
ANSWER_PAIR_COLUMNS = (*PAIR, *(f"{name}_model" for name in PAIR), *CONVERSATIONS, "model_a", "model_b", "turn")


def common_beginning(row: Mapping[str, Any]) -> list[Any]:
    """The messages that `chosen` and `rejected` begin with, without the last turn of either."""
    pair = [row.get(name) for name in PAIR]
    if not all(is_list(one) and len(one) > 1 for one in pair):
        return []
    chosen, rejected = (list(one[:-1]) for one in pair if one is not None)
    return chosen if chosen == rejected else []


def pair_answers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both answers of a pair as candidates, `text` and `model`; empty for another row."""
    pair = [{"text": row.get(name), "model": row.get(f"{name}_model")} for name in PAIR]
    if all(not is_missing(one["text"]) and _is_answer(one["text"]) for one in pair):
        return pair
    _, texts = read_conversations(row)
    return [
        {"text": text, "model": row.get(name)} for text, name in zip(texts, ("model_a", "model_b"), strict=False)
    ]


def read_conversations(row: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """Prompt and both answers of two conversations with the same user turns; empty for another row.

    `turn` is the number of turns that count; without it all do. Where answers before the last one differ, an answer
    is all answers of its conversation, and `<Response i>` stands for them in the prompt: the form in which the
    original's `compare_conversations` shows them to PairRM.
    """
    given = [row.get(name) for name in CONVERSATIONS]
    if not all(is_list(one) and one for one in given):
        return [], []
    try:
        left, right = (read_messages(one, name) for one, name in zip(given, CONVERSATIONS, strict=True))
    except FieldError:
        return [], []
    turn = row.get("turn")
    if isinstance(turn, int | float) and not is_missing(turn) and turn >= 1:
        left, right = left[: 2 * int(turn)], right[: 2 * int(turn)]
    if left[::2] != right[::2] or not _alternate(left) or not _alternate(right):
        return [], []
    if left[:-1] == right[:-1]:
        return list(left[:-1]), [left[-1]["content"], right[-1]["content"]]
    prompt = [
        Message(role="assistant", content=f"<Response {at // 2 + 1}>") if at % 2 else one
        for at, one in enumerate(left[:-1])
    ]
    return prompt, [
        "\n".join(f"<Response {i}>: {one['content']}" for i, one in enumerate(side[1::2], 1))
        for side in (left, right)
    ]


def _alternate(turns: tuple[Message, ...]) -> bool:
    return [one["role"] for one in turns] == ["user", "assistant"] * (len(turns) // 2)


def _is_answer(value: Any) -> bool:
    try:
        return read_answer(value, "") is not None
    except FieldError:
        return False
