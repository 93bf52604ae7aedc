"""Rows of many kinds of files through a run: columns that aren't ours keep every value, in every format."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documentation import python_blocks
from passing import objects, passed
from paths import ROOT
from pydantic import TypeAdapter, ValidationError

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.formats import FORMATS, FormatName
from llm_blender_ray.pipelines.rows.arrow_types import to_python
from llm_blender_ray.pipelines.rows.columns import inspect_columns
from llm_blender_ray.pipelines.rows.compression import CODECS, Codec
from llm_blender_ray.pipelines.rows.formats import kind
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row
from llm_blender_ray.pipelines.rows.writers import BlendShape, Sink

FAR = 253402300799_000000  # 9999-12-31 23:59:59 UTC, the year 10000 in Berlin


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(str(content))
    return path


def column(path: Path, name: str) -> tuple[pa.DataType, list]:
    table = pq.read_table(path)
    return table.schema.field(name).type, to_python(table.column(name))


@pytest.mark.parametrize("names", [("a.parquet", "b.jsonl"), ("b.parquet", "a.jsonl")])
def test_a_column_of_parquet_and_of_json_is_one_column(tmp_path, names):
    source = tmp_path / "in"
    given = [{"model": "m", "text": "t"}]
    native = {"id": ["p1"], "prompt": ["q1"], "source": ["web"], "n": [2**60 + 1], "candidates": [given]}
    write(source, names[0], native)
    rows = [{"id": "j1", "prompt": "q2", "source": "book", "lang": "de", "n": 7, "candidates": given}]
    write(source, names[1], rows)
    write(source, "c.csv", "id,prompt,source\nc1,q3,paper\n")
    by_id = {row["id"]: row for row in objects(source, tmp_path)}
    assert {name: row["source"] for name, row in by_id.items()} == {"p1": "web", "j1": "book", "c1": "paper"}
    assert (by_id["p1"]["n"], by_id["j1"]["n"], by_id["j1"]["lang"]) == (2**60 + 1, 7, "de")
    out = passed(source, tmp_path / "out.parquet")
    kind, values = column(out, "n")
    ids = column(out, "id")[1]
    assert (kind, dict(zip(ids, values, strict=True))) == (pa.int64(), {"p1": 2**60 + 1, "j1": 7, "c1": None})
    assert sorted(column(out, "source")[1]) == ["book", "paper", "web"]
    assert "book" in passed(source, tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("native", "key", "kind", "both"),
    [
        (pa.array([2**60 + 1]), 1.5, pa.string(), [str(2**60 + 1), "1.5"]),
        (pa.array([5]), 1.5, pa.float64(), [5.0, 1.5]),
        (pa.array([2**60 + 1]), "x", pa.string(), [str(2**60 + 1), '"x"']),
        (pa.array([2**64 - 1], pa.uint64()), 1, pa.string(), [str(2**64 - 1), "1"]),
        (pa.array([1.5]), 2**60 + 1, pa.string(), ["1.5", str(2**60 + 1)]),
        (pa.array([2**60 + 1]), None, pa.int64(), [2**60 + 1, None]),
        (pa.array([0], pa.timestamp("us")), "later", pa.string(), ["1970-01-01T00:00:00", "later"]),
        (pa.array([b"\x00"]), "x", pa.string(), ["AA==", "x"]),
        (pa.array([{"a": 1}]), {"b": "x"}, None, [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        (pa.array([[1]]), [2**60], pa.list_(pa.int64()), [[1], [2**60]]),
        (pa.array([None], pa.null()), 3, pa.int64(), [None, 3]),
    ],
)
def test_types_of_parquet_and_json_are_joined_as_those_of_json_are(tmp_path, native, key, kind, both):
    write(tmp_path, "in/a.parquet", {"prompt": ["a"], "x": native})
    write(tmp_path, "in/b.jsonl", [{"prompt": "b", "x": key}])
    found, values = column(passed(tmp_path / "in", tmp_path / "out.parquet"), "x")
    assert values == both
    assert kind is None or found.equals(kind) or pa.types.is_list(kind)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ((pa.array(["a"]).dictionary_encode(), pa.array(["b"])), ["a", "b"]),
        ((pa.array([0], pa.date32()), pa.array([0], pa.timestamp("us"))), ["1970-01-01", "1970-01-01T00:00:00"]),
        ((pa.array([True]), pa.array([5])), [True, 5]),
        (
            (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("us", "UTC"))),
            ["1970-01-01T00:00:00", "1970-01-01T00:00:00+00:00"],
        ),
        ((pa.array([5]), pa.array(["x"])), [5, "x"]),
        ((pa.array([2**60 + 1]), pa.array([1.5])), [2**60 + 1, 1.5]),
        ((pa.array([2**63], pa.uint64()), pa.array([-1])), [2**63, -1]),
        ((pa.array([FAR], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))), None),
        ((pa.array([{"a": 1}]), pa.array([{"a": "x"}])), [{"a": 1}, {"a": "x"}]),
        ((pa.array([[True]]), pa.array([[1]])), [[True], [1]]),
    ],
)
def test_parquet_files_may_differ(tmp_path, columns, values):
    for name, ordered in (("in", columns), ("back", columns[::-1])):
        for i, one in enumerate(ordered):
            write(tmp_path, f"{name}/{i}.parquet", {"prompt": ["p"], "x": one, "y": [1]})
    found = [row["x"] for row in objects(tmp_path / "in", tmp_path)]
    assert found == (values or ["9999-12-31T23:59:59", "1970-01-01T00:00:00.000000001"])
    assert [row["x"] for row in objects(tmp_path / "back", tmp_path)] == found[::-1]
    table = pq.read_table(passed(tmp_path / "in", tmp_path / "out.parquet"))
    assert table.column("x").null_count == 0
    assert table.column("y").to_pylist() == [1, 1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_date_that_python_cannot_hold_passes(tmp_path, wrapped):
    when: pa.Array = pa.array([FAR, None], pa.int64()).view(pa.timestamp("us", "Europe/Berlin"))
    if wrapped:
        lists = pa.ListArray.from_arrays([0, 1, 2], when)
        when = pa.StructArray.from_arrays([lists, pa.array([1, 2])], ["valid_to", "n"])
    candidates = pa.array([[{"model": "m", "text": "t"}], []])
    source = write(tmp_path, "in.parquet", {"prompt": ["a", "b"], "when": when, "candidates": candidates})
    kind, values = column(passed(source, tmp_path / "out.parquet"), "when")
    assert (str(kind).replace("element", "item"), values) == (
        str(when.type).replace("element", "item"),
        to_python(when),
    )
    assert "9999-12-31T23:59:59+00:00" in json.dumps(objects(source, tmp_path)[0]["when"])
    assert "9999-12-31T23:59:59+00:00" in passed(source, tmp_path / "out.csv").read_text()
    assert len(list(read_rows(str(source)))) == 2


def test_a_date_in_a_candidate_or_a_column_of_ours_passes(tmp_path):
    at = pa.array([FAR], pa.int64()).view(pa.timestamp("us", "Europe/Berlin"))
    one = pa.StructArray.from_arrays([pa.array(["m"]), pa.array(["t"]), at], ["model", "text", "at"])
    source = write(
        tmp_path, "a.parquet", {"id": at, "prompt": ["a"], "candidates": pa.ListArray.from_arrays([0, 1], one)}
    )
    row = objects(source, tmp_path)[0]
    assert (row["id"], row["candidates"][0]["at"], row["error"]) == (*["9999-12-31T23:59:59+00:00"] * 2, None)


def test_nanoseconds_stay(tmp_path):
    times = pa.array([3_723_000_000_001], pa.time64("ns"))
    source = write(tmp_path, "a.parquet", {"prompt": ["a"], "time": times})
    assert objects(source, tmp_path)[0]["time"] == "01:02:03.000000001"


def test_text_that_is_not_utf8_does_not_end_a_run(tmp_path):
    broken = pa.array([b"caf\xe9", b"good"]).view(pa.string())
    source = write(tmp_path, "a.parquet", {"prompt": broken, "note": broken})
    first, second = objects(source, tmp_path)
    assert "prompt: text with half" in first["error"]
    assert (first["note"], second["note"], second["error"]) == ("caf\udce9", "good", None)
    out = pq.read_table(passed(source, tmp_path / "out.parquet")).column("note")
    assert out.cast(pa.binary()).to_pylist() == [b"caf\xe9", b"good"]


def test_an_odd_key_goes_to_extra_alone(tmp_path):
    rows = [
        {"prompt": "a", "source": "web", "year": 1},
        {"prompt": "b", "note\u00a0x": 1, "extra": {"mine": 2}, "a.b": 3},
        {"prompt": "c", "": 2, "year": 2, "tab\t": None},
        {"prompt": "d", "candidates": [{"model": "m", "text": "t", "\n": 1, "rank": 3}]},
    ]
    source = write(tmp_path, "in.jsonl", rows)
    table = pq.read_table(passed(source, tmp_path / "out.parquet"))
    assert table.schema.names == ["id", "prompt", "source", "year", "a.b", "extra", "candidates", "error"]
    assert table.column("year").to_pylist() == [1, None, 2, None]
    assert [one and json.loads(one) for one in table.column("extra").to_pylist()] == [
        None,
        {"note\u00a0x": 1, "extra": {"mine": 2}},
        {"": 2, "tab\t": None},
        None,
    ]
    candidate = table.column("candidates").to_pylist()[3][0]
    assert (candidate["rank"], json.loads(candidate["extra"])) == (3, {"\n": 1})
    out = [
        {k: v for k, v in row.items() if k in given}
        for row, given in zip(objects(source, tmp_path), rows, strict=True)
    ]
    assert [row | {"candidates": 0} for row in out] == [row | {"candidates": 0} for row in rows]
    csv = passed(source, tmp_path / "out.csv").read_text().splitlines()
    assert csv[0] == "id,prompt,source,year,a.b,extra,candidates,error"


def test_a_name_given_twice_loses_no_value(tmp_path):
    line = '{"prompt": "p", "x": 1, "x": 2, "deep": {"y": 1, "y": 2}}'
    for name, text in (("a.jsonl", line + "\n"), ("b.json", f"[{line}]")):
        row = objects(write(tmp_path, name, text), tmp_path)[0]
        assert (row["x"], row["deep"], row["raw"], row["error"]) == (2, {"y": 2}, line, None)


def test_a_broken_list_keeps_all_that_is_not_read(tmp_path):
    rest = '{"prompt": }, ' + json.dumps({"prompt": "x" * 5000}) + "]"
    row = objects(write(tmp_path, "a.json", '[{"prompt": "a"}, ' + rest), tmp_path)[1]
    assert row["raw"] == rest


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_of_either_format(tmp_path, kind):
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "when": pa.array([2**62, 0], pa.timestamp("s")),  # Parquet has no seconds, and no such year
            "step": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
            "empty": pa.array([{}, {}], pa.struct([])),
            "label": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    path = tmp_path / "in.arrow"
    with path.open("wb") as file, getattr(pa.ipc, f"new_{kind}")(file, table.schema) as writer:
        writer.write_table(table)
    first, second = objects(path, tmp_path)
    assert (first["when"], first["step"], first["label"]) == ("146138514283-06-19T07:45:04", [1, 2, 3], "x")
    assert (second["when"], second["empty"]) == ("1970-01-01T00:00:00", {})
    again = objects(passed(path, tmp_path / "out.arrow"), tmp_path)
    assert [(row["prompt"], row["when"]) for row in again] == [
        (row["prompt"], row["when"]) for row in (first, second)
    ]
    (tmp_path / "broken.arrow").write_bytes(path.read_bytes()[:100])
    with pytest.raises(BlendError, match=r"broken\.arrow: not a readable Arrow file"):
        list(read_rows(str(tmp_path / "broken.arrow")))


@pytest.mark.parametrize("ending", [".tsv", ".csv.xz", ".jsonl.zst", ".json.bz2", ".jsonl.gz", ".arrow"])
def test_every_format_comes_back(tmp_path, ending):
    source = write(tmp_path, "in.jsonl", [{"id": "1", "prompt": 'a\t"b",\nc', "n": 1}, {"id": "2", "prompt": "é"}])
    back = list(read_rows(str(passed(source, tmp_path / f"out{ending}"))))
    assert [(row["id"], row["prompt"]) for row in back] == [("1", 'a\t"b",\nc'), ("2", "é")]


def test_a_field_that_is_always_null_passes(tmp_path):
    """Arrow's cast breaks such arrays."""
    nested = pa.array([{"a": [{"b": None, "c": "x"}]}, None])
    source = write(tmp_path, "a.parquet", {"prompt": ["p", "q"], "x": nested, "y": pa.nulls(2)})
    assert column(passed(source, tmp_path / "out.parquet"), "x")[1] == nested.to_pylist()


