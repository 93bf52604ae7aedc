"""Submission of a run as a Ray job: code and resolved config are uploaded, and `blend run` runs on the cluster.

The job imports the submitter's code, also where the cluster's image has the project installed: an uploaded
working_dir comes first on the path. Nothing of the submitter's environment travels, so no secret does: what the
models need (keys, AWS variables, HF_TOKEN) is in the environment of the cluster's machines.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.job_submission import JobDetails, JobStatus

from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.job_client import JobClient, UnreachableError, connect
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.configs.loading import PRESETS, ConfigError
from llm_blender_ray.configs.schema import BlendConfig

PACKAGE = "llm_blender_ray"
FOLDERS = ("actors", "cluster", "configs", "pipelines")  # of the package, each a directory of its own
CONFIG = "blend.yaml"  # in the uploaded folder
MAX_UPLOAD_MB = 50  # models belong on a hub or on the cluster's file system
INTERRUPTED = 130  # exit code for a job that was stopped or is no longer followed; 0 means that it succeeded

QUIET_S = 60.0  # without a line of the log, after which the connection counts as dead
RETRY_S = 1.0
LOST_S = 300.0  # without contact, after which following ends
STOPPED_S = 30.0  # for a job to stop


def submit_run(
    config: BlendConfig, address: str, *, flags: Sequence[str] = (), wait: bool = False, name: str = "blend"
) -> int:
    """Run `blend run` with a config as a job.

    The job's id goes to stdout, hints to stderr. With `wait` the job's log goes to stdout instead, and the exit
    code is the job's.

    Args:
        config: With `input` and `output`; validated here, so that mistakes do not reach the cluster.
        address: Of the cluster's dashboard.
        flags: Of `blend run`.
        wait: Whether to follow the job to its end.
        name: For the list of jobs.

    Returns:
        Exit code of `blend submit`.

    Raises:
        ConfigError: The cluster cannot access a path.
        ClusterError: The cluster cannot be reached.
    """
    client = connect(address)
    here = client.runs_here()
    config = config.model_copy(
        update={key: on_cluster(key, getattr(config, key), here) for key in ("input", "output")}
    )
    job_id = f"blend-{secrets.token_hex(4)}"
    python = sys.executable if here else "python"
    with tempfile.TemporaryDirectory() as folder:
        pack_upload(config, Path(folder))
        client.submit_job(
            entrypoint=shlex.join([python, "-m", PACKAGE, "run", CONFIG, *flags]),
            submission_id=job_id,
            runtime_env={"working_dir": folder},
            metadata={"config": name, "output": config.output or ""},
        )
    if paths := local_paths(config):
        report_line(f"paths of the cluster's machines, which must see them: {', '.join(paths)}")
    if wait:
        report_line(f"job {job_id} (Ctrl-C asks whether to stop it)")
        return follow(client, job_id)
    print(job_id)
    report_line(_how_to("follow", client, job_id))
    report_line(_how_to("stop", client, job_id))
    return 0


def on_cluster(setting: str, uri: str | None, here: bool) -> str | None:
    """A URI as the job reads it.

    Raises:
        ConfigError: It depends on a folder of this machine, and the job runs on another.
    """
    if uri is None or "://" in uri or Path(uri).is_absolute():
        return uri
    if here:
        return str(Path(uri).expanduser().absolute())
    raise ConfigError(
        f"{setting}: {uri}: the cluster's machines can't see this folder; give s3://..., or the absolute path of a "
        "file system that they share"
    )


def local_paths(config: BlendConfig) -> list[str]:
    """Paths in the config that are not uploaded: rows, and model folders."""
    uris = [uri for uri in (config.input, config.output) if uri and ("://" not in uri or uri.startswith("file://"))]
    models = [value for value in _models(config.model_dump()) if Path(value).is_absolute()]
    return list(dict.fromkeys(uris + [value for value in models if not _included(value)]))


def pack_upload(config: BlendConfig, folder: Path) -> None:
    """Fill an empty folder with what a job needs: the packages, the included models it uses, and its config.

    Raises:
        ConfigError: The files are larger than MAX_UPLOAD_MB.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    data.get("ray", {}).pop("address", None)  # the job connects to its own cluster
    used = [Path(value) for value in _models(data) if _included(value)]
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
    _move_included(data)
    (folder / CONFIG).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


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


def _included(model: str) -> bool:
    """Whether a model is one of the project's folders."""
    return Path(model).is_absolute() and Path(model).is_relative_to(PRESETS)


def _items(data: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        return data.items()
    return enumerate(data) if isinstance(data, list | tuple) else ()


def _models(data: Any) -> Iterator[str]:
    """Every `model` in a config's data."""
    for key, value in _items(data):
        if key == "model" and isinstance(value, str):
            yield value
        else:
            yield from _models(value)


def _move_included(data: Any) -> None:
    """Replace paths of included models with those in the upload, in place."""
    for key, value in _items(data):
        if key == "model" and isinstance(value, str) and _included(value):
            data[key] = (Path(PACKAGE) / "configs" / Path(value).relative_to(PRESETS)).as_posix()
        else:
            _move_included(value)
