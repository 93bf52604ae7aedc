"""The process that a training function runs in: this one, or a worker of Ray Train (`distributed`).

A training function is the same in both; what differs is where checkpoints and results go.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from llm_blender_ray.pipelines.rows.storage import upload
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints, UploadedCheckpoints


class TrainingProcess(Protocol):
    """One of the processes of a training."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the training."""
        ...

    def result(self) -> contextlib.AbstractContextManager[Path]:
        """Folder of this machine for the trained model, which is at the output after the block."""
        ...

    def started(self) -> contextlib.AbstractContextManager[None]:
        """Block in which a BlendError ends the training for good: another try would end in the same way."""
        ...


@contextlib.contextmanager
def result_folder(output: str) -> Iterator[Path]:
    """Folder of this machine whose content is at the output after the block.

    A block that fails leaves the output as it was.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(output)
    target = Path(path) if is_local(fs) else None
    if target:
        target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".result-") as scratch:
        folder = Path(scratch) / PurePosixPath(path).name  # a model card has the name
        folder.mkdir()
        yield folder
        if target is None:
            upload(folder, output)
            return
        for file in sorted(folder.iterdir()):
            file.replace(target / file.name)


class OnlyProcess:
    """The process of a training that runs here."""

    def __init__(self, output: str, checkpoints: Checkpoints) -> None:
        self._output = output
        self.checkpoints = checkpoints

    def result(self) -> contextlib.AbstractContextManager[Path]:
        """See base class."""
        return result_folder(self._output)

    def started(self) -> contextlib.AbstractContextManager[None]:
        """See base class."""
        return contextlib.nullcontext()


@contextlib.contextmanager
def only_process(output: str, keep: int) -> Iterator[OnlyProcess]:
    """The process of a training that runs here.

    Args:
        output: Of the training.
        keep: Checkpoints to keep.
    """
    if is_local(filesystem(output)[0]):
        yield OnlyProcess(output, Checkpoints(Path(output) / "checkpoints"))
        return
    with tempfile.TemporaryDirectory(prefix="blend-train-") as folder:
        uri = f"{output.rstrip('/')}/checkpoints"
        yield OnlyProcess(output, UploadedCheckpoints(uri, Path(folder), keep))
