"""Training on Ray: Ray Train's `TorchTrainer` starts the workers, each of which runs the training function.

Ray Train places the workers, connects them, stores their checkpoints and restarts them after a death. The order of
the examples is not Ray Data's: its blocks come to workers as they are ready, which no restart can repeat. Ray Data
prepares the rows, and every worker maps the result (`prepare`).
"""

import contextlib
import logging
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.cluster.preflight import check_workers
from llm_blender_ray.cluster.ray_internals import only_errors
from llm_blender_ray.cluster.session import capacity, running
from llm_blender_ray.configs.scaling import TrainingScaling
from llm_blender_ray.configs.training import TrainingRun
from llm_blender_ray.pipelines.rows import storage
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints, check_settings, checkpoint_names
from llm_blender_ray.pipelines.train.prepare import Part, Preparation, TrainingData, remove_copies
from llm_blender_ray.pipelines.train.process import TrainingProcess, result_folder

_FOLLOWERS = ("Connection closed", "Connection reset", "NCCL", "Gloo", "gloo")  # in errors of a lost connection
_PARTS = 64  # of a data set, at most: a worker maps each
_POLL_S = 0.2
# Ray Train moves workers to a folder where the relative paths of a config do not lead, and replaces `print`.
_RAY_TRAIN = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


class _Relay:
    """Actor through which the first worker's lines and results come to the driver."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._result: dict[str, float] = {}
        self._error: str | None = None

    def add(self, stream: str, line: str) -> None:
        """Add a line of `stdout` or `stderr`."""
        self._lines.append((stream, line))

    def take(self) -> list[tuple[str, str]]:
        """The lines since the last call."""
        taken, self._lines = self._lines, []
        return taken

    def end(self, result: dict[str, float], error: str | None = None) -> None:
        """Store the result of the training, or why it ended for good; the first reason counts."""
        self._result, self._error = result, self._error or error

    def ended(self) -> tuple[dict[str, float], str | None]:
        """What `end` has stored."""
        return self._result, self._error


class _Lines:
    """Text stream whose whole lines go to the relay."""

    def __init__(self, relay: Any, stream: str) -> None:
        self._relay = relay
        self._stream = stream
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._relay.add.remote(self._stream, line)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@dataclass(frozen=True)
class _Job:
    """What a worker runs."""

    config: TrainingRun
    output: str  # absolute
    data: TrainingData
    train: Callable[[Any, TrainingData, TrainingProcess], dict[str, float]]
    relay: Any


class _ReportedCheckpoints(Checkpoints):
    """Checkpoints that each worker saves its part of, and Ray Train brings together and stores."""

    def check(self, settings: Any) -> None:
        """The driver has checked them."""

    @contextlib.contextmanager
    def last(self) -> Iterator[str | None]:
        """See base class."""
        if (found := ray.train.get_checkpoint()) is None:
            yield None
            return
        with found.as_directory() as folder:
            yield folder

    def fetched(self, name: str) -> str:
        """See base class."""
        for reported in ray.train.get_all_reported_checkpoints():
            found = reported.checkpoint
            if Path(found.path).name == name:
                if isinstance(found.filesystem, pyarrow.fs.LocalFileSystem):
                    return str(found.path)
                return str(found.to_directory(str(self.folder / name)))
        raise BlendError(f"{name}: the best checkpoint is not there any more")

    def callbacks(self) -> list[TrainerCallback]:
        """See base class."""
        return [_ReportSaved()]


class _ReportSaved(TrainerCallback):
    """Hands every saved checkpoint to Ray Train, which ends when those of all workers are stored."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See base class."""
        folder = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        figure = str(args.metric_for_best_model)
        found = [log[figure] for log in state.log_history if figure in log]
        ray.train.report(
            {"step": state.global_step, **({figure: found[-1]} if found else {})},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=folder.name,
            delete_local_checkpoint_after_upload=True,
        )


