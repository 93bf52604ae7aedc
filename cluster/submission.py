"""Submission of a command as a Ray job: code and resolved config are uploaded, and `blend` runs on the cluster.

The job imports the submitter's code, also where the cluster's image has the project installed: an uploaded
working_dir comes first on the path. Of the submitter's environment only the variables that are named travel
(`job_environment`); others that models need (keys, AWS variables, HF_TOKEN) are in the environment of the cluster's
machines.
"""

import asyncio
import contextlib
import importlib.util
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import BaseModel
from ray.job_submission import JobDetails, JobStatus

from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.job_client import JobClient, UnreachableError
from llm_blender_ray.cluster.job_environment import FILE, HOOK, VARIABLE, split_environment
from llm_blender_ray.cluster.job_paths import (
    CONFIG,
    PACKAGE,
    JobPaths,
    is_included,
    local_paths,
    models_in,
    move_included,
)
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.configs.loading import ConfigError

FOLDERS = ("actors", "cluster", "configs", "pipelines")  # of the package, each a directory of its own
MAX_UPLOAD_MB = 50  # models belong on a hub or on the cluster's file system
MAX_ENVIRONMENT_BYTES = 32_768  # Linux has 131,072 for one variable, and twice as many digits are in one
INTERRUPTED = 130  # exit code for a job that was stopped or is no longer followed; 0 means that it succeeded

QUIET_S = 60.0  # without a line of the log, after which the connection counts as dead
RETRY_S = 1.0
LOST_S = 300.0  # without contact, after which following ends
STOPPED_S = 30.0  # for a job to stop


def submit_command(
    client: JobClient,
    arguments: Sequence[str],
    config: BaseModel | None,
    paths: JobPaths,
    *,
    environment: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    wait: bool = False,
) -> int:
    """Run a `blend` command as a job.

    The job's id goes to stdout, hints to stderr. With `wait` the job's log goes to stdout instead, and the exit
    code is the job's.

    Args:
        client: Of the cluster.
        arguments: Of `blend`, the config being `CONFIG`; checked by the caller: mistakes don't reach the cluster.
        config: To upload; its paths are the cluster's (`config_on_cluster`).
        paths: Those in the arguments.
        environment: Variables that all processes of the job get, and that are shown nowhere.
        metadata: For the list of jobs.
        wait: Whether to follow the job to its end.

    Returns:
        Exit code of `blend submit`.

    Raises:
        ConfigError: The upload is too large.
        ClusterError: The cluster cannot be reached.
    """
    job_id = f"blend-{secrets.token_hex(4)}"
    python = sys.executable if paths.here else "python"
    with tempfile.TemporaryDirectory() as folder:
        pack_upload(config, Path(folder), paths.included)
        client.submit_job(
            entrypoint=shlex.join([python, "-m", PACKAGE, *arguments]),
            submission_id=job_id,
            runtime_env={"working_dir": folder, **_private_environment(environment or {}, Path(folder))},
            metadata=dict(metadata or {}),
        )
    if local := list(dict.fromkeys([*paths.local, *(local_paths(config) if config else ())])):
        report_line(f"paths of the cluster's machines, which must see them: {', '.join(local)}")
    if wait:
        report_line(f"job {job_id} (Ctrl-C asks whether to stop it)")
        return follow(client, job_id)
    print(job_id)
    report_line(_how_to("follow", client, job_id))
    report_line(_how_to("stop", client, job_id))
    return 0


