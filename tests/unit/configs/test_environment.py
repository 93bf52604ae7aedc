"""Variables that a config names are found wherever they stand, and all that are missing are told at once."""

from typing import Any

from llm_blender_ray.configs.environment import missing_variables, variables
from llm_blender_ray.configs.schema import BlendConfig


def endpoint(name: str, key: str | None) -> dict[str, Any]:
    return {"name": name, "engine": "endpoint", "model": "m", "base_url": "http://h/v1", "api_key_env": key}


CONFIG = BlendConfig.model_validate(
    {
        "models": [endpoint("a", "ONE"), endpoint("b", "TWO"), endpoint("c", "ONE"), endpoint("open", None)],
        "ranker": {"kind": "judge", "llm": endpoint("judge", "THREE")},
        "fuser": {"kind": "chat", "llm": endpoint("writer", "FOUR")},
    }
)


def test_every_part_of_a_config_is_searched() -> None:
    assert variables(CONFIG) == {"ONE": ["a", "c"], "TWO": ["b"], "THREE": ["judge"], "FOUR": ["writer"]}
    assert variables(CONFIG.ranker, None) == {"THREE": ["judge"]}


def test_all_that_is_missing_is_one_line() -> None:
    told = missing_variables({"TWO": "key", "THREE": " \n"}, CONFIG)
    assert told == (
        "environment variables are not set: ONE (for a, c), THREE (for judge), FOUR (for writer); set each to its "
        "endpoint's key"
    )
    assert missing_variables({"THREE": "key"}, CONFIG.ranker) is None
