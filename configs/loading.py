"""Config files: YAML, then overrides of the command line, then the schema. Each mistake is one line."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from llm_blender_ray.configs.rubrics import read_rubric_file
from llm_blender_ray.configs.templates import read_if_file
from llm_blender_ray.configs.weight_formats import GGUF_SUFFIX

_SettingsT = TypeVar("_SettingsT", bound=BaseModel)

PRESETS = Path(__file__).resolve().parent


class ConfigError(Exception):
    """A config can't be used; the message has one line per mistake (exit code 2)."""


def load(path: str | Path, schema: type[_SettingsT], overrides: Sequence[str] = ()) -> _SettingsT:
    """The config at `path` as `schema`, with `a.b=value` overrides (values are YAML; numbers index lists).

    A relative folder named by `model` or `backbone` is resolved against the config's folder where it exists; a
    file named by `chat_template` or `rubric` is replaced by its contents.

    Raises:
        ConfigError: The file can't be read, or a setting is wrong; one line for each mistake.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return load_mapping(data, schema, overrides, name=str(path), folder=file.resolve().parent)


def load_mapping(
    data: Any,
    schema: type[_SettingsT],
    overrides: Sequence[str] = (),
    *,
    name: str,
    folder: Path = PRESETS,
) -> _SettingsT:
    """A config that is a mapping already, as `schema`.

    Args:
        data: The mapping.
        schema: Class of the settings.
        overrides: As for `load`.
        name: Name of the config in messages.
        folder: Where relative paths start.

    Raises:
        ConfigError: A setting is wrong; one line for each mistake.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected a mapping of settings, got {_kind(data)}")
    data = copy.deepcopy(data)
    for override in overrides:
        _override(data, override)
    _resolve_folders(data, folder)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        lines = [f"{name}: {_where(e['loc'], data)}: {_mistake(e)}" for e in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _override(data: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in `data`; sections on the way are made when absent."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
    here: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise ConfigError(f"--set {override}: {'.'.join(keys[:depth])} has items 0 to {len(here) - 1}")
            at: Any = int(key)
        elif isinstance(here, dict):
            at = key
            if not last and here.get(key) is None:
                here[key] = {}
        else:
            raise ConfigError(f"--set {override}: {'.'.join(keys[:depth])} is {_kind(here)}, so it has no {key}")
        if last:
            here[at] = value
        else:
            here[at] = copy.copy(here[at])  # a YAML anchor may share it with another model
            here = here[at]


def _resolve_folders(data: Any, base: Path) -> None:
    """Resolve relative model folders against the config's folder and read template files, in place."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if key in ("model", "backbone") and isinstance(value, str) and _is_model(base / value):
            data[key] = str((base / value).resolve())
        elif key == "adapter":
            data[key] = _resolved_adapter(value, base)
        elif key == "adapters" and isinstance(value, dict):
            data[key] = {name: _resolved_adapter(adapter, base) for name, adapter in value.items()}
        elif key == "chat_template" and isinstance(value, str):
            data[key] = read_if_file(value, base)
        elif key == "rubric" and isinstance(value, str):
            data[key] = read_rubric_file(value, base)
        else:
            _resolve_folders(value, base)


def _resolved_adapter(value: Any, base: Path) -> Any:
    """An adapter, a path or a mapping with one, with its folder resolved."""
    if isinstance(value, str):
        return str((base / value).resolve()) if (base / value).is_dir() else value
    return {**value, "path": _resolved_adapter(value["path"], base)} if _has_path(value) else value


def _has_path(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str)


def _is_model(path: Path) -> bool:
    return path.is_dir() or (path.suffix == GGUF_SUFFIX and path.is_file())


def _where(loc: tuple[int | str, ...], data: Any) -> str:
    """The path to a field as the file has it: pydantic puts the kind of a union's member in between."""
    path: list[str] = []
    here = data
    for depth, key in enumerate(loc):
        if path and not isinstance(here, dict | list):
            break  # the kind of a union's member, where the file has no mapping
        if isinstance(here, dict) and key not in here and depth < len(loc) - 1:
            continue
        path.append(str(key))
        inside = (isinstance(here, dict) and key in here) or (isinstance(here, list) and isinstance(key, int))
        here = here[key] if inside else None
    return ".".join(path) or "config"


def _kind(value: object) -> str:
    names: Mapping[type, str] = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _mistake(error: Any) -> str:
    """Text of one mistake, from pydantic's error."""
    match error["type"]:
        case "extra_forbidden":
            return "unknown setting"
        case "unknown_kind":
            return str(error["msg"])
        case "missing":
            return "required, but missing"
        case "union_tag_invalid":
            ctx = error["ctx"]
            return f"unknown {ctx['discriminator'].strip(chr(39))} {ctx['tag']!r}, expected {ctx['expected_tags']}"
        case "union_tag_not_found":
            return f"{error['ctx']['discriminator'].strip(chr(39))} is required, but missing"
        case "model_type" | "model_attributes_type":
            return f"expected a mapping of settings, got {_shown(error['input'])}"
        case "value_error":
            return str(error["ctx"]["error"])
    expected = error["msg"].replace("Input should be", "expected").replace("Value should", "should")
    return f"{expected}, got {_shown(error['input'])}"


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float) else _kind(value)
