"""Columns of the user's in a row, wherever the row has them."""

import json
from unittest.mock import patch

from llm_blender_ray.pipelines.quality.judgements import read_judgements
from llm_blender_ray.pipelines.rows.user_columns import column, references_of


def test_a_column_is_the_rows_own_or_of_extra() -> None:
    row = {"id": "1", "vote": None, "topic": "trees", "extra": json.dumps({"vote": 2, "topic": "sea"})}
    assert [column(row, name) for name in ("topic", "vote", "other")] == ["trees", 2, None]
    assert [column({"id": "1", "extra": text}, "vote") for text in (None, "")] == [None, None]
    assert column({"id": "1"}, "vote") is None


def test_each_row_has_its_own_columns() -> None:
    rows = [{"extra": json.dumps({"n": n})} for n in (1, 2, 1)]
    assert [column(row, "n") for row in rows] == [1, 2, 1]


def test_references_are_those_that_were_given() -> None:
    assert references_of({"output": "one", "extra": json.dumps({"output": ["one", "two"]})}) == ["one", "two"]
    assert references_of({"output": "one", "extra": None}) == ["one"]
    assert references_of({"output": None, "gold": "best", "extra": None}, "gold") == ["best"]


def test_a_row_is_parsed_once_however_many_columns_are_read() -> None:
    given = [{"judge": "j", "left": 0, "right": 1, "preferred": "left"}]
    texts = [json.dumps({"judgements": given, "number": number}) for number in range(3)]
    candidates = [{"model": "a", "text": "x"}, {"model": "b", "text": "y"}]
    with patch.object(json, "loads", wraps=json.loads) as parsed:
        for extra in texts:
            row = {"extra": extra, "candidates": candidates, "fused": None}
            assert len(read_judgements(row)) == 1 and column(row, "number") is not None
    assert [call.args[0] for call in parsed.call_args_list] == texts
