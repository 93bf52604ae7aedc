"""File formats of rows. The registry, by ending, is `configs.formats.FORMATS`."""

import functools
from pathlib import PurePosixPath

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.formats import FORMATS
from llm_blender_ray.configs.registry import RegistryError
from llm_blender_ray.pipelines.rows.compression import ending_of
from llm_blender_ray.pipelines.rows.formats.base import Format


def format_endings() -> list[str]:
    """Endings of files of rows, each with its dot."""
    return [f".{name}" for name in FORMATS.names()]


def format_of(ending: str) -> Format:
    """Format of files with this ending, as `kind` gives it.

    Raises:
        BlendError: The format of another package cannot be used.
    """
    try:
        found = FORMATS.get(ending.removeprefix("."))
    except RegistryError as error:
        raise BlendError(str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Format)):
        raise BlendError(f"file format {ending}: expected a subclass of Format, got {found!r}")
    return _constructed(found)


@functools.cache
def _constructed(found: type[Format]) -> Format:
    return found()


def kind(uri: str) -> str | None:
    """The ending of a file of rows, a registered one (without `.gz` or the like); None for any other file."""
    name = PurePosixPath(uri).name.lower()
    packed = ending_of(name)
    name = name.removesuffix(packed or "")
    ending = next((ending for ending in format_endings() if name.endswith(ending) and name != ending), None)
    return None if packed and ending and not format_of(ending).compressible else ending
