"""What `auto` is on which device, and when a setting is named as slow. No GPU is used: capabilities are given."""

import logging

import pytest
import torch

from llm_blender_ray.actors import dtypes
from llm_blender_ray.actors.dtypes import resolve_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
AMPERE, VOLTA = (8, 0), (7, 0)


@pytest.fixture
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)


def test_auto_on_a_cpu_is_what_every_cpu_multiplies_fast() -> None:
    for own in (None, torch.bfloat16, torch.float16):
        assert resolve_dtype("auto", CPU, own) is torch.float32


@pytest.mark.parametrize(
    ("capability", "own", "expected"),
    [
        (AMPERE, torch.bfloat16, torch.bfloat16),
        (AMPERE, None, "auto"),
        (VOLTA, torch.bfloat16, torch.float16),
        (VOLTA, torch.float32, torch.float32),
        (VOLTA, None, "auto"),
    ],
    indirect=["capability"],
)
@pytest.mark.usefixtures("capability")
def test_auto_on_a_gpu_is_the_checkpoint_s_own_if_it_has_that(own: torch.dtype | None, expected: object) -> None:
    assert resolve_dtype("auto", GPU, own) == expected


@pytest.mark.parametrize("capability", [VOLTA], indirect=True)
@pytest.mark.usefixtures("capability")
def test_what_overflows_float16_is_float32_without_bfloat16() -> None:
    assert resolve_dtype("auto", GPU, torch.bfloat16, without_bfloat16=torch.float32) is torch.float32


@pytest.mark.parametrize(("times", "warned"), [(0.25, False), (1.1, False), (7.0, True)])
def test_a_slow_dtype_is_named_with_what_it_costs(
    times: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dtypes, "times_float32", lambda dtype: times)
    with caplog.at_level(logging.WARNING):
        assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    assert caplog.messages == (
        [f"dtype: bfloat16 takes {times} times as long as float32 on this CPU; set dtype: float32"]
        if warned
        else []
    )


@pytest.mark.parametrize(("capability", "lines"), [(AMPERE, 0), (VOLTA, 1)], indirect=["capability"])
@pytest.mark.usefixtures("capability")
def test_bfloat16_that_a_gpu_emulates_is_named(lines: int, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_dtype("bfloat16", GPU) is torch.bfloat16
    assert len(caplog.messages) == lines


def test_a_product_is_measured_on_this_processor() -> None:
    assert 0 < dtypes.times_float32(torch.bfloat16) < float("inf")
    assert dtypes.times_float32(torch.float32) > 0
