"""Checkpoints of a training, and the one to resume from."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.main import IncEx
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.scaling import TrainingScaling
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.pipelines.rows import storage

# Settings that change no step: a folder may be moved, and a run resume on other machines.
_ELSEWHERE: Mapping[str, bool | IncEx] = {
    "output": True,
    "on_failure": True,
    "ray": True,
    "scaling": {*TrainingScaling.model_fields} - {"workers"},
}
_RECORD = "settings.json"  # beside the checkpoints: the settings that they belong to


class Checkpoints:
    """Checkpoints in a folder of this machine, which the Trainer writes, finds and removes by itself.

    Attributes:
        folder: Where the Trainer saves them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, settings: Settings) -> None:
        """Check that they belong to a run with these settings, and store the settings beside them.

        Raises:
            BlendError: They belong to another run.
        """
        check_settings(str(self.folder), settings, found=_whole_checkpoint(self.folder) is not None)

    @contextlib.contextmanager
    def last(self) -> Iterator[str | None]:
        """The last complete one, as a folder of this machine that exists within the block."""
        yield _whole_checkpoint(self.folder)

    def fetched(self, name: str) -> str:
        """Path of one on this machine."""
        return str(self.folder / name)

    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks that the Trainer calls for them."""
        return []


class UploadedCheckpoints(Checkpoints):
    """Checkpoints that the Trainer writes on this machine, and that are copied to an object store."""

    def __init__(self, uri: str, folder: Path, keep: int) -> None:
        """Start.

        Args:
            uri: Folder in the object store.
            folder: Folder of this machine.
            keep: The last ones to keep there, beside the best.
        """
        super().__init__(folder)
        self._uri = uri
        self._keep = keep

    def check(self, settings: Settings) -> None:
        """See base class."""
        check_settings(self._uri, settings, found=bool(self._whole()))

    @contextlib.contextmanager
    def last(self) -> Iterator[str | None]:
        """See base class."""
        whole = self._whole()
        yield self.fetched(whole[-1]) if whole else None

    def fetched(self, name: str) -> str:
        """See base class."""
        if not (self.folder / name / TRAINER_STATE_NAME).is_file():
            storage.fetch_folder(f"{self._uri}/{name}", self.folder / name)
        return str(self.folder / name)

    def callbacks(self) -> list[TrainerCallback]:
        """See base class."""
        return [_Upload(self)]

    def saved(self, name: str, best: str | None) -> None:
        """Copy one, then remove those that are not kept.

        Args:
            name: The one that the Trainer has saved.
            best: Name of the best so far.
        """
        storage.upload(self.folder / name, f"{self._uri}/{name}", last=TRAINER_STATE_NAME)
        for old in checkpoint_names(storage.names(self._uri))[: -self._keep]:
            if old != best:
                storage.remove(f"{self._uri}/{old}")

    def _whole(self) -> list[str]:
        """Names of the complete ones, by step; the Trainer's state is copied last."""
        found = checkpoint_names(storage.names(self._uri))
        return [name for name in found if TRAINER_STATE_NAME in storage.names(f"{self._uri}/{name}")]


class _Upload(TrainerCallback):
    """Copies every saved checkpoint, in the first process."""

    def __init__(self, checkpoints: UploadedCheckpoints) -> None:
        self._checkpoints = checkpoints

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See base class."""
        if state.is_world_process_zero:
            best = state.best_model_checkpoint
            name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self._checkpoints.saved(name, Path(best).name if best else None)


def check_settings(folder: str, settings: Settings, *, found: bool) -> None:
    """Check a folder of checkpoints, and store the settings there: a mix of two runs' states is neither.

    Args:
        folder: URI of the checkpoints.
        settings: Of the run.
        found: Whether there are any.

    Raises:
        BlendError: They belong to a run with other settings.
    """
    text = settings.model_dump_json(exclude=_ELSEWHERE)
    record = f"{folder}/{_RECORD}"
    given = storage.get(record) if found else None
    if given is not None:
        before, now = json.loads(given), json.loads(text)
        now = _without_unused(now, before, settings.model_dump(mode="json", exclude_defaults=True))
        if changed := describe_changes(before, now):
            raise BlendError(
                f"{folder}: checkpoints of a run with other settings ({'; '.join(changed)}); remove them or choose "
                "another output"
            )
    storage.put(record, text.encode())


def _without_unused(now: Mapping[str, Any], before: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that an earlier version did not have, and that have their defaults."""
    return {
        name: _without_unused(value, before[name], used.get(name) or {})
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping)
        else value
        for name, value in now.items()
        if name in before or name in used
    }


def step_of(name: str) -> int:
    """Step of a checkpoint's name."""
    return int(name.rpartition("-")[2])


def checkpoint_names(names: set[str]) -> list[str]:
    """Names of checkpoints among others, by step."""
    found = [name for name in names if name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and name[11:].isdecimal()]
    return sorted(found, key=step_of)


def _whole_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint: a kill can leave half of one, where the Trainer's state is missing."""
    found = [one for one in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (one / TRAINER_STATE_NAME).is_file()]
    return str(max(found, key=lambda one: step_of(one.name))) if found else None
