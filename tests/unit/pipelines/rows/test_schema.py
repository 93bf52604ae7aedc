"""One row: fields as the world writes them are read as meant, refuse no row that can be used, and come back out."""

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from passing import objects, passed

from llm_blender_ray.actors.records import RESULT_COLUMNS, Candidate, TokenLogprob
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.pipelines.bulk.commands import with_readable_rankings
from llm_blender_ray.pipelines.quality.evaluation import evaluate
from llm_blender_ray.pipelines.quality.metrics import default_metrics
from llm_blender_ray.pipelines.rows.columns import inspect_columns
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.preferences import preference_table
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row, write_row
from llm_blender_ray.pipelines.rows.user_columns import references_of
from llm_blender_ray.pipelines.rows.writers import PreferenceShape

NAN = float("nan")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
RESULTS = {name: RESULT_COLUMNS[name] for name in ("ranking", "scores", "comparisons")}


def read(**given: Any) -> dict[str, Any]:
    return read_row({"prompt": "p", **given}, "a.jsonl line 1")


def candidate(value: Any) -> dict[str, Any]:
    row = read(candidates=[value])
    assert row["error"] is None
    return row["candidates"][0]


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("error", ["", " ", False, None, NAN, [], {}])
def test_an_empty_error_is_none(error: Any) -> None:
    one = candidate({"model": "a", "text": "Paris.", "error": error})
    assert (one["text"], one["error"], one["extra"]) == ("Paris.", None, None)
    assert read(error=error)["error"] is None


@pytest.mark.parametrize(
    ("error", "text"),
    [("boom", "boom"), (True, "true"), ({"code": 429, "message": "slow down"}, "slow down"), (7, "7")],
)
def test_a_text_beside_an_error_is_not_ranked_and_comes_back(error: Any, text: str) -> None:
    one = candidate({"model": "a", "text": "Par", "error": error})
    assert (one["text"], one["error"]) == (None, text)
    written = write_row(read(candidates=[{"model": "a", "text": "Par", "error": error}]), [])["candidates"][0]
    assert (written["text"], written["error"]) == ("Par", text)
    assert isinstance(error, str) or written["raw"] == {"error": error}
    again = candidate(written)
    assert (again["text"], again["error"]) == (None, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ({"text": "x", "prompt_tokens": 12.0, "completion_tokens": NAN, "model": NAN}, "x"),
        ({"text": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]}, "x"),
        ([{"role": "assistant", "content": "x"}], "x"),
        (
            {
                "text": "x",
                "prompt_tokens": "many",
                "completion_tokens": 2**70,
                "finish_reason": ["stop"],
                "model": 7,
            },
            "x",
        ),
        ({"text": 42, "model": "m"}, None),
        ({"text": {"a": 1}}, None),
        ({"text": "\ud800"}, None),
        ({"text": NAN}, None),
        ({}, None),
        (None, None),
        (17, None),
    ],
)
def test_no_candidate_is_lost_whatever_its_fields(value: Any, text: str | None) -> None:
    one = candidate(value)
    assert one["text"] == text
    assert (one["error"] is None) == (text is not None)
    assert pa.Table.from_pylist([read(candidates=[value])], schema=ROW_SCHEMA)
    held = json.dumps(one | {"extra": json.loads(one["extra"] or "{}")})
    for part in (value or {}).values() if isinstance(value, dict) else [value]:
        if part == part and part is not None and text is None:
            assert json.dumps(part) in held
    if isinstance(value, dict) and value.get("finish_reason"):
        assert json.loads(one["extra"])["raw"] == {k: v for k, v in value.items() if k != "text"}
        assert one["model"] == "7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", {"bleu": 0.5}),
        ("scores", [1]),
        ("scores", ["1", "2"]),
        ("ranking", "b>a"),
        ("ranking", [0, 0]),
        ("ranking", [True, 0]),
        ("comparisons", 1.5),
        ("logits", [[0, "x"]]),
        ("fused", {"text": "y"}),
        ("error", {"rate": 0.1}),
        ("output", {"label": 3}),
        ("input", ["unused"]),
        ("messages", []),
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_columns_of_the_users_own_refuse_no_row_and_are_kept(
    tmp_path: Path, name: str, value: Any, format: str
) -> None:
    source = jsonl(tmp_path, {"prompt": "p", "candidates": ["a", "b"], name: value}, {"prompt": "q"})
    out = passed(source, tmp_path / f"out.{format}", RESULTS)
    text = json.dumps(objects(source, tmp_path)) if format == "csv" else None
    rows = list(read_rows(str(out)))
    assert [row["error"] for row in rows] == [None, None]
    held = text or json.dumps([{k: v for k, v in row.items() if k != "candidates"} for row in rows], default=str)
    leaf = json.dumps(value).strip('[]{}"').split(":")[0].split(",")[0].strip('"')
    assert leaf in held
    if format == "parquet":
        assert pq.read_table(out).column("ranking").type == RESULT_COLUMNS["ranking"]


