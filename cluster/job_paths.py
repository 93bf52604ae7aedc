"""Paths of a command line and its config, as a job on a cluster names them.

Rows, outputs and models stay where they are: the cluster's machines must be able to read the same paths. The
project's own models travel with a job, so their paths become those in the upload.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from llm_blender_ray.configs.loading import PRESETS, ConfigError

PACKAGE = "llm_blender_ray"
CONFIG = "blend.yaml"  # in the uploaded folder
URIS = ("input", "output", "train", "heldout")  # settings of configs that name rows and outputs

_ConfigT = TypeVar("_ConfigT", bound=BaseModel)
_MODEL_SETTINGS = ("model", "backbone", "path")  # `path` is an adapter's
_MODEL_OF_METRIC = re.compile(r"(?<=[:,]model=)[^,]+")


@dataclass(slots=True)
class JobPaths:
    """Paths on a command line, as a job on the cluster names them.

    Attributes:
        here: Whether the job runs on this machine, so that it has its paths.
        included: The included models among them, which are uploaded.
        local: Those that are not uploaded: the cluster's machines must have them.
    """

    here: bool
    included: list[Path] = field(default_factory=list)
    local: list[str] = field(default_factory=list)

    def uri(self, option: str, uri: str) -> str:
        """A URI of rows or of any other file.

        Raises:
            ConfigError: It depends on a folder of this machine, and the job runs on another.
        """
        found = on_cluster(option, uri, self.here)
        if _is_path(found):
            self.local.append(found)
        return found

    def model(self, option: str, model: str) -> str:
        """A model: a folder or file, or the id of one on a hub.

        Raises:
            ConfigError: As for `uri`.
        """
        path = Path(model).expanduser()
        if path.is_absolute() or path.exists():
            if not is_included(str(path.resolve())):
                return self.uri(option, model)
            self.included.append(path.resolve())
            return _uploaded(path.resolve())
        return model

    def metric(self, metric: str) -> str:
        """A metric in the command line's form, whose option `model` may be a folder.

        Raises:
            ConfigError: As for `uri`.
        """
        return _MODEL_OF_METRIC.sub(lambda found: self.model("metric", found[0]), metric)


def config_on_cluster(config: _ConfigT, here: bool) -> _ConfigT:
    """A config with the paths of its rows and outputs as the job reads them.

    Raises:
        ConfigError: One depends on a folder of this machine, and the job runs on another.
    """
    changes: dict[str, Any] = {
        name: on_cluster(name, uri, here) for name in URIS if (uri := getattr(config, name, None)) is not None
    }
    if (preferences := getattr(config, "preferences", None)) is not None:
        output = on_cluster("preferences.output", preferences.output, here)
        changes["preferences"] = preferences.model_copy(update={"output": output})
    return config.model_copy(update=changes)


def on_cluster(setting: str, uri: str, here: bool) -> str:
    """A URI as the job reads it.

    Raises:
        ConfigError: It depends on a folder of this machine, and the job runs on another.
    """
    if "://" in uri or Path(uri).is_absolute():
        return uri
    if here:
        return str(Path(uri).expanduser().absolute())
    raise ConfigError(
        f"{setting}: {uri}: the cluster's machines can't see this folder; give s3://..., or the absolute path of a "
        "file system that they share"
    )


def local_paths(config: BaseModel) -> list[str]:
    """Paths in the config that are not uploaded: rows, outputs, and model folders."""
    uris = [uri for name in URIS if (uri := getattr(config, name, None)) and _is_path(uri)]
    models = [value for value in models_in(config.model_dump()) if Path(value).is_absolute()]
    return list(dict.fromkeys(uris + [value for value in models if not is_included(value)]))


def _is_path(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def is_included(model: str) -> bool:
    """Whether a model is one of the project's folders."""
    return Path(model).is_absolute() and Path(model).is_relative_to(PRESETS)


def _uploaded(model: Path) -> str:
    """Path of an included model in the upload."""
    return (Path(PACKAGE) / "configs" / model.relative_to(PRESETS)).as_posix()


def _items(data: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        return data.items()
    return enumerate(data) if isinstance(data, list | tuple) else ()


def models_in(data: Any) -> Iterator[str]:
    """Every model in a config's data."""
    for key, value in _items(data):
        if key in _MODEL_SETTINGS and isinstance(value, str):
            yield value
        else:
            yield from models_in(value)


def move_included(data: Any) -> None:
    """Replace paths of included models with those in the upload, in place."""
    for key, value in _items(data):
        if key in _MODEL_SETTINGS and isinstance(value, str) and is_included(value):
            data[key] = _uploaded(Path(value))
        else:
            move_included(value)
