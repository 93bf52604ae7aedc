"""Candidates that rows come with, in all forms that data sets have them in."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llm_blender_ray.actors.answer_pairs import pair_answers
from llm_blender_ray.actors.chats import is_list, is_missing, read_answer
from llm_blender_ray.actors.errors import FieldError
from llm_blender_ray.actors.json_values import plain
from llm_blender_ray.actors.records import CANDIDATE_FIELDS, RAW, Candidate

_INT64 = range(-(2**63), 2**63)


def read_candidates(row: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """The row's given candidates: `candidates`, or without them the two answers of a preference data set.

    A malformed candidate is kept as one with an error.

    Raises:
        FieldError: `candidates` is no list.
    """
    given = row.get("candidates")
    if is_missing(given):
        return tuple(replace(_candidate(i, one), extra=None) for i, one in enumerate(pair_answers(row)))
    if not is_list(given):
        raise FieldError("candidates", f"expected a list, got {type(given).__name__}")
    return tuple(_candidate(i, value) for i, value in enumerate(given))


def _candidate(index: int, value: Any) -> Candidate:
    """A given candidate, whatever it holds.

    What has no place in a `Candidate` stays in `extra`: a text next to an error as `text` (it isn't ranked, and
    comes out again), fields of odd types under `raw`.
    """
    field = f"candidates[{index}]"
    if isinstance(value, str) or is_list(value):
        value = {"text": value}
    if is_missing(value):
        value = {}
    if not isinstance(value, Mapping):
        return Candidate(
            None,
            error=f"{field}: expected text or an object with model and text",
            extra=json.dumps({RAW: value}, default=plain),
        )
    extra = {name: item for name, item in value.items() if name not in CANDIDATE_FIELDS}
    taken: dict[str, Any] = {"error": _error(value.get("error"))}
    try:
        taken["text"] = read_answer(value.get("text"), f"{field}.text")
    except FieldError as problem:
        taken["text"], taken["error"] = None, taken["error"] or str(problem)
    if taken["text"] is None and taken["error"] is None:
        taken["error"] = "no text given"
    taken |= {name: _label(value.get(name)) for name in ("model", "finish_reason")}
    taken |= {name: _count(value.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    raw = {name: value[name] for name in CANDIDATE_FIELDS if _is_changed(value.get(name), taken[name])}
    if raw:
        extra[RAW] = {**raw, RAW: extra[RAW]} if RAW in extra else raw
    if taken["error"] is not None and taken["text"] is not None:
        extra["text"], taken["text"] = taken["text"], None
    return Candidate(**taken, extra=json.dumps(extra, default=plain) if extra else None)


def _is_changed(given: Any, taken: Any) -> bool:
    """Whether a value can't be told from what was taken of it: `false` and "" for no error can, 12.0 for 12 too."""
    blank = isinstance(given, str) and not given.strip()
    return bool(given) and not blank and not is_missing(given) and given != taken


def _error(value: Any) -> str | None:
    """A given error as text; null, "", false and the like are none."""
    if not value or is_missing(value):
        return None
    if isinstance(value, Mapping) and isinstance(value.get("message"), str) and value["message"]:
        value = value["message"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=plain)
    return text.encode("utf-8", "backslashreplace").decode() if text.strip() else None


def _label(value: Any) -> str | None:
    if isinstance(value, bool) or is_missing(value) or not isinstance(value, str | int | float):
        return None
    return str(value).encode("utf-8", "backslashreplace").decode()


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or is_missing(value):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return whole if (whole := int(value)) in _INT64 else None
