"""One row: from what a user gave to the columns that travel through the stages, and back.

Known columns are checked and typed here, once, so that a stage never sees a malformed value. What is unknown
travels as JSON in `extra` and comes back as it came. What can't be taken is kept as JSON text under `raw`,
beside an `error` that says why: a row is never dropped.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from actors.errors import RowError
from actors.records import (
    CANDIDATE_FIELDS,
    PROMPT_COLUMNS,
    RESULT_COLUMNS,
    plain,
    read_candidates,
    read_id,
    read_prompt,
)

EXTRA = "extra"  # JSON object of the row's unknown keys
RAW = "raw"  # a key of `extra`: text of what could not be taken
PROMPT_TEXTS = ("instruction", "input", "prompt", "output")
OWN_COLUMNS = tuple(name for name in PROMPT_COLUMNS if name not in ("candidates", "error"))
ROW_SCHEMA = pa.schema(
    {
        **{name: PROMPT_COLUMNS[name] for name in (*OWN_COLUMNS, "candidates")},
        **RESULT_COLUMNS,
        EXTRA: pa.string(),
        "error": pa.string(),
    }
)
MAX_DEPTH = 100  # of JSON: far below Python's recursion limit, wherever in the call stack it is read again
_NO_KEYS: Mapping[str, Any] = MappingProxyType({})
_INT64 = range(-(2**63), 2**63)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name}: expected text, got {type(value).__name__}")
    if not _is_unicode(value):
        raise RowError(f"{name}: text with half of a surrogate pair, which is no character")
    return value


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


def _candidates(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [candidate.to_row() for candidate in read_candidates(given)]
    for i, row in enumerate(rows):
        for name in ("model", "text", "error", "finish_reason"):
            if row[name] is not None:
                _text(f"candidates[{i}].{name}", row[name])
        for name in ("prompt_tokens", "completion_tokens"):
            if row[name] is not None:
                _whole(f"candidates[{i}].{name}", row[name])
    return rows


def _messages(given: Mapping[str, Any]) -> list[dict[str, str]]:
    turns = read_prompt({"messages": given["messages"], "id": ""}).messages or ()
    return [
        {
            "role": _text(f"messages[{i}].role", turn["role"]),
            "content": _text(f"messages[{i}].content", turn["content"]),
        }
        for i, turn in enumerate(turns)
    ]


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


_READERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    **dict.fromkeys((*PROMPT_TEXTS, "fused", "error"), lambda name, given: _text(name, given[name])),
    "messages": lambda name, given: _messages(given),
    "candidates": lambda name, given: _candidates(given),
    "ranking": _indexes,
    "scores": lambda name, given: _of_each(name, given, _number),
    "comparisons": lambda name, given: _whole(name, given[name]),
    "logits": _logits,
    "fused_from": _indexes,
}


def read_row(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A given row as a value of `ROW_SCHEMA`; `where` ("a.jsonl line 7") goes before what is wrong with it.

    An `error` that came with the row stays: the cause told first is the one that helps.
    """
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    extra: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    problems = []
    row["id"] = read_id(given)
    if isinstance(given.get("id"), dict | list) or not _is_unicode(row["id"]):
        row["id"], raw["id"] = read_id({**given, "id": None}), given["id"]
        problems.append("id: expected text or a number")
    for name, value in given.items():
        if name == "id":
            continue
        if name not in _READERS:
            extra[name] = value
        elif value is not None:
            try:
                row[name] = _READERS[name](name, given)
            except RowError as error:
                raw[name] = value
                problems.append(str(error))
            if name == "messages" and row[name] not in (None, value):
                extra[name] = value  # content parts, names: written back as they came
        elif name in OWN_COLUMNS:
            extra[name] = None  # a key that was there is written back
    if not problems:
        try:
            read_prompt(row)
        except RowError as error:
            problems.append(str(error))
    if raw:
        extra[RAW] = to_json({**raw, RAW: extra[RAW]} if RAW in extra else raw)
    row[EXTRA] = json.dumps(extra, default=plain) if extra else None
    row["error"] = row["error"] or (f"{where}: {'; '.join(problems)}" if problems else None)
    return row


