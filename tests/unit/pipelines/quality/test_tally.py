"""Answers of one model to one prompt, which are no independent values."""

import pytest

from llm_blender_ray.pipelines.quality.tally import Tally
from llm_blender_ray.pipelines.rows.schema import read_row


def test_several_answers_of_one_model_are_one_value_a_row() -> None:
    tally = Tally()
    for values in ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        candidates = [{"model": name, "text": "t"} for name in ("alder", "alder", "birch")]
        tally.add(read_row({"prompt": "p", "candidates": candidates, "ranking": [2, 0, 1]}, "test"), values, 1.0)
    alder = tally.models["alder"]
    assert (alder["mean"].value, alder["mean"].count) == (0.5, 2)
    assert alder["mean"].ci95_half_width == pytest.approx(1.96 * 0.5)  # of the values 1 and 0
    assert alder["rank"].value == pytest.approx((1.5 + 2.5) / 2)
    assert (alder["best_share"].value, tally.models["birch"]["best_share"].value) == (0.5, 0.5)
    assert tally.gains["blend"]["alder"].count == tally.gains["ranker"]["alder"].count == 2
