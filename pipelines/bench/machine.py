"""Speed of this machine's matrix products: the reference for the speed of a forward."""

import statistics
import time
from collections.abc import Callable

import torch

SIZES = (768, 1536, 3072)  # square; which is fastest depends on caches and kernels
CUDA_SIZES = (4096, 8192)
SECONDS = 0.3  # for each size


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of torch's matrix product: of each size the median, of the sizes the best."""
    return max(_rate(size, dtype, device) for size in (CUDA_SIZES if device.type == "cuda" else SIZES))


def _rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    while sum(seconds) < SECONDS:
        seconds.append(timed(lambda: a @ b, device))
    return 2 * size**3 / statistics.median(seconds[1:] or seconds)  # the first call chooses a kernel


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, including the device's."""
    _finish(device)
    begin = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
