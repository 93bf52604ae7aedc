"""Files to rows: every kind of file, every way in which one can be bad."""

import gzip
import json
from decimal import Decimal
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, parse_json, write_row


def rows_of(path, limit=None):
    return list(read_rows(str(path), limit))


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


MIXED = {
    "id": "a/1",
    "instruction": "Sum up.",
    "input": "A text.",
    "output": "A sum.",
    "dataset": "x",
    "candidates": [{"decoding_method": "top_p", "model": "m", "text": "t", "scores": {"bleu": 3, "rouge": 0.5}}],
}


def test_a_mixinstruct_row_comes_back_as_it_came(tmp_path):
    row = rows_of(write(tmp_path, "a.jsonl", jsonl(MIXED)))[0]
    assert set(row) == set(ROW_SCHEMA.names)
    assert (row["id"], row["instruction"], row["output"], row["error"]) == ("a/1", "Sum up.", "A sum.", None)
    assert row["candidates"][0]["text"] == "t"
    out = write_row(row, ["ranking"])
    contract = dict.fromkeys(("error", "finish_reason", "prompt_tokens", "completion_tokens"))
    assert out == MIXED | {"candidates": [MIXED["candidates"][0] | contract], "ranking": None, "error": None}
    assert list(out) == ["id", "instruction", "input", "output", "dataset", "candidates", "ranking", "error"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "extra": {"extra": 1}, "raw": [1, "a", None]},
        {"prompt": "p", "input": None, "big": 2**80, "float": 1e-300, "text": "\u2028 \x00 é 😀"},
        {"prompt": "p", "": 1, "nested": {"deep": [[{"x": None}]]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "p"}], "name": "me"}]},
        {"prompt": "p", "candidates": [{"model": "m", "text": "t", "extra": "mine", "scores": [1, None]}]},
        {"prompt": "p", "x": "half a pair \ud83d", "\udc00": 1},
    ],
)
def test_unknown_keys_lose_nothing(tmp_path, row):
    out = write_row(rows_of(write(tmp_path, "a.jsonl", jsonl(row)))[0], [])
    assert out.pop("error") is None
    assert out.pop("id")
    candidates = out.pop("candidates")
    for given, candidate in zip(row.pop("candidates", []), candidates, strict=True):
        assert {key: candidate[key] for key in given} == given
    assert out == row


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{bad", "not JSON: Expecting property name"),
        (b'"text"', "expected a JSON object, got str"),
        (b"[1]", "expected a JSON object, got list"),
        (b"{}", "no prompt"),
        (b'{"prompt": " "}', "the prompt is empty"),
        (b'{"instruction": 5}', "instruction: expected text, got int"),
        (
            b'{"instruction": 1, "input": ["x"]}',
            "instruction: expected text, got int; input: expected text, got list",
        ),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: invalid continuation byte at byte 16"),
        (b'{"prompt": "\\ud83d"}', "prompt: text with half of a surrogate pair"),
        (b'{"prompt": "p", "id": {"a": 1}}', "id: expected text or a number"),
        (b'{"prompt": "p", "id": "\\ud83d"}', "id: expected text or a number"),
        (b'{"prompt": "p", "messages": "hi"}', "messages: expected a list"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "messages[0].content: text with half"),
        (b'{"prompt": "p", "candidates": "x"}', "candidates: expected a list, got str"),
        (b'{"prompt": "p", "n": ' + b"1" * 5000 + b"}", "not JSON: a number of too many digits"),
        (b'{"prompt": "p", "n": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper than 100 levels"),
        (b'{"prompt": "p", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 100 levels"),
    ],
)
def test_a_bad_line_is_a_row_that_says_why_and_keeps_what_it_held(tmp_path, line, why):
    path = write(tmp_path, "a.jsonl", b'{"prompt": "first"}\n\n' + line + b'\n{"prompt": "last"}\n')
    first, bad, last = rows_of(path)
    assert (first["prompt"], first["error"], last["prompt"], last["error"]) == ("first", None, "last", None)
    assert bad["error"].startswith("a.jsonl line 3: ")
    assert why in bad["error"]
    assert "\n" not in bad["error"]
    assert bad["id"]
    held = write_row(bad, [])
    if line.startswith(b'{"prompt": "p"') and "not JSON" not in why and "nested" not in why:
        assert held["prompt"] == "p"
        assert json.loads(held["raw"]).items() <= json.loads(line).items()
    elif why.startswith(("not JSON", "nested", "expected a JSON object")):
        assert held["raw"] == line.decode()


def test_the_bytes_of_a_line_that_is_not_utf8_are_told(tmp_path):
    bad = rows_of(write(tmp_path, "a.jsonl", b'{"prompt": "caf\xe9"}\n'))[0]
    assert write_row(bad, [])["raw"] == '{"prompt": "caf\\xe9"}'


def test_ids_are_text_and_made_from_the_content_when_missing(tmp_path):
    rows = [
        {"prompt": "a"},
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "c", "id": 7},
        {"prompt": "c", "id": 7},
    ]
    ids = [row["id"] for row in rows_of(write(tmp_path, "a.jsonl", jsonl(*rows)))]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3:] == ["7", "7"]


