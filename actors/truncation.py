"""Truncation of texts, as tokens or characters, that keeps a chat's last turn and both ends of a long text."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")  # a token id or a character


def keep_ends(items: Sequence[Item], length: int) -> tuple[list[Item], list[Item]]:
    """The beginning and the end of a text, which hold its question more often than its middle does.

    Args:
        items: Tokens or characters of the text.
        length: How many to keep, 0 or more.

    Returns:
        Head and tail, `length` items together (the head has one more where it is odd); all of the text and nothing
        where it is no longer than that.
    """
    if len(items) <= length:
        return list(items), []
    head = (length + 1) // 2
    return list(items[:head]), list(items[len(items) - (length - head) :])


def keep_last_turn(turns: Sequence[Sequence[Item]], length: int) -> list[Item]:
    """The end of a chat: the last turn whole, and before it as much of the older turns as fits.

    Args:
        turns: Tokens or characters of each turn, oldest first.
        length: How many to keep, 0 or more.

    Returns:
        At most `length` items. Of a last turn that is longer by itself both ends are kept.
    """
    *older, last = turns
    if len(last) >= length:
        head, tail = keep_ends(last, length)
        return head + tail
    before = [item for turn in older for item in turn]
    return before[max(0, len(before) - (length - len(last))) :] + list(last)
