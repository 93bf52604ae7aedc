"""A model's own sampling defaults, of its generation_config.json, for `sampling.from_model`."""

from typing import Any

from pydantic import ValidationError
from transformers import GenerationConfig

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.configs.sampling import FROM_MODEL, Sampling


def model_defaults(config: GenerationConfig) -> dict[str, Any]:
    """Read the sampling of a generation config as `generate` does: without `do_sample` it is greedy.

    Args:
        config: The model's.

    Returns:
        Valid values of `configs.sampling.FROM_MODEL`, as far as the config has some.

    Raises:
        ModelLoadError: A value is outside the range of its setting.
    """
    given = {name: value for name in FROM_MODEL if (value := getattr(config, name, None)) is not None}
    if not config.do_sample:
        given["temperature"] = 0.0
    elif "temperature" not in given:
        given["temperature"] = 1.0
    if not given.get("top_k"):  # 0 is transformers' name for all tokens
        given.pop("top_k", None)
    try:
        checked = Sampling.model_validate(given)
    except ValidationError as error:
        (name, *_), value = error.errors()[0]["loc"], error.errors()[0]["input"]
        raise ModelLoadError(
            f"sampling.from_model: {name} of the model's generation_config.json is {value!r}, which no setting can "
            f"be; set sampling.{name}"
        ) from error
    return {name: getattr(checked, name) for name in given}
