"""A model's own sampling defaults, of its generation_config.json, for `sampling.from_model`."""

from typing import Any

from transformers import GenerationConfig

from llm_blender_ray.configs.sampling import FROM_MODEL, Sampling


def model_defaults(config: GenerationConfig) -> dict[str, Any]:
    """Read the sampling of a generation config as `generate` does: without `do_sample` it is greedy.

    Args:
        config: The model's.

    Returns:
        Valid values of `configs.sampling.FROM_MODEL`, as far as the config has some.
    """
    given = {name: value for name in FROM_MODEL if (value := getattr(config, name, None)) is not None}
    if not config.do_sample:
        given["temperature"] = 0.0
    elif "temperature" not in given:
        given["temperature"] = 1.0
    if not given.get("top_k"):  # 0 is transformers' name for all tokens
        given.pop("top_k", None)
    checked = Sampling.model_validate(given)
    return {name: getattr(checked, name) for name in given}