def test_a_column_called_raw_is_kept_beside_what_is_wrong(tmp_path):
    source = write(tmp_path, "a.parquet", {"prompt": ["p", "q"], "raw": [1, 2], "candidates": [5, None]})
    bad, good = objects(source, tmp_path)
    assert json.loads(bad["raw"])["raw"] == 1
    assert good["raw"] == 2


def part_of(folder: Path, rows: list[dict[str, Any]], format: str) -> Path:
    """One part of a folder, written by a sink."""
    table = pa.Table.from_pylist([read_row(row, "a") for row in rows], schema=ROW_SCHEMA)
    shape = BlendShape(Layout.of(inspect_columns(table), {}, ()))
    Sink(Output(str(folder), format), shape, "0" * 16).piece(3, table)
    return folder / f"part-000003-0000000000000000.{format}"


def test_a_format_is_one_class_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = python_blocks(ROOT / "docs" / "extending.md", "A file format")
    names: dict[str, Any] = {"__name__": "blend_toy"}
    exec(code, names)
    monkeypatch.setattr(FORMATS, "_added", {"prompts": names["Prompts"]})
    written = passed(write(tmp_path, "a.jsonl", [{"prompt": "x"}, {"prompt": "y"}]), tmp_path / "b.prompts.gz")
    assert gzip.decompress(written.read_bytes()) == b"x\ny\n"
    assert [row["prompt"] for row in read_rows(str(written))] == ["x", "y"]
    assert TypeAdapter(FormatName).validate_python("prompts") == "prompts"
    assert part_of(tmp_path / "out", [{"prompt": "z"}], "prompts").read_text() == "z\n"
    assert Output(str(tmp_path / "out")).is_taken(overwrite=True)