def test_an_error_that_came_with_a_row_stays(tmp_path):
    row = {"id": "1", "prompt": "p", "error": "all LLMs failed"}
    assert rows_of(write(tmp_path, "a.jsonl", jsonl(row, {**row, "error": ""})))[0]["error"] == "all LLMs failed"
    assert rows_of(tmp_path / "a.jsonl")[1]["error"] is None


def test_nan_is_read_and_written_as_null(tmp_path):
    from llm_blender_ray.pipelines.rows.schema import to_json

    row = rows_of(write(tmp_path, "a.jsonl", '{"prompt": "p", "metric": [NaN, -Infinity, 1.5]}\n'))[0]
    assert row["error"] is None
    assert '"metric": [null, null, 1.5]' in to_json(write_row(row, []))


@pytest.mark.parametrize(
    "number", ["1e400", "-Infinity", "3.14159265358979323846", "1e-400", "1.7e-323", "123456789012345678.5"]
)
def test_a_number_that_no_double_holds_keeps_its_text(tmp_path: Path, number: str) -> None:
    line = f'{{"prompt": "p", "x": [{number}]}}'
    out = write_row(rows_of(write(tmp_path, "a.jsonl", line + "\n"))[0], [])
    assert out["raw"] == line and out["error"] is None


@hypothesis.given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_number_is_itself_or_lossy(number: Decimal) -> None:
    text = f"{number:E}" if "." in str(number) or "E" in str(number) else f"{number}.0"
    value, _, lossy = parse_json(text)
    assert lossy or Decimal(repr(value)) == number


def test_bom_windows_lines_and_a_last_line_without_end(tmp_path):
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [(row["prompt"], row["error"]) for row in rows_of(path)] == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"}]', ["a", "b"]),
        ('\ufeff [\n{"prompt": "a"}\n,\n{"prompt": "b"},\n]\n', ["a", "b"]),
        ("[]", []),
        ("", []),
        ('{\n "prompt": "a"\n}', ["a"]),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
        ('[{"prompt": "a"}, 5, {"prompt": "b"}]', ["a", None, "b"]),
        ('[{"prompt": "a"}, {"prompt": }, {"prompt": "b"}]', ["a", None]),
        ('[{"prompt": "a"} {"prompt": "b"}]', ["a", None]),
        ('[{"prompt": "a"}', ["a", None]),
        ('[{"prompt": "a"}] and more', ["a", None]),
    ],
)
def test_json_files(tmp_path, content, prompts):
    rows = rows_of(write(tmp_path, "a.json", content))
    assert [row["prompt"] for row in rows] == prompts
    assert [row["error"] is None for row in rows] == [prompt is not None for prompt in prompts]
    assert all(row["error"].startswith("a.json") for row in rows if row["error"])


def test_csv(tmp_path):
    content = (
        '\ufeffid,prompt,n,ranking,candidates\r\n1,"a\nb",007,[0],"[{""text"": ""t"", ""x"": 1}]"\r\n\r\n2,c,,,\r\n'
    )
    first, second = rows_of(write(tmp_path, "a.csv", content))
    assert (first["id"], first["prompt"], first["ranking"], first["error"]) == ("1", "a\nb", [0], None)
    assert write_row(first, [])["n"] == "007"
    assert (second["candidates"], second["ranking"], second["error"]) == (None, None, None)
    assert write_row(second, [])["n"] == ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"x,1,2\n", "a.csv line 3: 3 cells, expected 2"),
        (b"caf\xe9,1\n", "a.csv line 3: not UTF-8"),
        (b'"x"y,1\n', "a.csv line 3: not CSV"),
        (b"x,[0\n", "a.csv line 3: candidates: expected a list, got str"),
    ],
)
def test_a_bad_csv_line_is_a_row(tmp_path, line, why):
    first, bad, last = rows_of(write(tmp_path, "a.csv", b"prompt,candidates\nfirst,\n" + line + b"last,\n"))
    assert bad["error"].startswith(why)
    assert (first["error"], last["error"]) == (None, None)


