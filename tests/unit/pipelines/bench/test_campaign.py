"""Simulated annotators: active choice against random pairs, and the bad annotator is found."""

from pathlib import Path

import numpy as np
from campaigns import write_lines

from llm_blender_ray.pipelines.bench.campaign import (
    ANNOTATOR_ERRORS,
    STEP,
    judge_annotators,
    measure_annotators,
    order_is_right,
    votes_needed,
    with_error,
)
from llm_blender_ray.pipelines.quality.consensus import Label


def test_active_choice_is_right_more_often_than_random_pairs() -> None:
    strengths = 0.5 * np.arange(7)
    right = {
        choice: np.mean([order_is_right(choice, strengths, 200, seed=seed)[20:] for seed in range(10)])
        for choice in ("active", "random")
    }
    assert right["active"] > 1.2 * right["random"]


def test_votes_needed_are_counted_from_the_last_time_that_too_few_orders_were_right() -> None:
    right = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]], dtype=bool)
    assert votes_needed(list(right), 0.5) == 3 * STEP
    assert votes_needed(list(right), 0.9) == 4 * STEP
    assert votes_needed(list(right[:, :3]), 0.9) is None


def test_the_bad_annotator_is_found_and_everyones_error_is_known() -> None:
    rng = np.random.default_rng(1)
    truth = {item: int(rng.integers(-1, 2)) for item in range(300)}
    labels = [
        Label(item, name, {1: "left", 0: "tie", -1: "right"}[with_error(sign, error, rng)])
        for name, error in ANNOTATOR_ERRORS.items()
        for item, sign in truth.items()
    ]
    found = judge_annotators(labels, truth)
    assert found["worst"] == max(ANNOTATOR_ERRORS, key=lambda name: ANNOTATOR_ERRORS[name])
    assert found["right"]["dawid_skene"] > found["right"]["majority"]
    for one in found["annotators"].values():
        assert abs(one["right"] - one["reliability"]) < 0.05


def test_annotators_of_a_campaign_vote_by_the_references(tmp_path: Path) -> None:
    rows = [
        {
            "id": str(at),
            "instruction": f"Two questions, number {at}",
            "output": "1) one 2) two",
            "candidates": [{"model": "a", "text": "1) one 2) two"}, {"model": "b", "text": "1) six 2) two"}],
        }
        for at in range(8)
    ]
    found = measure_annotators(write_lines(tmp_path / "rows.jsonl", rows), 8)
    assert found["items"] == 8
    assert found["annotators"]["ann"]["right"] >= 0.75, "sides are shown in any order"
    assert found["right"]["majority"] >= 0.75
