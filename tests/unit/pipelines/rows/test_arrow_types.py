"""Columns that aren't ours: one type for many files, and every date that Arrow can hold as text."""

from datetime import UTC, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.rows.arrow_types import joined, storable, to_python, to_rows

BERLIN = pa.timestamp("us", "Europe/Berlin")


def of(kind: pa.DataType, *values: int | None) -> pa.Array:
    """An array of dates or times by their numbers, whatever Python thinks of them."""
    return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (BERLIN, 253402300799_000000, "9999-12-31T23:59:59+00:00"),
        (BERLIN, 1590000000_123456, "2020-05-20T20:40:00.123456+02:00"),
        (BERLIN, 253402300800_000001, "10000-01-01T00:00:00.000001+00:00"),
        (pa.timestamp("s"), 253402300800, "10000-01-01T00:00:00"),
        (pa.timestamp("ms"), -62135596800001, "0000-12-31T23:59:59.999000"),
        (pa.timestamp("ns", "UTC"), 1, "1970-01-01T00:00:00.000000001+00:00"),
        (pa.timestamp("us", "Mars/Phobos"), 0, "1970-01-01T00:00:00+00:00"),
        (pa.timestamp("s", "+02:30"), 0, "1970-01-01T02:30:00+02:30"),
        (pa.date32(), 2**31 - 1, "5881580-07-11"),
        (pa.date32(), 18262, "2020-01-01"),
        (pa.date64(), 86_400_000, "1970-01-02"),
        (pa.time64("ns"), 3_723_000_000_001, "01:02:03.000000001"),
        (pa.time64("us"), 86_400_000_000, "24:00:00"),
        (pa.time32("ms"), 1500, "00:00:01.500000"),
        (pa.duration("ns"), -1, "-PT0.000000001S"),
        (pa.duration("s"), 2**62, f"PT{2**62}S"),
    ],
)
def test_any_date_is_text_at_any_depth(kind, value, text):
    array = of(kind, value, None)
    assert to_python(array) == [text, None]
    lists = pa.ListArray.from_arrays([0, 2], array)
    assert to_python(lists) == [[text, None]]
    structs = pa.StructArray.from_arrays([lists, pa.array(["s"])], ["times", "text"])
    assert to_python(pa.chunked_array([structs])) == [{"times": [text, None], "text": "s"}]
    maps = pa.MapArray.from_arrays([0, 2], pa.array(["a", "b"]), array)
    assert to_python(maps) == [[("a", text), ("b", None)]]
    assert to_rows(pa.table({"x": array, "y": [1, 2]})) == [{"x": text, "y": 1}, {"x": None, "y": 2}]


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(minutes=-90))])))
def test_dates_that_python_knows_are_as_it_writes_them(moment):
    array = pa.array([moment], pa.timestamp("us", "UTC" if moment.tzinfo is UTC else "-01:30"))
    assert to_python(array) == [moment.isoformat()]
    assert to_python(pa.array([moment.replace(tzinfo=None)], pa.timestamp("us"))) == [
        moment.replace(tzinfo=None).isoformat()
    ]


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_no_moment_ends_a_run(value, unit):
    for kind in (pa.timestamp(unit), pa.timestamp(unit, "Asia/Kathmandu"), pa.duration(unit)):
        assert to_python(of(kind, value, 0))[0] is not None


def test_nulls_of_a_struct_and_odd_arrays():
    structs = pa.StructArray.from_arrays([of(BERLIN, 0, 0)], ["at"], mask=pa.array([False, True]))
    assert to_python(structs) == [{"at": "1970-01-01T01:00:00+01:00"}, None]
    assert to_python(pa.array([b"caf\xe9", None]).view(pa.string())) == ["caf\udce9", None]
    twins = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    assert to_python(twins) == [{"a": 1, "a.1": 2}]
    assert to_python(of(pa.date32(), 0, 0).dictionary_encode()) == ["1970-01-01"] * 2


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.decimal128(10, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
        (pa.list_(pa.int8()), pa.large_list(pa.float64()), pa.large_list(pa.float64())),
        (
            pa.struct([("a", pa.int8())]),
            pa.struct([("b", pa.string())]),
            pa.struct([("a", pa.int8()), ("b", pa.string())]),
        ),
        (pa.decimal128(10, 2), pa.float64(), None),
        (pa.bool_(), pa.int64(), None),
        (pa.int64(), pa.string(), None),
        (pa.string(), pa.binary(), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())]), None),
        (pa.list_(pa.int8()), pa.list_(pa.bool_()), None),
    ],
)
def test_types_are_joined_where_no_value_changes(a, b, both):
    assert joined(a, b) == both
    assert joined(b, a) == both or (pa.types.is_struct(both) and set(joined(b, a)) == set(both))
    assert joined(a, a) == a


def test_what_parquet_cannot_hold_is_known_before_it_is_written():
    assert storable(pa.struct([])) is None
    assert storable(pa.month_day_nano_interval()) is None
    assert storable(pa.timestamp("s")) == pa.timestamp("ms")
    assert storable(BERLIN) == BERLIN
