"""Outputs of a run among its inputs.

Files that an earlier session wrote are never read, and a user's files are never replaced.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.outputs import Output, is_part
from llm_blender_ray.pipelines.rows.uris import filesystem, find, is_local


def own_outputs(uri: str, outputs: Sequence[Output], record: Callable[[], Mapping[str, Any] | None]) -> list[str]:
    """Paths of the files under an input that an earlier session of the same run wrote.

    Args:
        uri: The input.
        outputs: The run's output, and that of its preference pairs, if any.
        record: Reads the record of the run's start (`CheckpointStore.run`): None without an earlier session.

    Raises:
        BlendError: The run would write to its input, or there is no input.
    """
    files = find(uri).files
    own = []
    for output in outputs:
        place = _real(output.uri)
        if place == _real(uri):
            raise _refusal(output.uri)
        folder = output.is_folder
        for file in files:
            if _real(file.rpartition("/")[0] if folder else file) != place:
                continue
            mine = is_part(PurePosixPath(file).name) if folder else True
            if not mine or output.uri not in _written(outputs, record()):
                raise _refusal(output.uri)
            own.append(filesystem(file)[1])
    return own


def _refusal(output: str) -> BlendError:
    return BlendError(f"{output}: is read by this run too; choose another output")


def _written(outputs: Sequence[Output], record: Mapping[str, Any] | None) -> set[str]:
    """Outputs that an earlier session wrote, or began to."""
    if record is None:
        return set()
    pairs = record["identity"].get("preferences") or {}
    return {output.uri for i, output in enumerate(outputs) if i == 0 or output.uri == pairs.get("output")}


def _real(uri: str) -> str:
    """A local path with its links resolved; other URIs unchanged."""
    fs, path = filesystem(uri)
    return os.path.realpath(path) if is_local(fs) else path.rstrip("/")
