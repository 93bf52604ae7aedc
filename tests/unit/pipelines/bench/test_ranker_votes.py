"""A ranker that learns from simulated annotators' votes, and the simulation."""

import random
from itertools import islice
from pathlib import Path

import pytest

from llm_blender_ray.pipelines.bench.ranker_votes import train_on_votes
from llm_blender_ray.pipelines.miniature.annotators import right_parts, voted_rows
from llm_blender_ray.pipelines.miniature.world import random_tasks


def test_a_ranker_fine_tuned_on_votes_beats_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole interval of the gain on votes about other prompts lies above 0."""
    before, after = train_on_votes(tmp_path, 160, 0.1, seed=0, steps=20, heldout_votes=200)
    gain, low, _ = after.gain_over(before)
    assert gain == pytest.approx(after.accuracy.accuracy - before.accuracy.accuracy)
    assert low > 0
    assert "ranker saved in" in capsys.readouterr().err


def test_simulated_annotators_err_as_often_as_they_are_told_to() -> None:
    tasks = list(islice(random_tasks(random.Random(0), heldout=True), 50))
    by_id = {task.id: task for task in tasks}
    wrong = 0
    for row in islice(voted_rows(tasks, 0.2, random.Random(1)), 1000):
        left, right = (right_parts(by_id[row["id"]], one["text"]) for one in row["candidates"])
        assert left != right
        wrong += (left > right) != (row["vote"]["preferred"] == "left")
    assert 150 < wrong < 250