class _Worker:
    """A worker of Ray Train as a process of the training."""

    def __init__(self, output: str, folder: Path) -> None:
        self._output = output
        self.checkpoints: Checkpoints = _ReportedCheckpoints(folder)

    def result(self) -> contextlib.AbstractContextManager[Path]:
        """See base class."""
        return result_folder(self._output)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """See base class. The workers exchange their errors: none waits for one that has ended."""
        mine: str | None = None
        try:
            yield
        except BlendError as error:
            mine = one_line(error)
        errors: list[str | None] = [None] * ray.train.get_context().get_world_size()
        torch.distributed.all_gather_object(errors, mine)  # Ray Train has connected them, a single one too
        found = {rank: error for rank, error in enumerate(errors) if error}
        if found:
            rank, why = next(iter(found.items()))
            raise BlendError(why if len(found) == len(errors) else f"worker {rank}: {why}")


class _ReportDeaths(UserCallback):
    """Prints why workers ended, in Ray Train's controller."""

    def __init__(self, relay: Any, title: str, max_failures: int) -> None:
        self._relay = relay
        self._title = title
        self._max_failures = max_failures
        self._count = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See base class."""
        self._count += 1
        if self._count <= self._max_failures:
            line = f"{self._title}: {_why(worker_exceptions)}; restart {self._count} of {self._max_failures}"
            self._relay.add.remote("stderr", f"{line} from the last checkpoint")


def train_on_ray(
    config: TrainingRun,
    scaling: TrainingScaling,
    prepare: Callable[[Any, Preparation], TrainingData],
    train: Callable[[Any, TrainingData, TrainingProcess], dict[str, float]],
    title: str,
) -> dict[str, float]:
    """Prepare the data and train on the workers of a cluster.

    Args:
        config: The settings.
        scaling: Its workers.
        prepare: Stores the data.
        train: Trains on it, in each worker.
        title: Name of the model in lines.

    Returns:
        What `train` returned in the first worker.

    Raises:
        BlendError: The cluster has no room, the data cannot be learnt from, or the training failed.
    """
    stdout = sys.stdout  # within the block it is replaced, as is what `sys.stderr` has been before
    fs, path = filesystem(config.output)
    output = path if is_local(fs) else config.output.rstrip("/")
    checkpoints = f"{output}/checkpoints"
    with running(config.ray), _environment(_RAY_TRAIN):
        streams: dict[str, IO[str]] = {"stdout": stdout, "stderr": sys.stderr}
        amounts = _amounts(scaling, have := capacity(config.ray))
        check_workers(scaling.workers, amounts, scaling.accelerator_type, have)
        check_settings(checkpoints, config, found=bool(checkpoint_names(storage.names(checkpoints))))
        preparation = Preparation(output, _store_on_ray, _PARTS)
        data = prepare(config, preparation)
        relay = ray.remote(num_cpus=0)(_Relay).remote()
        trainer = TorchTrainer(
            _train_in_worker,
            train_loop_config={"job": cloudpickle.dumps(_Job(config, output, data, train, relay))},
            torch_config=TorchConfig(backend="nccl" if amounts["GPU"] else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=bool(amounts["GPU"]),
                resources_per_worker=amounts,
                accelerator_type=scaling.accelerator_type,
            ),
            run_config=RunConfig(
                name="checkpoints",
                storage_path=path.rstrip("/"),
                storage_filesystem=pyarrow.fs.LocalFileSystem()
                if is_local(fs)
                else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
                failure_config=FailureConfig(max_failures=scaling.max_failures),
                checkpoint_config=_kept(config),
                callbacks=[_ReportDeaths(relay, title, scaling.max_failures)],
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        settings = config.optimization
        step = scaling.workers * settings.batch_size * settings.accumulation
        print(
            f"{title}: {step} examples a step ({scaling.workers} workers x batch_size {settings.batch_size} x "
            f"accumulation {settings.accumulation})",
            file=streams["stderr"],
            flush=True,
        )
        with _translated_errors(scaling):
            _fit(trainer, relay, streams)
            measured, error = ray.get(relay.ended.remote())
        if error is not None:
            raise BlendError(error)
        preparation.remove()
        return dict(measured)


def _fit(trainer: TorchTrainer, relay: Any, streams: Mapping[str, IO[str]]) -> None:
    """Run the training in a thread, and print the lines of its first worker meanwhile.

    In the main thread Ray Train takes over SIGINT.
    """
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=fit, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        for stream, line in ray.get(relay.take.remote()):
            print(line, file=streams[stream], flush=True)
    if raised:
        raise raised[0]


def _train_in_worker(settings: dict[str, Any]) -> None:
    job: _Job = pickle.loads(settings["job"])
    only_errors("ray.train")
    logging.getLogger().setLevel(logging.ERROR)  # some of Ray Train's loggers have other names
    first = ray.train.get_context().get_world_rank() == 0
    with contextlib.ExitStack() as stack:
        stack.callback(remove_copies, job.data.train.folder)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blend-train-")))
        stack.enter_context(quiet())
        if first:
            stack.enter_context(contextlib.redirect_stdout(_Lines(job.relay, "stdout")))
            stack.enter_context(contextlib.redirect_stderr(_Lines(job.relay, "stderr")))
        try:
            measured = job.train(job.config, job.data, _Worker(job.output, folder))
        except BlendError as error:  # another try would meet it again: all workers do, or the first at the end
            ray.get(job.relay.end.remote({}, str(error)))
            return
    if first:
        ray.get(job.relay.end.remote(measured))


def _amounts(scaling: TrainingScaling, have: Capacity) -> dict[str, float]:
    """Resources of a worker, by Ray's names."""
    gpus = scaling.gpus_per_worker
    if gpus is None:
        gpus = int(have.gpus > 0)
    return {"CPU": scaling.cpus_per_worker, "GPU": gpus, **scaling.resources}


