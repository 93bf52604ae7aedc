"""Schema of one row: from the user's input to the columns that travel through the stages, and back.

Known columns are validated and typed here, once, so that a stage never gets a malformed value. Unknown keys travel
as JSON in `extra` and are written back as they came. What cannot be read is kept as JSON text under `raw`, with the
reason as `error`: a row is never dropped.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.chats import check_unicode, is_list, is_missing, read_answer, read_messages
from llm_blender_ray.actors.errors import FieldError, RowError
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.json_values import plain
from llm_blender_ray.actors.records import (
    CANDIDATE_FIELDS,
    PROMPT_COLUMNS,
    RAW,
    RESULT_COLUMNS,
    prompt_fields,
    read_id,
    read_prompt,
)

EXTRA = "extra"  # JSON object of the row's unknown keys
PROMPT_TEXTS = ("instruction", "input", "prompt")
OWN_COLUMNS = tuple(name for name in PROMPT_COLUMNS if name not in ("candidates", "error"))
ROW_SCHEMA = pa.schema(
    {
        **{name: PROMPT_COLUMNS[name] for name in (*OWN_COLUMNS, "candidates")},
        **RESULT_COLUMNS,
        EXTRA: pa.string(),
        "error": pa.string(),
    }
)
INTERNAL = "\0"  # prefix of keys and columns that are never written
MADE = f"{INTERNAL}made"  # a key of `extra`: columns that were made of others
EXACT_DIGITS = 15  # a number of at most so many characters is restored exactly from a normal double
MAX_JSON_DEPTH = 100  # of JSON: far below Python's recursion limit
_NO_KEYS: Mapping[str, Any] = MappingProxyType({})
_INT64 = range(-(2**63), 2**63)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name}: expected text, got {type(value).__name__}")
    return check_unicode(name, value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value not in _INT64:
        raise RowError(f"{name}: {str(value)[:20]}... is too large")
    return value


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise RowError(f"{name}: a number is too large") from None


def _items(name: str, value: Any, item: Callable[[str, Any], Any]) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{name}: expected a list, got {type(value).__name__}")
    return [item(f"{name}[{i}]", one) for i, one in enumerate(value)]


def references_in(value: Any) -> list[str]:
    """Texts in the value of a column of references: a text, number, list of them or turn (TRL); else none."""
    found = [_reference(one) for one in value] if is_list(value) else []
    return [text for text in found if text] or ([text] if (text := _reference(value)) else [])


def _reference(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    try:
        return read_answer(value, "output")
    except FieldError:
        return None


def _indexes(name: str, given: Mapping[str, Any]) -> list[int]:
    order: list[int] = _items(name, given[name], _whole)
    candidates = given.get("candidates")
    n = len(candidates) if isinstance(candidates, list) else 0
    if len(set(order)) < len(order) or not all(0 <= index < n for index in order):
        raise RowError(f"{name}: expected distinct indexes of the {n} candidates, got {str(order)[:100]}")
    return order


def _of_each(name: str, given: Mapping[str, Any], item: Callable[[str, Any], Any]) -> list[Any]:
    values, candidates = _items(name, given[name], item), given.get("candidates")
    if not isinstance(candidates, list) or len(values) != len(candidates):
        raise RowError(f"{name}: expected one for each candidate, got {len(values)}")
    return values


def _logits(name: str, given: Mapping[str, Any]) -> list[list[float | None]]:
    rows: list[list[float | None]] = _of_each(name, given, lambda at, row: _items(at, row, _number))
    if any(len(row) != len(rows) for row in rows):
        raise RowError(f"{name}: expected {len(rows)} in each of the {len(rows)} lists")
    return rows


def _output(name: str, given: Mapping[str, Any]) -> str | None:
    if isinstance(given[name], str):
        return _text(name, given[name])
    return next(iter(references_in(given[name])), None)


_READERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    **dict.fromkeys((*PROMPT_TEXTS, "fused", "error"), lambda name, given: _text(name, given[name])),
    "messages": lambda name, given: list(read_messages(given[name], name)),
    "output": _output,
    "candidates": lambda name, given: [candidate.to_row() for candidate in read_candidates(given)],
    "ranking": _indexes,
    "scores": lambda name, given: _of_each(name, given, _number),
    "comparisons": lambda name, given: _whole(name, given[name]),
    "logits": _logits,
    "fused_from": _indexes,
}


def read_row(given: Mapping[str, Any], where: str, beside: Mapping[str, Any] = _NO_KEYS) -> dict[str, Any]:
    """A given row as a value of `ROW_SCHEMA`.

    A field of ours that came in another form than its column's is kept as it came in `extra`, under its own name
    (see `as_given`). Only `id`, `candidates` and the fields of the prompt can be malformed; other fields are then
    the user's own. An `error` of the input row stays: the first cause is the useful one.

    Args:
        given: The row.
        where: Place for its errors ("a.jsonl line 7").
        beside: Columns that pass through in another way, and that prompt and candidates may be made of.
    """
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    extra: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    problems: list[str] = []
    made: list[str] = []
    _take_id(given, row, extra, made)
    if "id" in made and not is_missing(given.get("id")):
        raw["id"] = given["id"]
        problems.append("id: expected text or a number")
    whole = {**beside, **given} if beside else given
    asked = prompt_fields(whole)
    for name, value in given.items():
        if name == "id":
            continue
        if name not in _READERS:
            extra[name] = value
        elif is_missing(value) or (name == "error" and not (value.strip() if isinstance(value, str) else value)):
            if name in OWN_COLUMNS:
                extra[name] = value  # an input key is written back
        elif name == "prompt" and is_list(value):
            extra[name] = value
        else:
            try:
                row[name] = _READERS[name](name, given)
                if name in OWN_COLUMNS and row[name] != value:
                    extra[name] = value
            except RowError as error:
                if name in asked or name == "candidates":
                    raw[name] = value
                    problems.append(str(error))
                else:
                    extra[name] = value
    if row["candidates"] is None and "candidates" not in raw:
        row["candidates"] = [candidate.to_row() for candidate in read_candidates(whole)] or None
    if not problems:
        try:
            messages = read_prompt(whole).messages
            if messages is not None and row["messages"] is None:
                row["messages"] = list(messages)
                made.append("messages")
        except RowError as error:
            problems.append(str(error))
    if raw:
        extra[RAW] = to_json({**raw, RAW: extra[RAW]} if RAW in extra else raw)
    if made:
        extra[MADE] = made
    row[EXTRA] = json.dumps(extra, default=plain) if extra else None
    row["error"] = row["error"] or (f"{where}: {'; '.join(problems)}" if problems else None)
    return row


def _take_id(given: Mapping[str, Any], row: dict[str, Any], extra: dict[str, Any], made: list[str]) -> None:
    """The id as text, and its input value if that is no text; made of the content if there is none."""
    value = given.get("id")
    row["id"] = read_id(given)
    if is_missing(value) or isinstance(value, dict | list) or not _is_unicode(row["id"]):
        row["id"] = read_id({**given, "id": None})
        made.append("id")
    elif not isinstance(value, str):
        extra["id"] = value


def with_raw(others: dict[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    """A row's unknown keys, with values under names that the run itself writes moved to `raw`.

    An earlier run's `margin` or `preference` is dropped: this run replaces it.
    """
    moved = {
        name: value
        for name, value in moved.items()
        if value is not None and not (name in ("margin", "preference") and isinstance(value, int | float))
    }
    if not moved:
        return others
    return others | {RAW: to_json({**moved, RAW: others[RAW]} if RAW in others else moved)}


def bad_row(raw: bytes | str, why: str) -> dict[str, Any]:
    """Row of input that is no row: its text under `raw`, and the reason."""
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8", "backslashreplace")
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    return {**row, "id": read_id({RAW: raw}), EXTRA: json.dumps({RAW: raw, MADE: ["id"]}), "error": why}


def parse_json(text: str, at: int = 0) -> tuple[Any, int, bool]:
    """Parse the JSON value at `at`.

    Returns:
        The value, its end, and whether it holds less than its text: an object with a name twice, a number
        that no double holds (more digits, 1e400), Infinity. NaN is the usual mark of a missing value.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deep.
    """
    lossy = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal lossy
        made = dict(items)
        lossy = lossy or len(made) < len(items)
        return made

    def number(digits: str) -> float:
        nonlocal lossy
        value = float(digits)
        normal = sys.float_info.min <= abs(value) <= sys.float_info.max
        if len(digits) > EXACT_DIGITS or not normal:
            lossy = lossy or Decimal(repr(value)) != Decimal(digits)
        return value

    def constant(name: str) -> float:
        nonlocal lossy
        lossy = lossy or name != "NaN"
        return float(name)

    decoder = json.JSONDecoder(object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
    value, end = decoder.raw_decode(text, at)
    return value, end, lossy


def read_json_row(line: bytes | str, where: str, keys: Mapping[str, Any] = _NO_KEYS) -> dict[str, Any]:
    """One JSON text (a line of a JSONL file) as a row; `keys` are columns of every row without them."""
    try:
        text = (line if isinstance(line, str) else line.decode("utf-8")).strip(" \t\r\n")
        value, end, lossy = parse_json(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return read_json_value(value, where, line, keys, lossy=lossy)
    except UnicodeDecodeError as error:
        return bad_row(line, f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        return bad_row(line, f"{where}: {not_json(error)}")


def not_json(error: ValueError | RecursionError) -> str:
    """The parser's message, in one line, with the position in its text."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_JSON_DEPTH} levels"
    return "not JSON: a number of too many digits"  # the only other ValueError: Python's limit of 4,300


