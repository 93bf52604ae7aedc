"""Arrow types of JSON values, found in one pass before Parquet or CSV is written.

A type is found for each value (`infer`) and joined with the next one's (`unify`), which is commutative (except for
the order of fields), associative and idempotent, so blocks can be inspected in any order, anywhere. Values that
fit no Arrow type (text and numbers in one field, integers beyond 64 bits, integers beyond 2^53 with fractions)
become JSON text. Keys that cannot be columns go to one column of JSON text, `extra`, and no other key does.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_blender_ray.actors.json_values import plain
from llm_blender_ray.actors.records import RESULT_COLUMNS
from llm_blender_ray.pipelines.rows.arrow_types import to_python
from llm_blender_ray.pipelines.rows.schema import EXTRA, OWN_COLUMNS, ROW_SCHEMA, to_json
from llm_blender_ray.pipelines.rows.source_types import GIVEN_ID, GivenColumns

# Placeholders while types are joined; see `stored`.
JSON = pa.json_()  # JSON text
LARGE = pa.uint64()  # 64-bit integers, some beyond 2^53: a double can't hold them
NAN = pa.float16()  # nothing but NaN, a missing value of any other type
MAX_FIELDS = 1000  # of one struct: an object with more different keys is a map, not a record
NUMBERS = (pa.int64(), LARGE, pa.float64())
OTHER_KEYS = ""  # the field of a row's type that stands for all keys without a column of their own
_EXACT = 2**53
MADE_IDS, OTHER_IDS = (
    "made",
    "other",
)  # of `inspect_columns`: some ids are made, some outside `GIVEN_ID`
MAX_TYPE_DEPTH = 16
EMPTY = pa.struct([])


def infer(value: Any, depth: int = MAX_TYPE_DEPTH) -> pa.DataType:
    """Arrow type of one JSON value; `JSON` if none fits."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return pa.int64()
        return LARGE if -(2**63) <= value < 2**63 else JSON
    if isinstance(value, float):
        return NAN if value != value else pa.float64()
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
    """Narrowest type that holds the values of both; fields of `b` that `a` lacks come last."""
    for one, other in ((a, b), (b, a)):
        if one == other or pa.types.is_null(other) or (other == NAN and not pa.types.is_null(one)):
            return one
    if {a, b} <= {pa.int64(), LARGE}:
        return LARGE
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
    """The written type: strings for JSON text, for fields that were always null, and for objects without keys."""
    if kind in (JSON, pa.null(), EMPTY):
        return pa.string()
    if kind in (LARGE, NAN):
        return pa.int64() if kind == LARGE else pa.float64()
    if pa.types.is_list(kind):
        return pa.list_(stored(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, stored(field.type)) for field in kind])
    return kind


def fit(value: Any, kind: pa.DataType) -> Any:
    """A JSON value as a Python value of `stored(kind)`; `kind` must hold it (see `unify`)."""
    if value is None or (value != value and kind not in (NAN, pa.float64())):
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


def infer_row(row: dict[str, Any]) -> pa.DataType:
    """Type of a row's unknown keys: a field for each that can be a column, `OTHER_KEYS` if there are more."""
    fields = {key: infer(value) for key, value in row.items() if _is_name(key)}
    return _limited(fields | ({} if len(fields) == len(row) else {OTHER_KEYS: JSON}))


