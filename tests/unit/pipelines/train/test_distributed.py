"""Training on Ray, as far as it needs none: which worker failed and why, lines of a worker, resources."""

from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.configs.scaling import TrainingScaling
from llm_blender_ray.configs.training import RankerTraining
from llm_blender_ray.pipelines.train import distributed

LOST = RuntimeError("[/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


def raised(error: Exception) -> Exception:
    return UserExceptionWithTraceback(error, "Traceback (most recent call last):\n  ...")


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        ({0: raised(LOST), 1: raised(ValueError("no\nway"))}, "worker 1: ValueError: no way"),
        ({0: raised(LOST), 2: ActorDiedError()}, "worker 2 died: killed, out of memory, or lost with its node"),
        ({3: raised(BlendError("s3://b/c: can't write it"))}, "worker 3: s3://b/c: can't write it"),
        ({1: raised(LOST)}, "worker 1: RuntimeError: [/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"),
    ],
)
def test_the_worker_that_failed_first_is_named(failures: dict[int, Exception], line: str) -> None:
    assert distributed._why(failures) == line


def test_whole_lines_go_to_the_driver() -> None:
    class Method:
        """An actor's method."""

        def __init__(self) -> None:
            self.calls: list[tuple[str, str]] = []

        def remote(self, *call: Any) -> None:
            self.calls.append(call)

    class Relay:
        """An actor's handle."""

        add = Method()

    stream = distributed._Lines(Relay, "stderr")
    print("a", end="", file=stream)  # type: ignore[call-overload]
    print("b\nc", file=stream, flush=True)  # type: ignore[call-overload]
    print("d", end="", file=stream)  # type: ignore[call-overload]
    assert Relay.add.calls == [("stderr", "ab"), ("stderr", "c")]


def test_workers_take_gpus_where_the_cluster_has_some() -> None:
    scaling = TrainingScaling(workers=2, resources={"fast": 0.5})
    assert distributed._amounts(scaling, Capacity.machine(4)) == {"CPU": 1, "GPU": 0, "fast": 0.5}
    assert distributed._amounts(scaling, Capacity.machine(4, 2))["GPU"] == 1
    none = TrainingScaling(gpus_per_worker=0)
    assert distributed._amounts(none, Capacity.machine(4, 2))["GPU"] == 0


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, (None, "min")),
        ({"result": "best"}, ("eval_loss", "min")),
        ({"result": "best", "select_by": "accuracy"}, ("eval_accuracy", "max")),
    ],
)
def test_the_best_checkpoint_is_kept_by_the_figure_that_selects_it(
    changes: dict[str, str], kept: tuple[str | None, str]
) -> None:
    config = RankerTraining.model_validate(
        {
            "backbone": "b",
            "train": "t",
            "heldout": "h",
            "output": "o",
            "metrics": ["m"],
            "optimization": {"learning_rate": 1, "keep_checkpoints": 3, **changes},
        }
    )
    found = distributed._kept(config)
    assert found.num_to_keep == 3
    assert (found.checkpoint_score_attribute, found.checkpoint_score_order) == kept