def bad_row(raw: bytes | str, why: str) -> dict[str, Any]:
    """The row of something that holds no row: its text under `raw`, and why it isn't one."""
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8", "backslashreplace")
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    return {**row, "id": read_id({RAW: raw}), EXTRA: json.dumps({RAW: raw}), "error": why}


def parse_json(text: str, at: int = 0) -> tuple[Any, int, bool]:
    """The JSON value that begins at `at`, where it ends, and whether an object in it has a name twice.

    Raises ValueError or RecursionError.
    """
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        made = dict(items)
        repeated = repeated or len(made) < len(items)
        return made

    value, end = json.JSONDecoder(object_pairs_hook=pairs).raw_decode(text, at)
    return value, end, repeated


def read_json_row(line: bytes | str, where: str, keys: Mapping[str, Any] = _NO_KEYS) -> dict[str, Any]:
    """One JSON text (a line of a JSONL file) as a row; `keys` are of every row that hasn't them itself."""
    try:
        text = (line if isinstance(line, str) else line.decode("utf-8")).strip(" \t\r\n")
        value, end, repeated = parse_json(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return read_json_value(value, where, line, keys, repeated=repeated)
    except UnicodeDecodeError as error:
        return bad_row(line, f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        return bad_row(line, f"{where}: {not_json(error)}")


def not_json(error: ValueError | RecursionError) -> str:
    """What the parser says, in one line; its position is within the text it was given."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_DEPTH} levels"
    return "not JSON: a number of too many digits"  # the one other ValueError: Python's limit of 4,300


def read_json_value(
    value: Any, where: str, text: bytes | str, keys: Mapping[str, Any] = _NO_KEYS, *, repeated: bool = False
) -> dict[str, Any]:
    """A parsed JSON value as a row; `text` is what it was parsed from.

    repeated: an object in it has a name twice. The last one counts, as everywhere; the text is kept under `raw`.
    """
    if not isinstance(value, dict):
        return bad_row(text, f"{where}: expected a JSON object, got {type(value).__name__}")
    if _deeper(value, MAX_DEPTH):
        return bad_row(text, f"{where}: nested deeper than {MAX_DEPTH} levels")
    row = read_row({**keys, **value} if keys else value, where)
    if repeated:
        held = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        extra = json.loads(row[EXTRA]) if row[EXTRA] else {}
        row[EXTRA] = json.dumps(extra | {RAW: to_json({RAW: extra[RAW], "text": held}) if RAW in extra else held})
    return row


def write_row(row: Mapping[str, Any], results: Sequence[str], keep: Sequence[str] = ()) -> dict[str, Any]:
    """A row of the stages as it goes out: what came with it first, then `candidates`, `results` and `error`.

    Result columns in `keep` are written where the row has them, those in neither are left out. Columns that
    are not ours (native columns of Parquet input) are taken as they are.
    """
    out: dict[str, Any] = {"id": row["id"]}
    out |= {name: row[name] for name in OWN_COLUMNS if row.get(name) is not None}
    out |= json.loads(row[EXTRA]) if row.get(EXTRA) else {}
    ours = {*ROW_SCHEMA.names, *results}
    out |= {name: value for name, value in row.items() if name not in ours and not (value is None and name in out)}
    out |= {name: row[name] for name in keep if name not in results and row.get(name) is not None}
    for name in ("candidates", *results, "error"):
        out.pop(name, None)  # a key of the user's by that name: ours goes to its place at the end
    out["candidates"] = [write_candidate(c) for c in row.get("candidates") or ()]
    return out | {name: row.get(name) for name in results} | {"error": row.get("error")}


def write_candidate(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate as it goes out: the contract's fields, then those it came with."""
    out = {name: candidate.get(name) for name in CANDIDATE_FIELDS}
    return out | (json.loads(candidate[EXTRA]) if candidate.get(EXTRA) else {})


def to_json(value: Any) -> str:
    """Strict JSON: NaN and infinities, which it doesn't have, are null; readable characters stay readable."""
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
