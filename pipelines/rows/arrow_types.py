"""Arrow types and values of columns outside the row schema: one type for a column of many files, values as in JSON.

Python's `datetime` ends in the year 9999, has no nanoseconds, and only the machine's time zones. None of that may
end a run or change a value, so dates, times and durations become ISO 8601 text by integer arithmetic.
"""

import contextlib
import functools
import io
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MS = 86_400_000


def joined(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both without a change; None when there is none.

    A value may still be out of its range (an integer beyond 2^53 as a double): a checked cast finds it.
    """
    if a.equals(b):
        return a
    a, b = _decoded(a), _decoded(b)
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if _is_list(a) and _is_list(b):
        item = joined(a.value_type, b.value_type)
        large = pa.types.is_large_list(a) or pa.types.is_large_list(b)
        return item and (pa.large_list(item) if large else pa.list_(item))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _joined_structs(a, b)
    if not _families(a) & _families(b):
        return None
    if _families(a) == {"text"}:
        return pa.large_string()
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (a, b)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _joined_structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    names = [field.name for field in a]
    names += [field.name for field in b if field.name not in names]
    if len(set(names)) < len(names) or len({field.name for field in b}) < len(b):
        return None
    fields = []
    for name in names:
        kinds = [kind.field(name).type for kind in (a, b) if kind.get_field_index(name) >= 0]
        kind = functools.reduce(joined, kinds)
        if kind is None:
            return None
        fields.append((name, kind))
    return pa.struct(fields)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _families(kind: pa.DataType) -> set[Any]:
    """Types within which a type may be joined. Decimals and floats are separate: one would be rounded."""
    of = pa.types
    if of.is_integer(kind):
        return {"number", "decimal"}
    tests: dict[Any, Any] = {
        "number": of.is_floating,
        "decimal": of.is_decimal,
        "date": of.is_date,
        "time": of.is_time,
        "duration": of.is_duration,
        "text": lambda t: of.is_string(t) or of.is_large_string(t) or of.is_string_view(t),
        "bytes": lambda t: of.is_binary(t) or of.is_large_binary(t) or of.is_fixed_size_binary(t),
        ("timestamp", getattr(kind, "tz", None)): of.is_timestamp,
    }
    return {family for family, test in tests.items() if test(kind)}


@functools.lru_cache(maxsize=4096)
def storable(kind: pa.DataType) -> pa.DataType | None:
    """The type as it comes back from Parquet; None when Parquet cannot hold it (unions, structs without fields)."""
    file = io.BytesIO()
    try:
        pq.write_table(pa.schema([("x", kind)]).empty_table(), file)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return pq.read_schema(file).field("x").type


def cast(column: Any, kind: pa.DataType) -> Any:
    """An array or a chunked array as this type.

    An equal type is left alone: Arrow's cast breaks arrays in which a struct of a list has a field that is always
    null.

    Raises:
        ArrowInvalid: A value would change.
        ArrowNotImplementedError: Arrow has no such cast.
    """
    if column.type.equals(kind):
        return column
    made = column.cast(kind)
    made.validate()
    return made


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table, with the values of `to_python`."""
    if not any(map(_has_time, table.schema.types)):
        with contextlib.suppress(ValueError):
            return table.to_pylist()  # several times faster
    columns = [to_python(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)] or [
        {} for _ in range(len(table))
    ]


def to_python(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Values in Python: dates, times and durations as text, at any depth.

    Text that is not UTF-8 has surrogate escapes.
    """
    kind = array.type
    if not _has_time(kind):
        with contextlib.suppress(ValueError):  # not UTF-8, or two fields of one name
            return array.to_pylist()
    if isinstance(array, pa.ChunkedArray):
        return list(chain.from_iterable(map(to_python, array.chunks)))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _texts(array)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        held = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in held]
    if isinstance(kind, pa.BaseExtensionType):
        return to_python(array.storage)
    if pa.types.is_dictionary(kind):
        return to_python(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return to_python(pc.run_end_decode(array))
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_map(kind):
        lists = (None if one.values is None else to_python(one.values) for one in array)
        return [None if one is None else [tuple(entry.values()) for entry in one] for one in lists]
    if pa.types.is_nested(kind) and not pa.types.is_union(kind):
        return [None if one.values is None else to_python(one.values) for one in array]
    return array.to_pylist()


@functools.lru_cache(maxsize=4096)
def _has_time(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_time(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _has_time(kind.value_type)
    return pa.types.is_temporal(kind) or any(_has_time(kind.field(i).type) for i in range(kind.num_fields))


def _structs(array: pa.StructArray) -> list[Any]:
    names: list[str] = []
    for field in array.type:
        name = field.name
        while name in names:
            name += ".1"
        names.append(name)
    columns = [to_python(column) for column in array.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    valid = array.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if there else None for row, there in zip(rows, valid, strict=True)]


def _texts(array: pa.Array) -> list[str | None]:
    """Dates, times and durations in ISO 8601: `datetime.isoformat`, within its range."""
    kind = array.type
    whole = pa.int32() if kind.bit_width == 32 else pa.int64()
    values = array.view(whole).to_pylist()
    if pa.types.is_date(kind):
        days = 1 if pa.types.is_date32(kind) else _DAY_MS
        return [None if value is None else _date(value // days) for value in values]
    per_second = _PER_SECOND[kind.unit]
    if pa.types.is_timestamp(kind):
        zone = _zone(kind.tz) if kind.tz else None
        return [None if value is None else _timestamp(value, per_second, zone) for value in values]
    form = _duration if pa.types.is_duration(kind) else _time
    return [None if value is None else form(value, per_second) for value in values]


def _date(days: int) -> str:
    try:
        return (date(1970, 1, 1) + timedelta(days)).isoformat()
    except OverflowError:
        return str(np.datetime64(days, "D"))


def _timestamp(value: int, per_second: int, zone: tzinfo | None) -> str:
    """ISO 8601 of a timestamp; outside Python's calendar in its zone, the same moment in UTC."""
    seconds, part = divmod(value, per_second)
    fraction = _fraction(part, per_second)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone or UTC).isoformat()
        return text[:19] + fraction + (text[19:] if zone else "")
    except (OverflowError, ValueError):
        return f"{np.datetime64(seconds, 's')}{fraction}{'+00:00' if zone else ''}"


def _time(value: int, per_second: int) -> str:
    seconds, part = divmod(abs(value), per_second)
    sign = "-" if value < 0 else ""
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{_fraction(part, per_second)}"


def _duration(value: int, per_second: int) -> str:
    seconds, part = divmod(abs(value), per_second)
    return f"{'-' if value < 0 else ''}PT{seconds}{_fraction(part, per_second)}S"


def _fraction(part: int, per_second: int) -> str:
    nanoseconds = part * (10**9 // per_second)
    if nanoseconds % 1000:
        return f".{nanoseconds:09}"
    return f".{nanoseconds // 1000:06}" if nanoseconds else ""


@functools.lru_cache
def _zone(name: str) -> tzinfo:
    try:
        zone: tzinfo = pa.lib.string_to_tzinfo(name)
    except Exception:  # whatever pytz, zoneinfo or Arrow raise for an unknown zone
        return UTC
    return zone
