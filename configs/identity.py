"""Settings that decide results, and those that only decide where and how fast a part runs (`RUNTIME_ONLY`).

Results of an earlier session stay valid as long as the former do not change.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.settings import OMIT_DEFAULT, RUNTIME_ONLY


def deciding(settings: BaseModel) -> dict[str, Any]:
    """Select the settings that decide results.

    Args:
        settings: Any settings.

    Returns:
        Their values as JSON has them, without fields marked `RUNTIME_ONLY` at any depth, nor those marked
        `OMIT_DEFAULT` that have their default, and with the `results_version` of every part.

    Raises:
        PydanticSerializationError: A value has no JSON form.
    """
    return _deciding(settings, settings.model_dump(mode="json"))


def settings_digest(value: Any, *, size: int = 8) -> str:
    """Make the digest of what decides results, the same for caches and for keys of results.

    Args:
        value: A JSON value, such as what `deciding` returns.
        size: Bytes of the digest.

    Returns:
        `2 * size` hexadecimal digits.

    Raises:
        TypeError: The value, or a part of it, has no JSON form.
    """
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()


def _deciding(value: Any, dumped: Any) -> Any:
    """The part of a value's JSON form that decides results."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        kept = [name for name, field in fields if name in dumped and _decides(field, getattr(value, name))]
        found = {name: _deciding(getattr(value, name), dumped[name]) for name in kept}
        return found | {"results_version": value.results_version} if isinstance(value, PartSettings) else found
    if isinstance(value, Mapping):
        return {str(name): _deciding(item, dumped[str(name)]) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_deciding(item, one) for item, one in zip(value, dumped, strict=True)]
    if isinstance(dumped, str) and dumped.startswith(f"{PRESETS}/"):
        return dumped.removeprefix(f"{PRESETS}/")  # included models: a job unpacks them elsewhere each time
    return dumped


def _decides(field: FieldInfo, value: Any) -> bool:
    """Whether a field with this value is part of what decides results."""
    if RUNTIME_ONLY in field.metadata:
        return False
    return OMIT_DEFAULT not in field.metadata or value != field.get_default(call_default_factory=True)