def read_json_value(
    value: Any, where: str, text: bytes | str, keys: Mapping[str, Any] = _NO_KEYS, *, lossy: bool = False
) -> dict[str, Any]:
    """Make a row of a parsed JSON value.

    Args:
        value: Of repeated names the last one counts; numbers are doubles; NaN and Infinity become null.
        where: File and line, for the row's error.
        text: The text it was parsed from.
        keys: Columns of the whole file; the row's own come first.
        lossy: The value holds less than the text, which is kept under `raw`.
    """
    if not isinstance(value, dict):
        return bad_row(text, f"{where}: expected a JSON object, got {type(value).__name__}")
    if _deeper(value, MAX_JSON_DEPTH):
        return bad_row(text, f"{where}: nested deeper than {MAX_JSON_DEPTH} levels")
    row = read_row({**keys, **value} if keys else value, where)
    if lossy:
        held = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        extra = json.loads(row[EXTRA]) if row[EXTRA] else {}
        row[EXTRA] = json.dumps(extra | {RAW: to_json({RAW: extra[RAW], "text": held}) if RAW in extra else held})
    return row


def write_row(
    row: Mapping[str, Any],
    results: Sequence[str],
    keep: Sequence[str] = (),
    made_id: Callable[[str], str | int] = str,
) -> dict[str, Any]:
    """A row of the stages as output: its input first, then `candidates`, `results` and `error`.

    Result columns in `keep` are written if the row has them, those in neither are left out. Other columns (native
    columns of Parquet input) are written unchanged.
    """
    extra = json.loads(row[EXTRA]) if row.get(EXTRA) else {}
    made = extra.pop(MADE, ())
    out = {"id": made_id(row["id"]) if "id" in made else row["id"]}
    out |= {name: row[name] for name in OWN_COLUMNS if row.get(name) is not None and name not in ("id", *made)}
    ours = ("candidates", *results, "error")
    moved = {name: extra.pop(name) for name in ours if name in extra}
    out |= with_raw(extra, moved)
    passed = {*ROW_SCHEMA.names, *results}
    out |= {
        name: value
        for name, value in row.items()
        if name not in passed and not (value is None and name in out) and not name.startswith(INTERNAL)
    }
    out |= {name: row[name] for name in keep if name not in results and row.get(name) is not None}
    out["candidates"] = [write_candidate(c) for c in row.get("candidates") or ()]
    return out | {name: row.get(name) for name in results} | {"error": row.get("error")}


def write_candidate(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate as output: the contract's fields, then its other input fields."""
    out = {name: candidate.get(name) for name in CANDIDATE_FIELDS}
    return out | (json.loads(candidate[EXTRA]) if candidate.get(EXTRA) else {})


def to_json(value: Any) -> str:
    """Strict JSON: NaN and infinities, which it lacks, become null; non-ASCII characters stay readable."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=plain)
    return text if _is_unicode(text) else json.dumps(_finite(value), default=plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value)
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
