"""Preparation of training data: once, in the order of the input, and with one line for a bad row."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from training_rows import write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.train.pairs import TrainingPair
from llm_blender_ray.pipelines.train.prepare import Part, Preparation, store_here
from llm_blender_ray.pipelines.train.rows import CandidateFilter, read_training_rows, training_row

convert = functools.partial(training_row, wanted=CandidateFilter())


def make_row(number: int) -> dict[str, Any]:
    return {"id": str(number), "instruction": f"Say {number}.", "candidates": [{"model": "a", "text": str(number)}]}


def test_rows_of_a_folder_are_stored_once_in_order(tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.mkdir()
    for file in range(5):
        write(source / f"{file}.jsonl", [make_row(10 * file + i) for i in range(3)])
    stored: list[Part] = []

    def count(parts: Any) -> None:
        stored.extend(parts)
        store_here(parts)

    whole = Preparation(str(tmp_path / "out"), count)
    split = whole.rows("train", str(source), None, convert)
    assert list(split.rows()) == read_training_rows(str(source))
    assert len(stored) == 1
    assert whole.rows("train", str(source), None, convert) == split
    assert len(stored) == 1  # an interrupted training finds it

    parts = Preparation(str(tmp_path / "parts"), count, at_once=2).rows("train", str(source), None, convert)
    assert len(parts.row_files) == 2
    assert list(parts.rows()) == list(split.rows())
    limited = Preparation(str(tmp_path / "parts"), count, at_once=2).rows("train", str(source), 4, convert)
    assert list(limited.rows()) == list(split.rows())[:4]

    write(source / "4.jsonl", [make_row(99)])
    changed = whole.rows("train", str(source), None, convert)
    assert list(changed.rows())[-1].prompt.id == "99"
    whole.remove()
    assert not (tmp_path / "out" / "data").exists()


def test_pairs_are_stored_by_what_decides_them(tmp_path: Path) -> None:
    preparation = Preparation(str(tmp_path / "out"))
    rows = preparation.rows("train", write(tmp_path / "rows.jsonl", [make_row(1)]), None, convert)
    for seed in (1, 2, 1):
        pairs = [TrainingPair(0, 0, 0, (float(seed),))]
        split = preparation.with_pairs("train", rows, seed, lambda _, made=pairs: made)  # type: ignore[misc]
        assert list(split.pairs()) == pairs
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3


@pytest.mark.parametrize("rows", [[], [{"id": "7", "prompt": 5}], [make_row(1), {"id": "7", "candidates": 3}]])
def test_a_bad_row_stops_the_preparation(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preparation = Preparation(str(tmp_path / "out"))
    with pytest.raises(BlendError, match="no rows" if not rows else r"rows\.jsonl line \d: "):
        preparation.rows("train", str(path), None, convert)
