"""Types of JSON values: the algebra that joins them, and what is written as such a type."""

import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.rows.arrow_types import to_python
from llm_blender_ray.pipelines.rows.columns import (
    EMPTY,
    JSON,
    LARGE,
    MAX_FIELDS,
    MAX_TYPE_DEPTH,
    NAN,
    OTHER_KEYS,
    as_json,
    fit,
    infer,
    infer_array,
    infer_row,
    stored,
    unify,
    unify_rows,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
types = values.map(infer)


def unordered(kind: pa.DataType) -> object:
    """A type without the order of its fields, which is that of their first appearance."""
    if pa.types.is_struct(kind):
        return frozenset((field.name, unordered(field.type)) for field in kind)
    return ("list", unordered(kind.value_type)) if pa.types.is_list(kind) else kind


@given(types, types, types)
def test_joining_types_does_not_depend_on_the_order_of_rows(a, b, c):
    assert unordered(unify(a, b)) == unordered(unify(b, a))
    assert unordered(unify(a, unify(b, c))) == unordered(unify(unify(a, b), c))
    assert unify(a, a) == a
    assert unify(unify(a, b), a) == unify(a, b)


@given(st.lists(values, min_size=1, max_size=5))
def test_every_value_can_be_written_as_the_joined_type(rows):
    kind = pa.null()
    for row in rows:
        kind = unify(kind, infer(row))
    column = pa.array([fit(row, kind) for row in rows], stored(kind))
    file = io.BytesIO()
    pq.write_table(pa.table({"column": column}), file)
    back = pq.read_table(file).column("column").to_pylist()
    for row, value in zip(rows, back, strict=True):
        missing = row is None or (row != row and kind not in (NAN, pa.float64()))
        assert (value is None) == missing
        if kind == JSON and not missing:
            assert same(json.loads(value), row)
        elif isinstance(row, bool | int | str):
            assert value == row


def same(read: object, written: object) -> bool:
    """Equal, but for the numbers that JSON doesn't have."""
    if isinstance(written, float):
        return read == written or (read is None and not math.isfinite(written))
    if isinstance(written, list):
        return len(read) == len(written) and all(map(same, read, written))
    if isinstance(written, dict):
        return read.keys() == written.keys() and all(same(read[key], written[key]) for key in written)
    return read == written


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (1, 1.5, pa.float64()),
        (2**53 + 1, 1.5, JSON),
        (-(2**63), 1, LARGE),
        (2**53 + 1, math.nan, LARGE),
        (math.nan, 1.5, pa.float64()),
        (math.nan, None, NAN),
        (math.nan, "a", pa.string()),
        ([2**60], [math.nan], pa.list_(LARGE)),
        (1, "1", JSON),
        (True, 1, JSON),
        (None, "a", pa.string()),
        (1, 2**63, JSON),
        ([], [1], pa.list_(pa.int64())),
        ([1], "1", JSON),
        ({"a": 1}, {"b": "x"}, pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ({"a": 1}, {"a": "x"}, pa.struct([("a", JSON)])),
        ({"a": 1}, [1], JSON),
    ],
)
def test_joined_types(one, other, joined):
    assert unify(infer(one), infer(other)) == joined


def test_what_no_column_can_hold_is_json_text():
    deep: object = 1
    for _ in range(MAX_TYPE_DEPTH + 1):
        deep = [deep]
    assert infer(deep) != infer(deep[0])
    assert pa.array([fit(deep, infer(deep))], stored(infer(deep))).to_pylist() != [deep]  # text at the bottom
    assert infer({"": 1}) == infer({"\ud800": 1}) == infer({"a\nb": 1}) == JSON
    assert infer({str(i): i for i in range(MAX_FIELDS + 1)}) == JSON
    assert fit({}, EMPTY) == "{}"
    assert stored(pa.null()) == pa.string()
    assert fit("half \ud83d", pa.string()) == "half ?"


def test_64_bit_numbers_are_integers_where_they_can_be() -> None:
    kind = unify(infer(1234567890123456789), infer(math.nan))
    assert stored(kind) == pa.int64()
    assert fit(math.nan, kind) is None
    assert stored(infer(math.nan)) == pa.float64()


rows = st.dictionaries(st.sampled_from(["a", "b", "", "c\u00a0d", "extra", "e.f"]), values, max_size=5)


@given(rows, rows, rows)
def test_an_odd_key_leaves_the_columns_of_the_others_alone(a, b, c):
    one, two, three = map(infer_row, (a, b, c))
    assert unordered(unify_rows(one, two)) == unordered(unify_rows(two, one))
    assert unordered(unify_rows(one, unify_rows(two, three))) == unordered(unify_rows(unify_rows(one, two), three))
    names = {field.name for field in one} - {OTHER_KEYS}
    assert names == {key for key in a if key in ("a", "b", "extra", "e.f")}
    assert (one.get_field_index(OTHER_KEYS) >= 0) == (len(names) < len(a))


def test_very_many_keys_leave_the_same_columns_whatever_their_order():
    many = {f"key{i}": i for i in range(2 * MAX_FIELDS)}
    first, *rest = [infer_row(dict([item])) for item in many.items()]
    joined = first
    for kind in reversed(rest):
        joined = unify_rows(joined, kind)
    assert unordered(joined) == unordered(infer_row(many))
    assert len(joined) == MAX_FIELDS + 1


@given(st.lists(values, max_size=6))
def test_the_type_of_an_arrow_array_holds_its_values(items):
    kind = pa.null()
    for item in items:
        kind = unify(kind, infer(item))
    array = pa.array([fit(item, kind) for item in items], stored(kind))
    kind = infer_array(array)
    found = pa.array([fit(as_json(value), kind) for value in to_python(array)], stored(kind))
    if found.type == array.type:
        assert repr(found.to_pylist()) == repr(array.to_pylist())
    else:  # what no value had
        assert found.null_count >= array.null_count
