"""Types of JSON values: the algebra that joins them, and what is written as such a type."""

import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.columns import EMPTY, JSON, MAX_DEPTH, MAX_FIELDS, fit, infer, stored, unify

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
        assert (value is None) == (row is None)
        if kind == JSON and row is not None:
            assert same(json.loads(value), row)
        elif isinstance(row, bool | int | str):
            assert value == row or (isinstance(row, int) and math.isclose(value, row))


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
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert infer(deep) != infer(deep[0])
    assert pa.array([fit(deep, infer(deep))], stored(infer(deep))).to_pylist() != [deep]  # text at the bottom
    assert infer({"": 1}) == infer({"\ud800": 1}) == infer({"a\nb": 1}) == JSON
    assert infer({str(i): i for i in range(MAX_FIELDS + 1)}) == JSON
    assert fit({}, EMPTY) == "{}"
    assert stored(pa.null()) == pa.string()
    assert fit("half \ud83d", pa.string()) == "half ?"
