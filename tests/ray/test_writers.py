"""Rows into files: what went in comes out, in every format, and nothing of the user's is harmed."""

import gzip
import json
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray.data

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.plan import Plan
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.run import execute
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import write_row

pytestmark = pytest.mark.usefixtures("ray_session")


ROWS = [
    {
        "id": "1",
        "instruction": "Sum up.",
        "input": "A text.",
        "count": 1,
        "mixed": "x",
        "meta": {"a": 1},
        "candidates": [
            {"model": "m", "text": "t", "scores": {"bleu": 1}, "rank": 1},
            {"model": "n", "text": "u"},
        ],
        "ranking": [1, 0],
        "logits": [[None, 0.5], [-0.5, None]],
    },
    {
        "id": "2",
        "instruction": 'Hello, \u2028 é 😀 "quoted"\n',
        "count": 1.5,
        "mixed": [1, 2],
        "meta": {"b": None, "c": [{"d": "e"}]},
        "nothing": None,
        "candidates": [{"model": "m", "text": "t", "scores": {"rouge": 0.5}, "rank": "first"}],
    },
    {"id": "3", "instruction": 5, "count": 2},
]
RESULTS = ("ranking", "fused")


def write(source, uri, *, results=(), keep=(), overwrite=False, limit=None, finish=None, rows_per_block=2):
    """A run without any stage; how many rows it wrote, and how many of them with an error."""
    run = Run(
        command="test",
        input=str(source),
        output=Output(uri),
        cluster=RayCluster(),
        planned=lambda have: Plan((), have),
        results=results,
        identity={"results": list(results)},
        settings={},
        keep=keep,
        limit=limit,
        rows_per_block=rows_per_block,
        finish=finish,
    )
    written = execute(run, overwrite=overwrite).manifest.output
    return written.rows, written.errors