def _private_environment(values: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Write one share of the variables to the upload; the runtime environment with the other."""
    if not values:
        return {}
    pad, share = split_environment(values)
    if len(pad) > MAX_ENVIRONMENT_BYTES:
        raise ConfigError(f"--env: {len(pad)} bytes in all, more than {MAX_ENVIRONMENT_BYTES}")
    (folder / FILE).touch(mode=0o600)
    (folder / FILE).write_bytes(pad)
    return {"env_vars": {VARIABLE: share}, "worker_process_setup_hook": HOOK}


def pack_upload(config: BaseModel | None, folder: Path, models: Sequence[Path] = ()) -> None:
    """Fill an empty folder with what a job needs: the packages, the included models it uses, and its config.

    Args:
        config: Of the command, if it has one.
        folder: The folder.
        models: Included models that the command line names.

    Raises:
        ConfigError: The files are larger than MAX_UPLOAD_MB.
    """
    data = config.model_dump(mode="json", exclude_unset=True) if config else {}
    data.get("ray", {}).pop("address", None)  # the job connects to its own cluster
    used = [*models, *(Path(value) for value in models_in(data) if is_included(value))]
    files = dict(_files(used))
    sizes = {target: source.stat().st_size for target, source in files.items()}
    if sum(sizes.values()) > MAX_UPLOAD_MB * 1e6:
        largest = max(sizes, key=lambda target: sizes[target])
        raise ConfigError(
            f"{sum(sizes.values()) / 1e6:.0f} MB to upload, more than {MAX_UPLOAD_MB}; the largest is {largest} "
            f"({sizes[largest] / 1e6:.0f} MB): put it on a hub or on a file system of the cluster, and name that"
        )
    for target, source in files.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / target)
    if config is not None:
        move_included(data)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")


def follow(client: JobClient, job_id: str) -> int:
    """Print a job's log until it ends.

    Returns:
        Its exit code, or 130 after Ctrl-C.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    try:
        return _ended(asyncio.run(_Log(client, job_id).follow()))
    except KeyboardInterrupt:
        return _interrupted(client, job_id)


class _Log:
    """A job's log, printed once despite reconnections: a new connection starts at the log's beginning."""

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._printed = 0  # characters

    async def follow(self) -> JobDetails:
        """Follow the log; the details of the ended job."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
                await self._stream()
            if (info := await self._info()).status.is_terminal():
                break
            await asyncio.sleep(RETRY_S)
        with contextlib.suppress(ClusterError):  # the rest, if the connection broke at the very end
            self._print(self._client.get_job_logs(self._job_id), 0)
        return info

    async def _stream(self) -> None:
        """Stream the log until the job ends; raises when the connection breaks."""
        chunks, at = self._client.tail_job_logs(self._job_id), 0
        with contextlib.suppress(StopAsyncIteration):
            while True:
                chunk = await asyncio.wait_for(anext(chunks), QUIET_S)
                self._print(chunk, at)
                at += len(chunk)

    def _print(self, text: str, at: int) -> None:
        """Print the new part of a text that starts `at` characters into the log."""
        if new := text[max(0, self._printed - at) :]:
            sys.stdout.write(new)
            sys.stdout.flush()
            self._printed += len(new)

    async def _info(self) -> JobDetails:
        deadline, lost = time.monotonic() + LOST_S, False
        while True:
            try:
                return self._client.get_job_info(self._job_id)
            except UnreachableError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{error}; the job may still run. {_how_to('follow', self._client, self._job_id)}"
                    ) from error
                if not lost:
                    report_line("connection lost, trying again")
                lost = True
                await asyncio.sleep(RETRY_S)


def _interrupted(client: JobClient, job_id: str) -> int:
    """After Ctrl-C: on a terminal ask whether to stop the job, else leave it running."""
    try:
        if sys.stdin.isatty() and sys.stderr.isatty():
            print("\nStop the job? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                return _stop(client, job_id)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    report_line(f"the job keeps running. {_how_to('follow', client, job_id)}")
    return INTERRUPTED


def _stop(client: JobClient, job_id: str) -> int:
    client.stop_job(job_id)
    deadline = time.monotonic() + STOPPED_S
    while not (info := client.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > deadline:
            raise ClusterError(f"job {job_id} was asked to stop {STOPPED_S:g} s ago and hasn't")
        time.sleep(RETRY_S / 2)
    return _ended(info)


def _ended(info: JobDetails) -> int:
    """Exit code of an ended job; prints a line about it unless it succeeded."""
    match info.status:
        case JobStatus.SUCCEEDED:
            return 0
        case JobStatus.STOPPED:
            report_line(f"job {info.submission_id} was stopped; submitted again, it resumes from its checkpoints")
            return INTERRUPTED
    code = info.driver_exit_code
    if code is None:  # it never started, or its machine was lost: its log does not tell why
        report_line(f"job {info.submission_id} failed: {' '.join((info.message or 'no reason given').split())}")
        return 1
    report_line(f"job {info.submission_id} failed with exit code {code}")
    return 128 - code if code < 0 else code or 1  # negative: the signal that ended it


def _how_to(do: str, client: JobClient, job_id: str) -> str:
    command = "logs --follow" if do == "follow" else do
    return f"to {do} it: ray job {command} --address {client.get_address()} {job_id}"


def _files(models: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Files to upload, each with its path in the upload; of the included models only those in use."""
    for file in sorted(_folder(PACKAGE).glob("*")):
        if file.is_file():
            yield f"{PACKAGE}/{file.name}", file
    for folder in FOLDERS:
        root = _folder(f"{PACKAGE}.{folder}")
        for file in sorted(root.rglob("*")):
            inside = file.relative_to(root)
            if not file.is_file() or any(re.match(r"\.|__pycache__$", part) for part in inside.parts):
                continue
            if folder == "configs" and len(inside.parts) > 1 and not any(file.is_relative_to(m) for m in models):
                continue
            yield (Path(PACKAGE) / folder / inside).as_posix(), file


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).resolve()
