"""Columns and estimates of `blend judge`, without Ray."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_blender_ray.actors.judged_pairs import JUDGED_PAIR, JudgedPair
from llm_blender_ray.configs.judges import JudgeConfig
from llm_blender_ray.pipelines.bulk.judge import with_judgements
from llm_blender_ray.pipelines.bulk.judge_estimate import judging_lines
from llm_blender_ray.pipelines.bulk.row_stages.judge import judged_column
from llm_blender_ray.pipelines.quality.judgements import read_judgements
from llm_blender_ray.pipelines.rows.columns import JSON, inspect_columns
from llm_blender_ray.pipelines.rows.formats import format_of
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.readers import input_files, native_schema, read_rows, read_tables
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row
from llm_blender_ray.pipelines.rows.writers import BlendShape

CANDIDATES = [{"model": name, "text": name * 2} for name in ("a", "b")]
PAIRS = [
    JudgedPair(0, 1, "left", "Because. [[A]]", key="x"),
    JudgedPair(1, 0, "right", "[[B]]", key="y"),
    JudgedPair(0, "fused", None, error="HTTP 503", key="z"),
    JudgedPair("fused", 1, "tie", key="w"),
]
ADDED = {"judge": pa.string(), "left": JSON, "right": JSON, "preferred": pa.string()}


def judged(rows: pa.Table, **options: Any) -> pa.Table:
    """The rows after one judge has compared the answers of each."""
    made = pa.array([[one.to_row() for one in PAIRS]] * len(rows), pa.list_(JUDGED_PAIR))
    return with_judgements(("j",), rows.append_column(judged_column("j"), made), **options)


def table(**columns: Any) -> pa.Table:
    given = {"id": "r", "instruction": "p", "candidates": CANDIDATES, "fused": "f"} | columns
    return pa.Table.from_pylist([read_row(given, "")], schema=ROW_SCHEMA)


def extra(rows: pa.Table) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rows.column("extra")[0].as_py())
    return found


def test_judgements_are_added_to_given_ones() -> None:
    given = {"judge": "ann", "left": 1, "right": 0, "preferred": "tie", "comment": "both fine"}
    old = {"judge": "j", "left": 1, "right": 0, "preferred": "left"}
    rows = judged(table(judgements=[given, old]))
    assert rows.column_names == ROW_SCHEMA.names
    assert extra(rows)["judgements"] == [
        given,
        {"judge": "j", "left": 0, "right": 1, "preferred": "left"},
        {"judge": "j", "left": 1, "right": 0, "preferred": "right"},
        {"judge": "j", "left": "fused", "right": 1, "preferred": "tie"},
    ]
    assert [one.judge for one in read_judgements(rows.to_pylist()[0])] == ["ann", "j", "j", "j"]


def test_replies_are_kept_on_demand() -> None:
    found = extra(judged(table(), replies=True))["judgements"]
    assert [one["reply"] for one in found] == ["Because. [[A]]", "[[B]]", None]


def test_cmp_results_are_written_and_given_ones_stay_as_judgements() -> None:
    rows = judged(table(cmp_results='{"b,a": "A is better"}'), cmp_results="j")
    found = extra(rows)
    assert (found["cmp_results"], found["cmp_results_judge"]) == ('{"a,b": "A is better"}', "j")
    assert found["judgements"][0] == {"judge": "cmp_results", "left": 1, "right": 0, "preferred": "left"}
    assert [one.judge for one in read_judgements(rows.to_pylist()[0])] == ["cmp_results", "j", "j", "j"]


def test_a_column_of_another_kind_is_kept() -> None:
    assert extra(judged(table(judgements="good ones")))["judgements"][0] == "good ones"


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_what_is_written_is_read_and_judged_again(tmp_path: Path, ending: str) -> None:
    """Twice, so that the second run has a native column of Parquet as its input."""
    rows = table(judgements=[{"judge": "ann", "left": 1, "right": "fused", "preferred": "tie", "person": True}])
    for _ in range(2):
        layout = Layout.of(
            inspect_columns(rows), {}, ("fused",), adds={"judgements": pa.list_(pa.struct(ADDED.items()))}
        )
        file, done = tmp_path / f"rows{ending}", judged(rows)
        shape = BlendShape(layout)
        with file.open("wb") as out, format_of(ending).joining(out, layout.schema()) as join:
            join(*reversed(format_of(ending).encoded(shape, done)))
        (row,) = read_rows(str(file))
        found = read_judgements(row)
        assert [(one.judge, one.left, one.right) for one in found] == [
            ("ann", 1, "fused"),
            ("j", 0, 1),
            ("j", 1, 0),
            ("j", "fused", 1),
        ]
        assert found[0].person
        files = input_files(str(file))
        rows = next(read_tables(files[0], native_schema(files), 10))


def estimate(folder: Path, *rows: dict[str, Any], answer_tokens: int | None = None, **settings: Any) -> list[str]:
    llm = {"engine": "endpoint", "name": "j", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    file = folder / "in.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    config = JudgeConfig.model_validate({"judges": [{"llm": llm}]} | settings)
    return judging_lines(config, str(file), answer_tokens)


def row(*texts: str, **more: Any) -> dict[str, Any]:
    return {"instruction": "p", "candidates": [{"model": f"m{i}", "text": t} for i, t in enumerate(texts)]} | more


def test_calls_are_counted_from_the_input(tmp_path: Path) -> None:
    rows = [row("one", "two", "three", fused="f"), row("one", "one", "two"), row("one"), row("a", "b", error="bad")]
    assert estimate(tmp_path, *rows)[0] == "j: 2 rows x 3.5 pairs x 2 orders = 14 calls"
    baseline = {"pairs": {"baseline": "blend"}}
    assert estimate(tmp_path, *rows, **baseline)[0] == "j: 1 rows x 3 pairs x 2 orders = 6 calls"
    one = {"pairs": {"design": "full:orders=one", "comparisons_per_row": 2}}
    assert estimate(tmp_path, *rows, **one)[0] == "j: 2 rows x 1.5 pairs x 1 orders = 3 calls"


def test_costs_follow_from_the_texts_and_the_length_of_replies(tmp_path: Path) -> None:
    rubric = {"prompt": "{prompt} {answer_a} {answer_b}"}  # 2 bytes with empty texts
    prices = {"prices": {"j": {"input": 1e6, "output": 1e6}}, "rubric": rubric}  # a dollar for each token
    lines = estimate(tmp_path, row("abc", "abcdefghi"), answer_tokens=10, **prices)
    # two calls of (2 + 1 + 3 + 9) bytes, four of them a token, and ten tokens of reply
    assert lines[1] == "cost: about $28: j $28"
    assert "unknown" in estimate(tmp_path, row("a", "b"))[1]


def test_several_judges_are_summed(tmp_path: Path) -> None:
    judges = [{"llm": {"engine": "echo", "name": name, "model": "m"}} for name in "jk"]
    assert estimate(tmp_path, row("a", "b"), judges=judges)[-1] == "2 judges: 4 calls"


def test_an_input_of_elsewhere_is_a_line(tmp_path: Path) -> None:
    config = JudgeConfig.model_validate({"judges": [{"llm": {"engine": "echo", "name": "j", "model": "m"}}]})
    assert judging_lines(config, str(tmp_path / "gone.jsonl"))[0].startswith("calls: not estimated: ")