def test_parquet_keeps_native_columns_and_reads_candidates(tmp_path):
    table = pa.table(
        {
            "id": [1, 2],
            "instruction": pa.array(["a", None]).dictionary_encode(),
            "candidates": [
                [{"model": "m", "text": "t", "scores": {"x": 1.0}}],
                [{"model": None, "text": "u"}],
            ],
            "when": pa.array([0, None], pa.timestamp("ms")),
            "extra": [{"y": 1}, None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    good, bad = rows_of(tmp_path / "a.parquet")
    assert (good["id"], good["instruction"], good["error"], good["when"].year) == ("1", "a", None, 1970)
    assert good["candidates"][0]["extra"] == '{"scores": {"x": 1.0}}'
    assert json.loads(good["extra"]) == {"id": 1, "extra": {"y": 1}}
    assert bad["candidates"][0]["extra"] is None
    assert bad["error"] == "a.parquet row 2: no prompt: expected instruction, prompt or messages"


def test_a_folder_is_its_files_in_order_whatever_their_kind(tmp_path):
    write(tmp_path, "in/b.jsonl", jsonl({"prompt": "3"}))
    write(tmp_path, "in/a/z.csv", "prompt\n1\n2\n")
    (tmp_path / "in/c.jsonl.gz").write_bytes(gzip.compress(jsonl({"prompt": "4"}).encode()))
    pq.write_table(pa.table({"prompt": ["5"], "n": [1]}), tmp_path / "in/d.parquet")
    pq.write_table(pa.table({"prompt": ["6"], "n": [1.5]}), tmp_path / "in/e.parquet")
    for skipped in (".hidden.jsonl", "_temporary/x.jsonl", "README.txt", "jsonl"):
        write(tmp_path, f"in/{skipped}", "no rows")
    rows = rows_of(tmp_path / "in")
    assert [row["prompt"] for row in rows] == list("123456")
    assert [row["n"] for row in rows] == [None] * 4 + [1.0, 1.5]
    assert [row["prompt"] for row in rows_of(tmp_path / "in/*.jsonl*")] == ["3", "4"]
    assert [row["prompt"] for row in rows_of(tmp_path / "in/*")] == list("123456")
    write(tmp_path, "in/_mine.jsonl", jsonl({"prompt": "7"}))
    assert [row["prompt"] for row in rows_of(tmp_path / "in/_*.jsonl")] == ["7"]
    assert [row["prompt"] for row in rows_of(tmp_path / "in", limit=3)] == list("123")


def test_a_name_with_glob_characters_is_a_name(tmp_path):
    assert rows_of(write(tmp_path, "a[1].jsonl", jsonl({"prompt": "p"})))[0]["prompt"] == "p"


@pytest.mark.parametrize(
    ("name", "content", "asked", "why"),
    [
        ("a.txt", b"x", "a.txt", "not a file of rows; expected .jsonl"),
        ("in/a.txt", b"x", "in", "nothing to read there"),
        ("a.jsonl", b"", "b.jsonl", "no such file or folder"),
        ("a.jsonl", b"", "*.csv", "nothing to read there"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet", "not a readable Parquet file"),
        ("a.csv", b"prompt,x,x\n", "a.csv", "two columns have the name 'x'"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz", "can't read it: BadGzipFile"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 9999, mtime=0)[:-9], "a.jsonl.gz", "can't read it: EOFError"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, asked, why):
    write(tmp_path, name, content)
    with pytest.raises(BlendError) as caught:
        rows_of(tmp_path / asked)
    assert str(caught.value).startswith(f"{tmp_path / asked}: {why}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["nosuch://x/a.jsonl", "gs://x/a.jsonl"])
def test_an_unknown_scheme_is_one_line(uri):
    with pytest.raises(BlendError, match=uri):
        rows_of(uri)