def _kept(config: TrainingRun) -> CheckpointConfig:
    """The last checkpoints, and the best where it is the result."""
    settings = config.optimization
    return CheckpointConfig(
        num_to_keep=settings.keep_checkpoints,
        checkpoint_score_attribute=f"eval_{settings.select_by}" if settings.result == "best" else None,
        checkpoint_score_order="min" if settings.select_by == "loss" else "max",
    )


def _store_on_ray(parts: Sequence[Part]) -> None:
    """Store the parts of a data set by tasks on the cluster."""
    import ray.data  # takes a second, which workers do not need

    tasks = ray.data.from_items(
        [{"number": number, "part": cloudpickle.dumps(part)} for number, part in enumerate(parts)],
        override_num_blocks=len(parts),
    )
    found = sorted(tasks.map(_store_part).iter_rows(), key=lambda row: row["number"])
    for row in found:
        if row["error"]:
            raise BlendError(row["error"])


def _store_part(row: dict[str, Any]) -> dict[str, Any]:
    error = None
    try:
        pickle.loads(row["part"]).store()
    except BlendError as found:
        error = str(found)
    return {"number": row["number"], "error": error or ""}


def _why(failures: Mapping[int, Exception]) -> str:
    """Which worker failed first, and why: the others lose their connection to it."""
    causes = {rank: _cause(error) for rank, error in failures.items()}
    own = [rank for rank, error in causes.items() if not any(one in str(error) for one in _FOLLOWERS)]
    rank = min(own or causes)
    if isinstance(causes[rank], RayActorError):
        return f"worker {rank} died: killed, out of memory, or lost with its node"
    return f"worker {rank}: {one_line(causes[rank])}"


def _cause(error: BaseException) -> BaseException:
    """The exception that Ray Train has wrapped."""
    inner = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None)
    return _cause(inner) if isinstance(inner, BaseException) else error


@contextlib.contextmanager
def _translated_errors(scaling: TrainingScaling) -> Iterator[None]:
    """Turn what Ray Train raises in the block into one line."""
    try:
        yield
    except WorkerGroupError as error:
        tries = f" after {scaling.max_failures} restarts" if scaling.max_failures else ""
        raise BlendError(f"the training failed{tries}: {_why(error.worker_failures)}") from error
    except TrainingFailedError as error:
        cause = getattr(error, "controller_failure", error)
        raise BlendError(f"the training failed: Ray: {one_line(cause)}") from error


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
