"""Keys of a bulk run's results: digests of everything that decides them.

The key of a stage's result covers the settings of its part, the versions of the code behind them, the local
weights, and the keys of the stages before it. A result with another key is in another folder and is not reused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.model_digest import model_digest
from llm_blender_ray.configs.identity import deciding, settings_digest
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.pipelines.bulk.checkpoints import FORMAT
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.stages import STAGES, is_independent


def run_identity(settings: Mapping[str, Any], parts: Mapping[str, PartSettings]) -> dict[str, Any]:
    """Describe what decides the output of a run, as `run.json` stores it.

    Args:
        settings: Settings that decide what is written.
        parts: Settings of the parts by name.

    Returns:
        The settings, with the versions of the stages' code and the digests of local weights.

    Raises:
        BlendError: A local model folder cannot be read.
    """
    stages = sorted({part.stage for part in parts.values()})
    return {
        **settings,
        "stage_versions": {stage: STAGES[stage].results_version for stage in stages},
        "weights": {name: digest for name, part in parts.items() if (digest := _weights_digest(part))},
    }


def _weights_digest(part: PartSettings) -> str | None:
    """Digest of the weights that a part's actors load; None where this machine has none of them."""
    weights = part.model_settings.weights
    if weights is None:
        return None
    digests = []
    for path in (weights.model, *(adapter.path for adapter in weights.adapters)):
        try:
            digests.append(model_digest(path))
        except OSError as error:
            raise BlendError(f"{path}: cannot be read: {one_line(error)}") from error
    return digests[0] if len(digests) == 1 or not any(digests) else settings_digest(digests)


def result_keys(
    parts: Mapping[str, PartSettings], weights: Mapping[str, str], llms: Iterable[str], prepare: str = ""
) -> dict[str, str]:
    """Make the keys of all stages' results.

    Independent stages (`stages.is_independent`) have keys of their own settings.

    Args:
        parts: Settings of the parts by name, in the order of their stages.
        weights: Digests of the parts' local weights by name.
        llms: Names of the base LLMs in the order of their candidates, which is an input of the other stages.
        prepare: Name of the function applied to the rows before all stages.

    Returns:
        The key of each part by name.
    """
    keys = {name: settings_digest(_deciding(parts[name], weights.get(name))) for name in llms}
    before = [*keys.values(), prepare]
    for name, part in parts.items():
        if is_independent(part.stage):
            keys[name] = settings_digest(_deciding(part, weights.get(name)))
        elif name not in keys:
            keys[name] = settings_digest([_deciding(part, weights.get(name)), *before])
            before.append(keys[name])
    return keys


def scorer_key(part: PartSettings, weights: str | None) -> str:
    """Make the key of a part's results of pairs, which the choice of pairs leaves unchanged.

    Args:
        part: Settings of a ranker or a judge.
        weights: Digest of its local weights.

    Returns:
        16 hexadecimal digits; empty for a part that compares no pairs.
    """
    stage = ROW_STAGES.get(part.stage)
    if stage is None or not stage.pair_settings:
        return ""
    return settings_digest(_deciding(part, weights, without=stage.pair_settings))


def _deciding(part: PartSettings, weights: str | None, without: frozenset[str] = frozenset()) -> list[Any]:
    """Everything about a part that decides its results, as JSON values."""
    settings = {name: value for name, value in deciding(part).items() if name not in without}
    return [FORMAT, STAGES[part.stage].results_version, settings, weights]
