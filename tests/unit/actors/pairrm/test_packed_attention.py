"""The GPU's attention kernel, run by Triton's interpreter; on a GPU itself it is in `tests/e2e/test_gpu.py`."""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from paths import ROOT

from llm_blender_ray.actors.pairrm import packed_attention

VARIANTS = [
    "v3",
    "v2-xlarge",
    "no buckets, near positions",
    "buckets, odd",
    "c2p",
    "p2c",
    "absolute positions",
    "own projections",
]


@pytest.mark.vllm  # triton comes with it
@pytest.mark.skipif(find_spec("triton") is None, reason="triton isn't installed")
def test_gives_what_transformers_gives() -> None:
    script = ROOT / "tests" / "support" / "packed_attention_check.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, script, *VARIANTS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert list(differences) == VARIANTS
    assert {name: value for name, value in differences.items() if value > 1e-5} == {}


def test_a_cpu_takes_blocks() -> None:
    assert not packed_attention.has_kernel(torch.device("cpu"), torch.float32, 64)


def test_a_kernel_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory\nRequired: 49408")

    monkeypatch.setattr(packed_attention, "find_spec", lambda name: object())
    monkeypatch.setattr(packed_attention, "_try_kernel", fail)
    with caplog.at_level(logging.WARNING):
        assert not packed_attention.has_kernel(torch.device("cuda"), torch.float16, 64)
    assert "out of resource: shared memory" in caplog.text


@pytest.mark.parametrize(
    ("rows", "longest", "reach"),
    [
        ([3, 3, 3, 3, 3], 3, 1),
        ([0, 1, 2, 3, 4], 3, 2),
        ([0, 0, 1, 2, 3, 4, 4], 4, 2),
        ([0, 0, 1, 2, 3, 4, 5], 4, 3),
        ([0, 0, 0, 2, 4, 4, 4], 4, 1),
        ([7], 1, 0),
    ],
)
def test_reach_is_where_rows_stop_to_change(rows: list[int], longest: int, reach: int) -> None:
    assert packed_attention._reach(torch.tensor([*rows, 9, 9]), longest) == reach
