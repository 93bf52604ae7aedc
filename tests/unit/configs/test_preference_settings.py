"""Settings of preference data: defaults, and what is refused."""

import pytest
from pydantic import ValidationError

from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.preferences import Preferences


def test_only_the_output_is_required() -> None:
    settings = Preferences(output="pairs.jsonl")
    assert (settings.pairs, settings.margin, settings.max_pairs, settings.columns) == ("best-worst", 0, None, ())
    assert "columns" not in deciding(settings)  # or outputs of earlier releases would be written anew
    with pytest.raises(ValidationError):
        Preferences.model_validate({})


@pytest.mark.parametrize(
    "wrong",
    [
        {"output": ""},
        {"pairs": "worst-best"},
        {"margin": -0.1},
        {"margin": float("inf")},
        {"margin": float("nan")},
        {"max_pairs": 0},
        {"seed": -1},
        {"margins": 1},
        {"columns": ["task", "prompt"]},
        {"columns": ["task", "task"]},
    ],
    ids=str,
)
def test_what_makes_no_pairs_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as error:
        Preferences.model_validate({"output": "pairs.jsonl", **wrong})
    assert error.value.errors()[0]["loc"] == tuple(wrong)


@pytest.mark.parametrize("output", ["pairs.csv", "s3://bucket/pairs.CSV.gz"])
def test_csv_has_no_chats(output: str) -> None:
    with pytest.raises(ValidationError, match=r"CSV has no chats; expected a \.jsonl"):
        Preferences(output=output)
