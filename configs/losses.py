"""The registry of losses of a PairRanker on scored candidates, and how a config names one.

A loss is a class of its own, settings and arithmetic, and one line of the registry (or an entry point
`llm_blender_ray.losses`): `pipelines.train.pair_losses` has the built-in ones.
"""

from typing import Annotated

from pydantic import BeforeValidator

from llm_blender_ray.configs.registry import OneOf, Registry, RegistryError
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.shorthand import read_shorthand


class LossSettings(Settings):
    """Settings that every loss has."""

    kind: str


_BUILT_IN = "llm_blender_ray.pipelines.train.pair_losses"
LOSSES: Registry[type[LossSettings]] = Registry(
    "loss",
    "llm_blender_ray.losses",
    {
        "instructgpt": f"{_BUILT_IN}:InstructGPT",
        "bce": f"{_BUILT_IN}:BinaryCrossEntropy",
        "mse": f"{_BUILT_IN}:MeanSquaredError",
        "open_instruct_bce": f"{_BUILT_IN}:OpenInstructBCE",
        "bradley_terry": f"{_BUILT_IN}:BradleyTerry",
    },
)


def _from_text(value: object) -> object:
    """`kind` or `kind:option=value,...` as settings; anything but text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return read_shorthand(value, LOSSES.get(value.partition(":")[0]))
    except RegistryError as error:
        raise ValueError(str(error)) from error


PairwiseLoss = Annotated[Annotated[LossSettings, OneOf(LOSSES, "kind")], BeforeValidator(_from_text)]
