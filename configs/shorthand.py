"""Shorthand of a part with its options, on the command line and in YAML: `kind` or `kind:option=value,...`."""

from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings

_SettingsT = TypeVar("_SettingsT", bound=Settings)


def read_shorthand(text: str, schema: type[_SettingsT]) -> _SettingsT:
    """Read settings from their shorthand.

    Args:
        text: `kind` or `kind:option=value,...`, the values being YAML.
        schema: Settings of that kind; a field `kind` is no option.

    Raises:
        ValueError: An option is unknown or repeated, or a value is wrong.
    """
    kind, colon, options = text.partition(":")
    names = [field for field in schema.model_fields if field != "kind"]
    listed = [name for name in names if RUNTIME_ONLY not in schema.model_fields[name].metadata]
    given: dict[str, Any] = {}
    for option in options.split(",") if colon else []:
        name, equals, value = option.partition("=")
        if name not in names:
            raise ValueError(f"{kind} has no option {name!r}, it takes {', '.join(listed) or 'none'}")
        if not equals or name in given:
            raise ValueError(f"{text}: expected {kind}:option=value,..., each option once")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{kind}: {name}={value} is not a YAML value") from error
    try:
        return schema(**given)
    except ValidationError as error:
        mistake = error.errors()[0]
        if mistake["type"] == "missing":
            raise ValueError(f"{kind} needs an option: {kind}:{mistake['loc'][0]}=...") from error
        expected = mistake["msg"].replace("Input should be", "expected")
        raise ValueError(f"{kind}: {mistake['loc'][0]}: {expected}, got {mistake['input']!r}") from error