@pytest.mark.parametrize(
    "ids",
    [[7, 8], [1.5, 2.0], [True, False], [2**53 + 1, 1], ["7", "8"], [2**63 + 1, 2**63 + 3], [7, "7"]],
)
def test_ids_come_back_as_they_came(tmp_path: Path, ids: list[Any]) -> None:
    source = jsonl(tmp_path, *({"id": id, "prompt": "p"} for id in ids))
    assert [row["id"] for row in objects(source, tmp_path)] == ids
    column = pq.read_table(passed(source, tmp_path / "out.parquet")).column("id")
    mixed = column.type == pa.string() and not all(isinstance(id, str) for id in ids)
    assert [json.loads(id) if mixed else id for id in column.to_pylist()] == ids
    assert len(set(column.to_pylist())) == len(ids)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 8], pa.int32()),
        pa.array([2**64 - 1, 1], pa.uint64()),
        pa.array([Decimal("1.10"), Decimal("2.00")], pa.decimal128(10, 2)),
        pa.array([0, 1], pa.timestamp("ns", "UTC")),
        pa.array([b"\x00\xff", b""], pa.binary()),
        pa.array(["a", "b"]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_ids_keep_their_arrow_type(tmp_path: Path, ids: pa.Array) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ids, "prompt": ["p", "q"]}), source)
    column = pq.read_table(passed(source, tmp_path / "out.parquet")).column("id")
    assert column.to_pylist() == ids.to_pylist()
    assert column.type == ids.type
    assert len({str(row["id"]) for row in objects(source, tmp_path)}) == 2


def test_a_made_id_among_numbers_is_a_number(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"id": 7, "prompt": "p"}, {"prompt": "p"}, {"id": None, "prompt": "q"})
    ids = [row["id"] for row in objects(source, tmp_path)]
    table = pq.read_table(passed(source, tmp_path / "out.parquet"))
    assert table.column("id").type == pa.int64()
    assert table.column("id").to_pylist() == ids
    assert ids[0] == 7 and len(set(ids)) == 3
    pq.write_table(pa.table({"id": pa.array([7, None], pa.int64()), "prompt": ["p", "q"]}), tmp_path / "in.parquet")
    table = pq.read_table(passed(tmp_path / "in.parquet", tmp_path / "out.parquet"))
    assert table.column("id").type == pa.int64() and table.column("id").null_count == 0


FORMS = [
    {"prompt": CHAT},
    {"messages": [*CHAT, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, CHAT[1]]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}], "name": "Ann"}]},
    {"prompt": "p", "output": ["r1", "r2"]},
    {"prompt": "p", "output": 42},
]


@pytest.mark.parametrize("given", FORMS)
def test_other_forms_come_back_unchanged(tmp_path: Path, given: dict[str, Any]) -> None:
    source = jsonl(tmp_path, given, given)
    for row in objects(source, tmp_path):
        assert {name: row[name] for name in row if name not in ("id", "candidates", "error")} == given
    out = passed(source, tmp_path / "out.parquet")
    assert objects(out, tmp_path)[0].keys() == objects(source, tmp_path)[0].keys()
    again, first = next(read_rows(str(out))), next(read_rows(str(source)))
    assert (again["error"], again["messages"], again["prompt"]) == (None, first["messages"], first["prompt"])
    assert references_of(again) == references_of(first)


def test_forms_that_are_no_one_type_are_written_as_stages_read_them(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "text"}, {"prompt": CHAT}, *FORMS)
    out = passed(source, tmp_path / "out.parquet")
    before, after = list(read_rows(str(source))), list(read_rows(str(out)))
    for name in ("error", "prompt", "messages", "output"):
        assert [row[name] for row in after] == [row[name] for row in before]
    held = [json.loads(text or "{}") for text in pq.read_table(out).column("extra").to_pylist()]
    assert held[1]["prompt"] == CHAT and held[5]["output"] == ["r1", "r2"]


LISTS = [[], ["r1", "r2"], [1, 0], [1, "x", None], [{}], [[1.0, None], [None, 2]], [2**60, 0.5]]
CHATS = [CHAT, [{"role": "user", "content": None, "name": "n"}]]
VALUES = st.sampled_from([None, "", "text", "b>a", 5, 2.5, -1, 2**60, True, NAN, {}, {"x": 1}, *LISTS, *CHATS])
NAMES = ("id", "prompt", "instruction", "input", "messages", "output", "candidates", "error", "raw", "extra")
FIELDS = st.sampled_from([*NAMES, *RESULT_COLUMNS, "chosen", "rejected", "of the user's"])