def unify_rows(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """`unify` for types of rows."""
    if a == b:
        return a
    fields = {field.name: field.type for field in a}
    for field in b:
        fields[field.name] = unify(fields.get(field.name, pa.null()), field.type)
    return _limited(fields)


def _limited(fields: dict[str, pa.DataType]) -> pa.DataType:
    """A row's type of at most `MAX_FIELDS` columns, chosen independently of the order of rows."""
    names = [name for name in fields if name != OTHER_KEYS]
    if len(names) > MAX_FIELDS:
        left_out = sorted(names, key=lambda name: (len(name), name))[MAX_FIELDS:]
        fields = {name: kind for name, kind in fields.items() if name not in set(left_out)} | {OTHER_KEYS: JSON}
    return pa.struct(fields.items())


def infer_array(array: pa.Array | pa.ChunkedArray) -> pa.DataType:
    """`infer` for the values of an Arrow array, as in JSON (`arrow_types.to_python`)."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if array.null_count == len(array):
        return pa.null()
    if pa.types.is_dictionary(kind):
        return infer_array(array.dictionary_decode())
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        ends = pc.min_max(array)
        return unify(infer(ends["min"].as_py()), infer(ends["max"].as_py()))
    if pa.types.is_floating(kind):
        return NAN if pc.all(pc.is_nan(array)).as_py() else pa.float64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(infer_array(array.flatten()))
    if pa.types.is_struct(kind) and all(_is_name(field.name) for field in kind):
        names = [field.name for field in kind]
        if 0 < len(names) <= MAX_FIELDS and len(set(names)) == len(names):
            return pa.struct(zip(names, map(infer_array, array.flatten()), strict=True))
    if pa.types.is_nested(kind):
        return JSON
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or not isinstance(kind, pa.BaseExtensionType):
        return pa.string()
    found: pa.DataType = pa.null()
    for value in to_python(array):
        found = unify(found, infer(as_json(value)))
    return found


def inspect_columns(table: pa.Table) -> pa.DataType:
    """Everything that `Layout.of` needs of a table of rows; that of several tables is the `unify` of theirs."""
    lists = table.column("candidates").to_pylist()
    known = [name for name in (*OWN_COLUMNS, *RESULT_COLUMNS) if name in table.column_names]
    native = [field for field in table.schema if field.name not in ROW_SCHEMA.names]
    rows = given_columns(table)
    return pa.struct(
        {
            "present": pa.struct([(n, pa.null()) for n in known if table.column(n).null_count < len(table)]),
            "given": _joined(_own_types(row.own) for row in rows),
            "ids": pa.struct([(name, pa.null()) for name in _ids(table, rows)]),
            "extra": _joined(infer_row(row.others) for row in rows),
            "candidate_extra": _joined(
                infer_row(candidate_extra(one)[1]) for candidates in lists for one in candidates or ()
            ),
            "native": pa.struct(native),
            "native_values": pa.struct([(f.name, infer_array(table.column(f.name))) for f in native]),
        }.items()
    )


def _own_types(own: Mapping[str, Any]) -> pa.DataType:
    return pa.struct([(name, infer(value)) for name, value in own.items()])


def _ids(table: pa.Table, rows: Sequence[GivenColumns]) -> Iterator[str]:
    """Whether some ids were made, and whether some are outside the column `GIVEN_ID`."""
    if any(row.made for row in rows):
        yield MADE_IDS
    typed = table.column(GIVEN_ID) if GIVEN_ID in table.column_names else pa.nulls(len(table))
    if any(not one.is_valid and not row.made for one, row in zip(typed, rows, strict=True)):
        yield OTHER_IDS


def candidate_extra(candidate: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """A candidate's unknown keys, and its text if it has an error too."""
    extra = json.loads(candidate[EXTRA]) if candidate[EXTRA] else {}
    beside = extra.pop("text", None)
    return candidate["text"] if beside is None else beside, extra


def given_columns(table: pa.Table) -> list[GivenColumns]:
    """Input values of each row of a table."""
    return [GivenColumns.of(row) for row in table.select([*OWN_COLUMNS, EXTRA]).to_pylist()]


def seen_of(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """Result of `inspect_columns` for two tables together."""
    if pa.types.is_null(a):
        return b
    parts = {field.name: field.type for field in a}
    return pa.struct([(field.name, unify_rows(parts[field.name], field.type)) for field in b])


def serialize_type(kind: pa.DataType) -> bytes:
    """A type as bytes, for a file or another process."""
    return pa.schema([("type", kind)]).serialize().to_pybytes()


def deserialize_type(data: bytes) -> pa.DataType:
    """The type of these bytes, made by `serialize_type`."""
    return pa.ipc.read_schema(pa.py_buffer(data)).field("type").type


def _joined(kinds: Iterable[pa.DataType]) -> pa.DataType:
    return functools.reduce(unify_rows, kinds, EMPTY)


def as_json(value: Any) -> Any:
    """A Python value in JSON's types: bytes, decimals and the like as text."""
    return json.loads(json.dumps(value, default=plain))


def _is_name(key: str) -> bool:
    """Whether Parquet's readers accept it as a column's name."""
    return bool(key) and key.isprintable()
