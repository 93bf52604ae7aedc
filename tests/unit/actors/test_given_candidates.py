"""Candidates that rows come with: every form is taken, and nothing that has no place is lost."""

import json
from typing import Any

import pytest

from llm_blender_ray.actors.errors import FieldError
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.records import Candidate


@pytest.mark.parametrize(
    ("given", "candidate"),
    [
        ("an answer", Candidate(None, "an answer")),
        ({"text": "a", "model": "m", "prompt_tokens": 3.0}, Candidate("m", "a", prompt_tokens=3)),
        ({"text": "a", "scores": {"x": 1}}, Candidate(None, "a", extra='{"scores": {"x": 1}}')),
        ({"text": "a", "error": "no"}, Candidate(None, error="no", extra='{"text": "a"}')),
        ({"text": "a", "model": ["m"]}, Candidate(None, "a", extra='{"raw": {"model": ["m"]}}')),
        ({"text": "a", "error": False}, Candidate(None, "a")),
        (None, Candidate(None, error="no text given")),
    ],
)
def test_a_candidate_of_any_form(given: Any, candidate: Candidate) -> None:
    assert read_candidates({"candidates": [given]}) == (candidate,)


def test_what_is_no_candidate_is_one_with_an_error() -> None:
    (found,) = read_candidates({"candidates": [7]})
    assert found.error == "candidates[0]: expected text or an object with model and text"
    assert json.loads(found.extra or "") == {"raw": 7}


def test_without_candidates_those_of_a_preference_pair() -> None:
    assert [one.text for one in read_candidates({"prompt": "q", "chosen": "a", "rejected": "b"})] == ["a", "b"]
    assert read_candidates({"prompt": "q"}) == ()
    with pytest.raises(FieldError, match="expected a list"):
        read_candidates({"candidates": "a"})
