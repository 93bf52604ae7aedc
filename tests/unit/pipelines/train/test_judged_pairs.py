"""Training pairs of judgements: which, how much they count, and what bad input gets."""

from pathlib import Path
from typing import Any

import pytest
from training_rows import write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.training import JudgementPairs
from llm_blender_ray.pipelines.train.judged_pairs import read_judged_pairs


def judged(*judgements: tuple[str, int | str, int | str, str], **columns: Any) -> dict[str, Any]:
    names = ("judge", "left", "right", "preferred")
    return {
        "instruction": "p",
        "candidates": [{"model": name, "text": name} for name in "abc"],
        "judgements": [dict(zip(names, one, strict=True)) for one in judgements],
        **columns,
    }


def pairs_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, tuple[float, float]]:
    """Lead and weight of each pair of texts, `ab` if a was found better or neither."""
    path = write(folder / "rows.jsonl", rows)
    found, pairs = read_judged_pairs(path, JudgementPairs.model_validate(settings), seed=0)
    by_texts = {}
    for pair in pairs:
        texts = found[pair.row].texts
        names, lead = texts[pair.left] + texts[pair.right], pair.lead[0]
        by_texts[names if lead > 0 or (not lead and names == "".join(sorted(names))) else names[::-1]] = (
            abs(lead),
            round(pair.weight, 3),
        )
    return by_texts


def test_judgements_of_one_pair_are_one_pair_whatever_their_rows_and_sides(tmp_path: Path) -> None:
    """Two of three find a better than b; the weights 3, 1 and 2 of the pairs have the mean 1."""
    rows = [
        judged(("x", 0, 1, "left"), ("y", 1, 0, "right"), ("x", 1, 2, "right")),
        judged(("z", 0, 1, "right"), ("z", 0, 2, "tie"), ("y", 0, 2, "both_bad"), id="another row"),
    ]
    assert pairs_of(tmp_path, rows) == {"ab": (pytest.approx(1 / 3), 1.5), "cb": (1, 0.5), "ac": (0, 1)}
    assert pairs_of(tmp_path, rows, ties="drop").keys() == {"ab", "cb"}
    assert pairs_of(tmp_path, rows, judges=["z"]) == {"ba": (1, 1), "ac": (0, 1)}


def test_weights_of_judges_and_rows(tmp_path: Path) -> None:
    rows = [
        judged(("x", 0, 1, "left"), ("y", 0, 1, "right"), trust=2),
        judged(("x", 1, 2, "left"), trust=4, instruction="q"),
        judged(("x", 1, 2, "left"), trust=0, instruction="r"),
    ]
    weights = {"y": 3.0}
    found = pairs_of(tmp_path, rows, weights=weights, weight_column="trust")
    assert found == {"ba": (0.5, 1.333), "bc": (1, 0.667)}  # 8 and 4 of the mean 6
    assert pairs_of(tmp_path, rows, weights={"x": 0}) == {"ba": (1, 1)}


def test_every_form_of_judgements_is_read(tmp_path: Path) -> None:
    vote = {"left": "fused", "right": 2, "preferred": "left", "at": "2026-11-28T12:00:00+00:00"}
    rows = [
        judged(vote=vote, fused="f"),
        judged(cmp_results={"a,b": "B is better"}, instruction="q"),
        {"prompt": "r", "chosen": "x", "rejected": "y"},
    ]
    assert pairs_of(tmp_path, rows).keys() == {"fc", "ba", "xy"}


def test_sides_are_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [judged(("x", 0, 1, "left"), instruction=f"p{i}") for i in range(40)])
    leads = [pair.lead[0] for pair in read_judged_pairs(path, JudgementPairs.model_validate({}), 0)[1]]
    assert 10 < leads.count(1.0) < 30 and leads.count(1.0) + leads.count(-1.0) == 40


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (judged(), {}, "no judgements of two different answers in 1 rows"),
        (judged(("x", 0, 1, "left")), {"judges": ["y"]}, "no judgements of y of two different answers"),
        (judged(("x", 0, 1, "left"), candidates=["a", "a"]), {}, "no judgements"),
        (
            judged(("x", 0, 1, "left"), trust=-1),
            {"weight_column": "trust"},
            r"trust: expected a weight >= 0, got -1",
        ),
        (
            judged(("x", 0, 1, "left"), trust="2"),
            {"weight_column": "trust"},
            "trust: expected a weight >= 0, got '2'",
        ),
        (judged(error="why"), {}, "why"),
    ],
)
def test_what_teaches_nothing_is_one_clear_line(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BlendError, match=message) as caught:
        pairs_of(tmp_path, [row], **settings)
    assert "\n" not in str(caught.value)
