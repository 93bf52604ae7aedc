"""Training rows: which candidates they have."""

from pathlib import Path
from typing import Any

import pytest
from training_rows import write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.train.rows import CandidateFilter, read_training_rows

# Of MixInstruct's kind: an LLM may have answered by several decoding methods.
KINDS = [("alpaca", "top_p_sampling"), ("alpaca", "beam"), ("dolly", "top_p_sampling"), ("koala", None)]


def rows_file(folder: Path, **changes: Any) -> str:
    candidates = [
        {"model": model, "text": f"{model} {method}", "scores": {"q": float(i)}}
        | ({"decoding_method": method} if method else {})
        for i, (model, method) in enumerate(KINDS)
    ]
    return write(folder / "rows.jsonl", [{"id": "r", "instruction": "x", "candidates": candidates} | changes])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, [0, 1, 2, 3]),
        (CandidateFilter(models=("koala", "alpaca")), [0, 1, 3]),
        (CandidateFilter(decoding_methods=("top_p_sampling",)), [0, 2]),
        (CandidateFilter(models=("alpaca",), decoding_methods=("beam",)), [1]),
    ],
)
def test_candidates_are_chosen_by_model_and_decoding_method(
    tmp_path: Path, wanted: CandidateFilter | None, expected: list[int]
) -> None:
    (row,) = read_training_rows(rows_file(tmp_path, ranking=[3, 1, 0, 2]), wanted=wanted)
    assert row.texts == tuple(f"{model} {method}" for model, method in (KINDS[i] for i in expected))
    assert row.scores(["q"]) == [(float(i),) for i in expected]
    assert row.ranking is not None
    assert [expected[i] for i in row.ranking] == [i for i in (3, 1, 0, 2) if i in expected]


def test_a_row_without_a_wanted_candidate_is_one_clear_line(tmp_path: Path) -> None:
    wanted = CandidateFilter(models=("alpaka",))
    with pytest.raises(
        BlendError,
        match=r"row r: candidate_models and decoding_methods leave no candidate; it has alpaca \(beam\), alp",
    ):
        read_training_rows(rows_file(tmp_path), wanted=wanted)