@pytest.mark.parametrize("format", FORMATS.names())
def test_a_folder_has_parts_of_any_format(format: str, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "x", "candidates": ["a", "b"]},
        {"id": "2", "prompt": 'y,"\n', "candidates": ["c"]},
    ]
    part_of(tmp_path, rows, format)
    assert Output(str(tmp_path)).is_taken(overwrite=True)
    found = [
        (row["id"], row["prompt"], [one["text"] for one in row["candidates"]]) for row in read_rows(str(tmp_path))
    ]
    assert found == [(row["id"], row["prompt"], row["candidates"]) for row in rows]


def test_a_compression_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(zlib_reader, zlib_writer)
    monkeypatch.setitem(CODECS, ".zz", codec)
    written = passed(write(tmp_path, "a.jsonl", [{"prompt": "x"}]), tmp_path / "b.jsonl.zz")
    assert b"prompt" in zlib.decompress(written.read_bytes())
    assert [row["prompt"] for row in read_rows(str(written))] == ["x"]


def zlib_reader(file: IO[bytes]) -> IO[bytes]:
    return io.BytesIO(zlib.decompress(file.read()))


@contextlib.contextmanager
def zlib_writer(file: IO[bytes]) -> Iterator[IO[bytes]]:
    held = io.BytesIO()
    yield held
    file.write(zlib.compress(held.getvalue()))


def test_what_cannot_be_used_as_a_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="unknown file format 'xlsx', expected one of jsonl, ndjson, json"):
        TypeAdapter(FormatName).validate_python("xlsx")
    monkeypatch.setattr(FORMATS, "_added", {"xlsx": object})
    with pytest.raises(BlendError, match=r"file format \.xlsx: expected a subclass of Format, got"):
        kind("a.xlsx.gz")
