"""Number formats of weights: what a setting means on a device, and what a processor multiplies fast.

On a CPU `auto` is float32, the only one that every processor multiplies fast: with AVX512-BF16 bfloat16 took a
quarter of its time, without 1.1 (AVX-512) to 3 times (AVX2) as long, and float16 without AVX512-FP16 2 to 3.5 times
as long (one core, 64 to 512 rows times 2,048 x 2,048). In bfloat16 an answer also
depends on its batch: of six greedy answers of SmolLM2-135M two were alone what they were together, in float32 all.
"""

import logging
import time
from functools import cache
from typing import Literal, overload

import torch

_log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SLOW = 1.5  # times the time of float32 from which a warning is worth a line; less may be noise
_ROWS, _WIDTH, _TURNS = 64, 512, 5  # of a product, some milliseconds in all


@overload
def resolve_dtype(
    name: str, device: torch.device, own: torch.dtype, *, without_bfloat16: torch.dtype = ...
) -> torch.dtype: ...
@overload
def resolve_dtype(
    name: str, device: torch.device, own: torch.dtype | None = ..., *, without_bfloat16: torch.dtype = ...
) -> torch.dtype | Literal["auto"]: ...
def resolve_dtype(
    name: str,
    device: torch.device,
    own: torch.dtype | None = None,
    *,
    without_bfloat16: torch.dtype = torch.float16,
) -> torch.dtype | Literal["auto"]:
    """The torch dtype of a setting.

    Args:
        name: The setting. Any but `auto` is taken as it is, with a warning where the device is slow with it.
        device: Where the model runs.
        own: What `auto` is on a GPU: the dtype that the checkpoint's config names; None: it names none.
        without_bfloat16: Takes the place of an `own` of bfloat16 on GPUs without it (before Ampere: V100, T4).

    Returns:
        The dtype; "auto" for transformers' own choice, the dtype of the weights.
    """
    if name != "auto":
        dtype = _DTYPES[name]
        _warn_if_slow(dtype, device)
        return dtype
    if device.type == "cpu":
        return torch.float32
    if own is torch.bfloat16 and not has_bfloat16(device):
        return without_bfloat16
    return own or "auto"


def has_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 itself, and doesn't emulate it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def times_float32(dtype: torch.dtype) -> float:
    """Time of a matrix product of this dtype on this CPU, in times of float32's: measured, some milliseconds."""
    return _product_seconds(dtype) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of a product, the best of a few: others that use the processor make it longer, never shorter."""
    rows, weights = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    seconds = []
    for _ in range(_TURNS + 1):  # the first chooses a kernel
        begin = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    name = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        if (times := times_float32(dtype)) > _SLOW:
            _log.warning(
                "dtype: %s takes %.1f times as long as float32 on this CPU; set dtype: float32", name, times
            )
    elif dtype is torch.bfloat16 and not has_bfloat16(device):
        _log.warning("dtype: bfloat16 is emulated on this GPU; set dtype: float16 or float32")
