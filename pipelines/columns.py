"""Arrow types for values that came as JSON, found in one pass before Parquet or CSV is written.

A type is found for each value (`infer`) and joined with the next one's (`unify`), which is commutative (but
for the order of fields), associative and idempotent: blocks can be looked at in any order, anywhere. What
no Arrow type fits (text here and a number there, integers beyond 64 bits, very many keys) becomes JSON text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from actors.records import CANDIDATE_FIELDS, CANDIDATE_TYPE, PROMPT_COLUMNS, RESULT_COLUMNS
from pipelines.rows import EXTRA, OWN_COLUMNS, ROW_SCHEMA, to_json

JSON = pa.json_()  # stands for JSON text while types are joined; written as a string column
MAX_FIELDS = 1000  # of one struct: an object with more different keys is a map, not a record
MAX_DEPTH = 16
EMPTY = pa.struct([])


def infer(value: Any, depth: int = MAX_DEPTH) -> pa.DataType:
    """The Arrow type of one JSON value; `JSON` where none fits."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else JSON
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if depth == 0:
        return JSON
    if isinstance(value, dict):
        if len(value) > MAX_FIELDS or not all(_is_name(key) for key in value):
            return JSON
        return pa.struct([(key, infer(item, depth - 1)) for key, item in value.items()])
    item_type = pa.null()
    for item in value:
        item_type = unify(item_type, infer(item, depth - 1))
    return pa.list_(item_type)


def unify(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The narrowest type that holds the values of both; fields of `b` that `a` lacks go last."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(unify(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields = {field.name: field.type for field in a}
        for field in b:
            fields[field.name] = unify(fields.get(field.name, pa.null()), field.type)
        return pa.struct(fields.items()) if len(fields) <= MAX_FIELDS else JSON
    return JSON


def stored(kind: pa.DataType) -> pa.DataType:
    """The type as it is written: a string for JSON text, what was always null, and objects without keys."""
    if kind in (JSON, pa.null(), EMPTY):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(stored(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, stored(field.type)) for field in kind])
    return kind


def fit(value: Any, kind: pa.DataType) -> Any:
    """A JSON value as a Python value of `stored(kind)`; `kind` must hold it (see `unify`)."""
    if value is None:
        return None
    if kind in (JSON, EMPTY):
        return to_json(value)
    if pa.types.is_struct(kind):
        return {field.name: fit(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [fit(item, kind.value_type) for item in value]
    if pa.types.is_string(kind):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    return float(value) if pa.types.is_float64(kind) else value


def look(table: pa.Table) -> pa.DataType:
    """What `Layout.of` needs to know of a table of rows; of several tables it is the `unify` of theirs."""
    lists = table.column("candidates").to_pylist()
    known = [name for name in (*OWN_COLUMNS, *RESULT_COLUMNS) if name in table.column_names]
    return pa.struct(
        {
            "present": pa.struct([(n, pa.null()) for n in known if table.column(n).null_count < len(table)]),
            "extra": _joined(table.column(EXTRA).to_pylist()),
            "candidate_extra": _joined(one[EXTRA] for candidates in lists for one in candidates or ()),
            "native": pa.struct([field for field in table.schema if field.name not in ROW_SCHEMA.names]),
        }.items()
    )


def packed(kind: pa.DataType) -> bytes:
    """A type as bytes, for a file or another process."""
    return pa.schema([("type", kind)]).serialize().to_pybytes()


def unpacked(data: bytes) -> pa.DataType:
    """The type that `packed` made these bytes of."""
    return pa.ipc.read_schema(pa.py_buffer(data)).field("type").type


def _joined(texts: Iterable[str | None]) -> pa.DataType:
    kind = EMPTY
    for text in texts:
        if text:
            kind = unify(kind, infer(json.loads(text)))
    return kind


@dataclass(frozen=True)
class Layout:
    """The columns of what is written, the same for every file of a folder.

    own: prompt columns that some row has. extra, candidate_extra: the type of all unknown keys of rows and of
    candidates, a struct or `JSON`. native: columns that came from Parquet.
    """

    own: tuple[str, ...]
    kept: tuple[str, ...]
    results: dict[str, pa.DataType]
    extra: pa.DataType
    candidate_extra: pa.DataType
    native: tuple[pa.Field, ...]

    @classmethod
    def of(cls, seen: pa.DataType, results: dict[str, pa.DataType], keep: Sequence[str]) -> Self:
        """From what `look` saw of all rows; `results` are written, `keep` where some row has them."""
        parts = {field.name: field.type for field in seen}
        present = {field.name for field in parts["present"]}
        return cls(
            own=tuple(name for name in OWN_COLUMNS if name in present),
            kept=tuple(name for name in keep if name in present and name not in results),
            results=results,
            extra=parts["extra"],
            candidate_extra=parts["candidate_extra"],
            native=tuple(field for field in parts["native"] if field.name not in results),
        )

    def extra_types(self) -> dict[str, pa.DataType]:
        """The columns that come out of `extra`; ours win over a key of the same name."""
        taken = (set(ROW_SCHEMA.names) - {EXTRA}) | set(self.results) | {field.name for field in self.native}
        return {name: kind for name, kind in _fields(self.extra).items() if name not in taken}

    def schema(self) -> pa.Schema:
        """The row's own columns first, then ours, `error` last."""
        candidate = {name: CANDIDATE_TYPE.field(name).type for name in CANDIDATE_FIELDS}
        candidate |= {name: stored(kind) for name, kind in _fields(self.candidate_extra).items()}
        columns = {"id": pa.string()} | {name: PROMPT_COLUMNS[name] for name in self.own}
        columns |= {name: stored(kind) for name, kind in self.extra_types().items()}
        columns |= {field.name: field.type for field in self.native}
        columns |= {name: RESULT_COLUMNS[name] for name in self.kept}
        columns |= {"candidates": pa.list_(pa.struct(candidate.items()))} | self.results
        return pa.schema((columns | {"error": pa.string()}).items())

    def table(self, rows: pa.Table) -> pa.Table:
        """A table of the stages as it is written."""
        extra_types, schema, columns = self.extra_types(), self.schema(), []
        extras = [_unknown(text, self.extra) for text in rows.column(EXTRA).to_pylist()]
        for name, kind in zip(schema.names, schema.types, strict=True):
            if name in extra_types:
                columns.append(pa.array([fit(extra.get(name), extra_types[name]) for extra in extras], kind))
            elif name == "candidates":
                lists, types = rows.column(name).to_pylist(), _fields(self.candidate_extra)
                columns.append(pa.array([[self._candidate(one, types) for one in c or ()] for c in lists], kind))
            elif name in rows.column_names:
                columns.append(rows.column(name).cast(kind))
            else:
                columns.append(pa.nulls(len(rows), kind))
        return pa.table(columns, schema=schema)

    def _candidate(self, candidate: dict[str, Any], types: dict[str, pa.DataType]) -> dict[str, Any]:
        extra = _unknown(candidate[EXTRA], self.candidate_extra)
        fitted = {name: fit(extra.get(name), kind) for name, kind in types.items()}
        return {name: candidate[name] for name in CANDIDATE_FIELDS} | fitted


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {EXTRA: JSON} if kind == JSON else {field.name: field.type for field in kind}


def _unknown(text: str | None, kind: pa.DataType) -> dict[str, Any]:
    values = json.loads(text) if text else {}
    return {EXTRA: values or None} if kind == JSON else values


def _is_name(key: str) -> bool:
    """Whether Parquet's readers take it as a column's name."""
    return bool(key) and key.isprintable()