@settings(max_examples=300)
@example([{"prompt": "q"}, {"prompt": CHAT}, {"prompt": "q", "messages": []}], {})
@given(
    st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), min_size=1, max_size=4), st.sampled_from([{}, RESULTS])
)
def test_no_mix_of_forms_ends_a_run(given: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Whatever rows have under names of ours: all are written, in the types that the layout says."""
    rows = pa.Table.from_pylist([read_row(row, "a.jsonl line 1") for row in given], schema=ROW_SCHEMA)
    layout = Layout.of(inspect_columns(rows), results, tuple(RESULT_COLUMNS))
    table = layout.table(rows)
    assert table.schema.names == layout.schema().names and len(table) == len(given)
    pq.write_table(table, io.BytesIO())


def test_what_is_kept_on_demand_is_a_field_of_candidates() -> None:
    """In the types of records, or of the given candidates that have it, too."""
    thought = json.dumps({"reasoning_content": "hm", "reasoning_tokens": 1})
    made = [Candidate("a", "text", extra=thought), Candidate("b", "text"), Candidate("c", error="late")]
    names = ["reasoning_content", "reasoning_tokens"]
    for own in ([], [{"text": "t", "reasoning_content": "so"}]):
        row = read(prompt="q", candidates=own)
        seen = inspect_columns(pa.Table.from_pylist([row], schema=ROW_SCHEMA))
        rows = row | {"candidates": [*row["candidates"], *(one.to_row() for one in made)]}
        table = Layout.of(seen, {}, (), names).table(pa.Table.from_pylist([rows], schema=ROW_SCHEMA))
        written = table.column("candidates").to_pylist()[0]
        assert [one["reasoning_content"] for one in written] == ["so"] * len(own) + ["hm", None, None]
        assert [one["reasoning_tokens"] for one in written[-3:]] == [1, None, None]


def test_logprobs_are_a_field_of_candidates_in_parquet() -> None:
    """Typed, or JSON text where the input has a field of this name in another form."""
    tokens = (
        TokenLogprob("Par", -0.5, (TokenLogprob("Par", -0.5), TokenLogprob("Lo", -1.5))),
        TokenLogprob("is", 0.0),
    )
    expected = [token.to_row() for token in tokens]
    extra = json.dumps({"logprobs": expected})
    made = [Candidate("a", "Paris", extra=extra), Candidate("b", "text"), Candidate("c", error="late")]
    for own in ([], [{"text": "t", "logprobs": "none"}]):
        row = read(prompt="q", candidates=own)
        seen = inspect_columns(pa.Table.from_pylist([row], schema=ROW_SCHEMA))
        rows = row | {"candidates": [*row["candidates"], *(one.to_row() for one in made)]}
        table = Layout.of(seen, {}, (), ["logprobs"]).table(pa.Table.from_pylist([rows], schema=ROW_SCHEMA))
        file = io.BytesIO()
        pq.write_table(table, file)
        written = [one["logprobs"] for one in pq.read_table(file).column("candidates").to_pylist()[0][-3:]]
        assert [json.loads(one) if isinstance(one, str) else one for one in written] == [expected, None, None]


def test_fusing_needs_a_ranking_that_can_be_read() -> None:
    given = [{"ranking": "b>a"}, {"ranking": [1, 0]}, {}, {"ranking": [0, 5], "error": "first"}]
    rows = pa.Table.from_pylist([read(candidates=["a", "b"], **one) for one in given], schema=ROW_SCHEMA)
    errors = with_readable_rankings(rows).column("error").to_pylist()
    assert errors == ["ranking: expected distinct indexes of the candidates", None, None, "first"]


def test_several_references_count_by_the_nearest() -> None:
    row = read(output=["the cat sat", "a dog ran"], candidates=["a dog ran", "no"], ranking=[0, 1])
    report = evaluate([row])["references"]
    assert row["output"] == "the cat sat"
    for name in {metric.key for metric in default_metrics()} - {"parts"}:
        assert report[name]["models"]["candidate 1"]["mean"] == pytest.approx(1)
    answer = [{"role": "assistant", "content": "r"}]
    assert [references_of(read(output=value)) for value in ("r", 5, ["", "r"], answer, {"a": 1}, "")] == [
        *(["r"], ["5"], ["r"], ["r"]),
        *([], []),
    ]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_preference_pairs_are_rows_again(tmp_path: Path, format: str) -> None:
    settings = Preferences(output="pairs.jsonl", pairs="all")
    given = {"id": 7, "prompt": CHAT, "ranking": [1, 0, 2], "scores": [0.0, 2.0, -1.0]}
    rows = pa.Table.from_pylist(
        [read(**given, candidates=[{"model": m, "text": m * 2} for m in "abc"])], schema=ROW_SCHEMA
    )
    table = PreferenceShape(settings, Layout.of(inspect_columns(rows), {}, ())).table(rows)
    assert table.column("id").to_pylist() == [7] * 3
    path = tmp_path / f"pairs.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    else:
        jsonl(tmp_path, *table.to_pylist()).rename(path)
    back = list(read_rows(str(path)))
    assert [row["error"] for row in back] == [None] * 3
    assert [[c["model"] for c in row["candidates"]] for row in back] == [["b", "a"], ["b", "c"], ["a", "c"]]
    assert back[0]["messages"] == CHAT and back[0]["candidates"][0]["text"] == "bb"
    ranked = [row | {"ranking": [0, 1], "scores": [1.0, 0.0]} for row in back]
    again = preference_table(ranked, settings).to_pylist()
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in again] == [
        (r["prompt"], r["chosen"], r["rejected"]) for r in table.to_pylist()
    ]
    out = objects(path, tmp_path)
    assert [row["chosen"] for row in out] == table.column("chosen").to_pylist()
    assert out[0]["prompt"] == CHAT and "messages" not in out[0] and out[0]["id"] == 7
