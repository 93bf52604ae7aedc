"""CSV that isn't quite CSV: every character of a file is in some row, and a stray quote costs its own line."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.rows.formats.base import Origin
from llm_blender_ray.pipelines.rows.formats.delimited import _Records
from llm_blender_ray.pipelines.rows.readers import read_rows


def rows_of(folder: Path, text: str, name: str = "a.csv") -> list[dict]:
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return list(read_rows(str(folder / name)))


def raw(row: dict) -> str:
    return json.loads(row["extra"])["raw"]


@pytest.mark.parametrize("at", [0, 4, 38, 39])
@pytest.mark.parametrize(
    ("name", "end"), [("a.csv", "\n"), ("a.csv", "\r\n"), ("a.csv.gz", "\n"), ("a.csv.bz2", "\n")]
)
def test_a_stray_quote_costs_one_line(tmp_path, at, name, end):
    import bz2

    stray = f'u{at},"Halt, he said'
    lines = ["id,prompt", *(stray if i == at else f"u{i},question {i}" for i in range(40))]
    data = end.join([*lines, ""]).encode()
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(name.split(".")[-1], bytes)
    (tmp_path / name).write_bytes(pack(data))
    rows = list(read_rows(str(tmp_path / name)))
    assert len(rows) == 40
    assert [i for i, row in enumerate(rows) if row["error"]] == [at]
    assert raw(rows[at]) == stray
    assert rows[at]["error"].startswith(f"{name} line {at + 2}: not CSV: a quote isn't closed")
    assert [row["id"] for i, row in enumerate(rows) if i != at] == [f"u{i}" for i in range(40) if i != at]


def test_rows_after_stray_quotes_are_read_and_quoted_cells_stay_whole(tmp_path):
    text = 'id,prompt\n1,"Halt\n2,b\n3,"two\nlines, ""quoted"""\n4,"Stop\n5,e\n6,"x" y\n7,"x" y\n'
    rows = rows_of(tmp_path, text)
    assert [(row["id"], row["prompt"]) for row in rows if not row["error"]] == [
        ("2", "b"),
        ("3", 'two\nlines, "quoted"'),
        ("5", "e"),
    ]
    bad = [row for row in rows if row["error"]]
    assert [raw(row) for row in bad] == ['1,"Halt', '4,"Stop', '6,"x" y', '7,"x" y']
    assert len({row["id"] for row in bad}) == 4
    assert [row["error"].partition(": ")[0] for row in bad] == [f"a.csv line {line}" for line in (2, 6, 8, 9)]


@pytest.mark.parametrize(
    ("text", "swallowed", "said", "after"),
    [
        (
            '5,"cut off\nin the\nmiddle of',
            '5,"cut off\nin the\nmiddle of',
            "lines 2 to 4, the rest of the file,",
            [],
        ),
        ('5,"two\nlines, or so" x\n6,b\n', '5,"two\nlines, or so" x', "lines 2 to 3 are not read as rows", ["6"]),
        ('5,"two\nlines",x\n6,b\n', '5,"two\nlines",x', "3 cells, expected 2; lines 2 to 3 are", ["6"]),
        ('5,a,"b,c"\n6,b\n', '5,a,"b,c"', "line 2: 3 cells, expected 2", ["6"]),
    ],
)
def test_what_does_not_look_like_rows_is_kept_as_text(tmp_path, text, swallowed, said, after):
    bad, *rest = rows_of(tmp_path, f"id,prompt\n{text}")
    assert raw(bad) == swallowed
    assert said in bad["error"]
    assert [row["id"] for row in rest] == after


def further(row):
    """The row's other columns, without what marks an id that was made."""
    return {name: value for name, value in json.loads(row["extra"]).items() if not name.startswith("\0")}


def test_nameless_columns_get_names_and_empty_ones_none(tmp_path):
    pandas = rows_of(tmp_path, ",Unnamed: 0,prompt,source\n0,7,a,web\n1,8,b,book\n")
    assert [further(row) for row in pandas] == [
        {"Unnamed: 0.1": "0", "Unnamed: 0": "7", "source": "web"},
        {"Unnamed: 0.1": "1", "Unnamed: 0": "8", "source": "book"},
    ]
    excel = rows_of(tmp_path, ",,,\nprompt,source,,\na,web,,\n,,,\n,,,,,\nb,,x,\n")
    assert [(row["prompt"], row["error"]) for row in excel] == [("a", None), ("b", None)]
    assert [further(row) for row in excel] == [
        {"source": "web"},
        {"source": "", "Unnamed: 2": "x"},
    ]


def test_tabs_separate_tsv(tmp_path):
    first, second = rows_of(tmp_path, 'id\tprompt\n1\ta, b\n2\t"c\td"\n', "a.tsv")
    assert (first["prompt"], second["prompt"]) == ("a, b", "c\td")


pieces = st.lists(
    st.sampled_from(["a", "b", ",", '"', '""', "\n", '\n1,"', '",', "\r\n", "é", "1,x\n"]), max_size=40
)


@given(pieces, st.integers(1, 3))
@example(['""', "\r\n", '"'], 1)  # the blank line's quotes are no part of the record
def test_every_line_is_in_some_record(parts, columns):
    """Whatever quotes do: no character but those of blank lines is passed over, and none is there twice."""
    header = ",".join(f"c{i}" for i in range(columns))
    body = "".join(parts)
    records = _Records(io.BytesIO(f"{header}\n{body}".encode()), ",", Origin("a.csv", "a.csv"))
    lines = io.StringIO(body, newline="").readlines()
    passed_over, read = [], 0
    for place, text, _, _ in records:
        first = int(place.rpartition(" ")[2]) - 2  # the header is line 1
        passed_over += lines[read:first]
        read = first + len(io.StringIO(text, newline="").readlines())
        assert "".join(lines[first:read]).rstrip("\r\n") == text.rstrip("\r\n")
    assert not any(any(cells) for line in (*passed_over, *lines[read:]) for cells in csv.reader([line]))