@pytest.fixture
def source(tmp_path):
    """A file of `ROWS` and a line that is no JSON."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{bad\n")
    return path


def expected():
    """`ROWS` as they go out."""
    contract = dict.fromkeys(("model", "text", "error", "finish_reason", "prompt_tokens", "completion_tokens"))
    for row in ROWS[:2]:
        candidates = [contract | candidate for candidate in row["candidates"]]
        out = row | {"candidates": candidates, "ranking": row.get("ranking"), "fused": None, "error": None}
        out.pop("logits", None)
        yield out
    bad = {"id": "3", "count": 2, "candidates": [], "ranking": None, "fused": None}
    yield bad | {"raw": '{"instruction": 5}', "error": "in.jsonl line 3: instruction: expected text, got int"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_json_has_every_row_as_it_came(source, tmp_path, name):
    assert write(source, str(tmp_path / "out" / name), results=RESULTS) == (4, 2)
    content = (tmp_path / "out" / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n")[:-1]]
    assert rows[:3] == list(expected())
    assert list(rows[0])[-4:] == ["candidates", *RESULTS, "error"]
    assert rows[3]["raw"] == "{bad"
    assert rows[3]["error"].startswith("in.jsonl line 4: not JSON")


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_parquet_gives_every_key_a_column_of_one_type(source, tmp_path, name):
    uri = str(tmp_path / name)
    assert write(source, uri, results=RESULTS, keep=("logits", "scores")) == (4, 2)
    table = pa.dataset.dataset(uri).to_table()
    assert table.schema.names == [
        *("id", "instruction", "input", "count", "mixed", "meta", "nothing", "raw"),
        *("logits", "candidates", *RESULTS, "error"),
    ]
    meta = pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.struct([("d", pa.string())])))])
    assert table.schema.field("meta").type == meta
    assert table.schema.field("count").type == pa.float64()
    rows = table.to_pylist()
    assert [row["id"] for row in rows[:3]] == ["1", "2", "3"]
    assert [row["mixed"] for row in rows[:3]] == ['"x"', "[1, 2]", None]
    assert rows[0]["candidates"][0]["scores"] == {"bleu": 1, "rouge": None}
    assert rows[0]["candidates"][0]["rank"] == "1"
    assert rows[1]["candidates"][0]["rank"] == '"first"'
    assert rows[2]["raw"] == '{"instruction": 5}'
    assert rows[0]["logits"] == ROWS[0]["logits"]
    assert len(pd.read_parquet(uri)) == 4
    assert len(ray.data.read_parquet(uri).take_all()) == 4
    assert [row["id"] for row in read_rows(uri)] == [row["id"] for row in rows]


def test_csv_comes_back(source, tmp_path):
    uri = str(tmp_path / "out.csv")
    assert write(source, uri, results=RESULTS) == (4, 2)
    frame = pd.read_csv(uri, dtype=str, keep_default_na=False)
    assert list(frame.columns) == list(pq_columns(source, tmp_path))
    assert list(frame["instruction"][:2]) == [row["instruction"] for row in ROWS[:2]]
    assert list(frame["count"]) == ["1", "1.5", "2", ""]
    assert list(frame["mixed"]) == ["x", "[1, 2]", "", ""]
    again = [write_row(row, RESULTS) for row in read_rows(uri)]
    assert [row["candidates"] for row in again[:2]] == [row["candidates"] for row in list(expected())[:2]]
    assert again[0]["ranking"] == [1, 0]


def pq_columns(source, tmp_path):
    uri = str(tmp_path / "columns.parquet")
    write(source, uri, results=RESULTS)
    return pq.read_schema(uri).names


def test_results_of_stages_are_written_and_a_key_of_that_name_gives_way(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "p", "margin": "mine", "candidates": [{"text": "a"}, {"text": "b"}]}\n')

    def compared(table):
        return table.append_column("margin", pa.array([0.25])).append_column("preference", pa.array([0]))

    results = ("margin", "preference", "comparisons")
    for name in ("a.jsonl", "a.parquet", "a.csv", "a"):
        write(path, str(tmp_path / name), results=results, finish=compared)
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert list(row)[-5:] == ["candidates", *results, "error"]
    assert (row["margin"], row["preference"], row["comparisons"]) == (0.25, 0, None)
    for name in ("a.parquet", "a"):
        table = pq.read_table(tmp_path / name)
        assert table.schema.names == ["id", "prompt", "candidates", *results, "error"]
        assert table.column("margin").to_pylist() == [0.25]
    assert (tmp_path / "a.csv").read_text().splitlines()[
        0
    ] == "id,prompt,candidates,margin,preference,comparisons,error"


def test_native_columns_keep_their_type(tmp_path):
    when = pa.array([0, None], pa.timestamp("us", "UTC"))
    native = {"when": when, "kind": pa.array(["a", "b"]).dictionary_encode(), "blob": [b"\x00\xff", None]}
    pq.write_table(pa.table({"prompt": ["a", "b"], **native}), tmp_path / "in.parquet")
    source = tmp_path / "in.parquet"
    write(source, str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out")
    assert table.schema.names == ["id", "prompt", "when", "kind", "blob", "candidates", "error"]
    assert (table.column("when").type, table.column("blob").type) == (when.type, pa.binary())
    assert table.column("kind").to_pylist() == ["a", "b"]
    write(source, str(tmp_path / "out.jsonl"))
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (row["when"], row["blob"]) == ("1970-01-01T00:00:00+00:00", "AP8=")


def test_a_folder_has_one_schema_in_all_files_and_input_order(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": str(i), "prompt": "p", ("even" if i % 2 == 0 else "odd"): i} for i in range(10_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write(path, str(tmp_path / "out"), rows_per_block=256) == (10_000, 0)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert 1 < len(parts) <= 3
    assert len({str(pq.read_schema(part)) for part in parts}) == 1
    assert [row["id"] for row in read_rows(str(tmp_path / "out"))] == [row["id"] for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a"])
def test_no_rows_are_a_file_without_rows(tmp_path, name):
    (tmp_path / "in.jsonl").write_text("")
    source = tmp_path / "in.jsonl"
    uri = str(tmp_path / name)
    assert write(source, uri, results=RESULTS) == (0, 0)
    assert list(read_rows(uri)) == []
    if name == "a":
        assert pq.read_table(uri).schema.names == ["id", "candidates", *RESULTS, "error"]


@pytest.mark.parametrize("name", ["a.jsonl", "a"])
def test_what_exists_is_kept_unless_overwritten(source, tmp_path, name):
    uri = str(tmp_path / name)
    write(source, uri)
    with pytest.raises(BlendError, match=r'made with another config \(results: \[\] -> \["fused"\]\)'):
        write(source, uri, results=["fused"])
    with pytest.raises(BlendError, match="exists already, complete with 4 rows; limit 1 would leave fewer"):
        write(source, uri, limit=1)
    assert len(list(read_rows(uri))) == 4
    shutil.rmtree(Output(uri).work_folder)
    with pytest.raises(BlendError, match="exists already; --overwrite replaces it"):
        write(source, uri)
    assert write(source, uri, limit=1, overwrite=True) == (1, 0)
    assert len(list(read_rows(uri))) == 1


def test_an_output_that_was_removed_is_in_nobodys_way(source, tmp_path):
    output = tmp_path / "out.jsonl"
    assert write(source, str(output)) == (4, 2)
    output.unlink()
    assert write(source, str(output)) == (4, 2)
    assert len(list(read_rows(str(output)))) == 4
    output.unlink()
    assert write(source, str(output), results=RESULTS, limit=1) == (1, 0)
    assert "fused" in json.loads(output.read_text())


def test_overwriting_a_folder_removes_what_a_run_wrote_and_nothing_else(source, tmp_path):
    folder = tmp_path / "out"
    write(source, str(folder))
    (folder / "notes.txt").write_text("mine")
    write(source, str(folder), overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert len([path for path in folder.iterdir() if path.name != ".blend"]) == 2
    shutil.copy(next(folder.glob("*.parquet")), folder / "mine.parquet")
    with pytest.raises(BlendError, match=r"holds .*mine\.parquet, which no run wrote"):
        write(source, str(folder), overwrite=True)
    assert (folder / "mine.parquet").exists()


def test_a_folder_is_not_overwritten_by_what_reads_it(source, tmp_path):
    folder = str(tmp_path / "out")
    write(source, folder)
    with pytest.raises(BlendError, match="is read by this run too"):
        write(folder, folder, overwrite=True)
    assert len(list(read_rows(folder))) == 4


def test_a_file_is_not_overwritten_by_what_reads_it(source, tmp_path):
    uri, before = str(tmp_path / "in.jsonl"), source.read_bytes()
    with pytest.raises(BlendError, match="is read by this run too"):
        write(source, uri, overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
def test_an_output_beside_its_input_is_no_input_when_the_command_is_repeated(source, tmp_path, name):
    for overwrite in (False, False, True):
        assert write(tmp_path, str(tmp_path / name), overwrite=overwrite) == (4, 2)
    assert len(list(read_rows(str(tmp_path / name)))) == 4


def test_a_run_that_fails_leaves_no_half_file(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(20)))
    (tmp_path / "out.jsonl").write_text("old")

    def fail_late(table):
        if "19" in table.column("prompt").to_pylist():
            raise RuntimeError("a bug in a stage")
        return table

    with pytest.raises(BlendError, match="the run failed: RuntimeError: a bug in a stage"):
        write(tmp_path / "in.jsonl", str(tmp_path / "out.jsonl"), overwrite=True, finish=fail_late)
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", ".out.jsonl.blend"}


def test_what_goes_wrong_on_a_worker_is_one_line(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n' * 20_000)[:-9])
    source = tmp_path / "in.jsonl.gz"
    with pytest.raises(BlendError) as caught:
        write(source, str(tmp_path / "out.jsonl"), rows_per_block=4096)
    assert str(caught.value).startswith(f"{tmp_path}/in.jsonl.gz: can't read it: EOFError")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file/out", "can't write it: "),
        ("file/out.jsonl", "can't write it: "),
        ("file", "a file of that name is in the way of the folder"),
        ("folder.jsonl", "a folder of that name is in the way of the file"),
        ("*.jsonl", "an output is one file or folder, not a glob"),
    ],
)
def test_what_cannot_be_written_is_one_line(source, tmp_path, uri, why):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(BlendError) as caught:
        write(source, str(tmp_path / uri), overwrite=True)
    assert str(caught.value).startswith(str(tmp_path / uri))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_s3_is_read_and_written(source, s3_bucket, tmp_path):
    for uri in (f"{s3_bucket}/one/a.jsonl", f"{s3_bucket}/parts", f"{s3_bucket}/one/b.parquet"):
        assert not Output(uri).is_taken(overwrite=False)
        assert write(source, uri, results=RESULTS) == (4, 2)
        assert Output(uri).is_taken(overwrite=False)
        assert write(source, uri, results=RESULTS, overwrite=True) == (4, 2)
    ids = [row["id"] for row in read_rows(str(tmp_path / "in.jsonl"))]
    for uri in (
        f"{s3_bucket}/one/a.jsonl",
        f"{s3_bucket}/parts",
        f"{s3_bucket}/parts/part-*",
        f"{s3_bucket}/*/b*",
    ):
        assert [row["id"] for row in read_rows(uri)] == ids
