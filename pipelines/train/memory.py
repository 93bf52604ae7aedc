"""Memory that a training needs, without its weights: one step on tensors that have shapes and no contents.

PyTorch's `MemTracker` records every tensor of a step of the real model, loss, LoRA and optimizer under
`FakeTensorMode`, with batches of the longest examples that the settings allow. What sharding divides, and what it
adds, is arithmetic over the model's units.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.jit import ScriptFunction
from transformers import Adafactor
from transformers.models.deberta_v2 import modeling_deberta_v2

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.train.sharding import sharding_units

GIB = 2**30
FRAMEWORK = 1 * GIB  # of a GPU: CUDA's context, workspaces of libraries, fragmentation; assumed
MOST_WORKERS = 1024
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.516}  # a weight: 4 bits, and 8 of 64 and 32 of 16,384 weights' scales
ADAMW_8BIT_BYTES = 2.0  # a trained weight

_PARTS = {
    "Parameter": "weights",
    "Buffer": "weights",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Temp": "temporary",
    "Other": "temporary",
}


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes of one worker at the peak of a step.

    Attributes:
        weights: Weights and buffers.
        gradients: Of trained weights.
        optimizer: Its states.
        activations: Kept for the backward pass, logits included.
        temporary: Of the operation at the peak, gradients of activations included.
        buffers: What data-parallel training or sharding gathers and reduces.
        framework: Of the GPU's runtime.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    temporary: int = 0
    buffers: int = 0
    framework: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a step is simulated with.

    Attributes:
        model: On the device "meta".
        batch: Arguments of its forward, there too.
        settings: Optimizer, precision, sharding.
        bf16: Whether it multiplies in bfloat16.
        quantized: Bytes of a frozen linear weight, if they are quantized.
    """

    model: nn.Module
    batch: Mapping[str, Tensor]
    settings: Optimization
    bf16: bool
    quantized: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a training.

    Attributes:
        parameters: Weights of the model.
        trained: Those that are trained.
        alone: Of one worker alone, without sharding.
        units: Parameters of the units that sharding gathers, largest first; the root is the first.
        gathered: Bytes of a gathered weight.
        sharding: `optimization.sharding`.
    """

    parameters: int
    trained: int
    alone: MemoryParts
    units: tuple[int, ...]
    gathered: int
    sharding: str | None

    def of_workers(self, workers: int) -> MemoryParts:
        """Memory of each of several workers.

        Without sharding each has all, and buckets as large as the gradients. FSDP2 and ZeRO-3 divide weights,
        gradients and states, and gather the root and two other units at once, of one of which the gradients are
        reduced; ZeRO-2 divides gradients and states.

        Args:
            workers: Number of workers, each with a GPU.
        """
        one = self.alone
        if workers == 1:
            return one
        if self.sharding is None:
            return replace(one, buffers=4 * self.trained)
        divided = replace(one, gradients=-(-one.gradients // workers), optimizer=-(-one.optimizer // workers))
        root, others = self.units[0], self.units[1:]
        largest = max(others, default=root)
        if self.sharding == "zero2":
            return replace(divided, buffers=4 * largest)
        gathered = self.gathered * (root + sum(others[:2])) + 4 * largest
        return replace(divided, weights=-(-one.weights // workers), buffers=gathered)

    def fewest_workers(self, memory: float) -> int | None:
        """The smallest number of GPUs of a size; None: more than 1,024, or without sharding more than one.

        Args:
            memory: Bytes of one.
        """
        most = MOST_WORKERS if self.sharding else 1
        fits = (count for count in range(1, most + 1) if self.of_workers(count).total <= memory)
        return next(fits, None)


def estimate_memory(trained: TrainedModel, *, framework: int = FRAMEWORK) -> MemoryEstimate:
    """Simulate a training.

    Args:
        trained: The model and its batch.
        framework: Bytes of a GPU's runtime.

    Raises:
        BlendError: The model's code depends on contents of tensors.
    """
    model, settings = trained.model, trained.settings
    sizes = {id(one): one.numel() for one in model.parameters()}
    own = sum(one.numel() for one in {id(one): one for one in model.parameters()}.values() if one.requires_grad)
    units = [{id(one) for one in unit.parameters()} for unit in sharding_units(model)]
    root = sum(size for key, size in sizes.items() if not any(key in unit for unit in units))
    saved = 0.0
    if trained.quantized is not None:
        frozen = [part.weight for part in frozen_linears(model)]
        saved = sum(one.numel() * (one.element_size() - trained.quantized) for one in frozen)
    try:
        with _simulation():
            found = _peak(trained)
    except Exception as error:  # of torch's own: data-dependent code, operations without a rule for shapes
        raise BlendError(f"the memory of this model can't be simulated: {one_line(error)}") from error
    parts: dict[str, int] = {}
    for kind, size in found.items():
        if part := _PARTS.get(kind):
            parts[part] = parts.get(part, 0) + size
    parts["weights"] -= int(saved)
    if settings.optimizer == "adamw_8bit":
        parts["optimizer"] = int(ADAMW_8BIT_BYTES * own)
    return MemoryEstimate(
        parameters=sum(sizes.values()),
        trained=own,
        alone=MemoryParts(**parts, framework=framework),
        units=(root, *sorted((sum(sizes[key] for key in unit) for unit in units), reverse=True)),
        gathered=2 if trained.bf16 else 4,
        sharding=settings.sharding,
    )


def frozen_linears(model: nn.Module) -> list[nn.Linear]:
    """Linear layers that quantization applies to: those with an adapter."""
    adapted = [getattr(part, "base_layer", None) for part in model.modules() if hasattr(part, "lora_A")]
    return [part for part in adapted if isinstance(part, nn.Linear)]


class _PeakTracker(MemTracker):
    """Looks for the peak of the whole model: that of each module after each operation takes minutes."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, sizes in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < sizes["Total"]:
                self._peak_mem[device] = sizes["Total"]
                self._peak_mem_snap[device] = dict(sizes)


def _peak(trained: TrainedModel) -> Mapping[str, int]:
    """Bytes by kind at the peak of the second step, when the optimizer has its states."""
    model, settings = trained.model.train(), trained.settings
    _fake(model)
    batch = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in trained.batch.items()}
    own = [one for one in model.parameters() if one.requires_grad]
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    optimizer = _optimizer(settings, own)
    tracker = _PeakTracker()
    tracker.track_external(model, optimizer, *batch.values())
    with tracker:
        for _ in range(2):
            for _ in range(min(settings.accumulation, 2)):
                tracker.reset_mod_stats()
                with torch.autocast("cpu", torch.bfloat16, enabled=trained.bf16):
                    loss = model(**batch)["loss"]
                loss.backward()
                del loss
            nn.utils.clip_grad_norm_(own, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return {getattr(kind, "value", kind): size for kind, size in found.items()}


def _fake(model: nn.Module) -> None:
    """Put fake tensors into a model on the device "meta". Frozen weights become buffers: trackers hook others."""
    fakes: dict[int, Tensor] = {}
    for part in model.modules():
        for name, one in [*part.named_parameters(recurse=False, remove_duplicate=False)]:
            if id(one) not in fakes:
                empty = torch.empty(one.shape, dtype=one.dtype)
                fakes[id(one)] = nn.Parameter(empty) if one.requires_grad else empty
            fake = fakes[id(one)]
            if isinstance(fake, nn.Parameter):
                part._parameters[name] = fake
            else:
                del part._parameters[name]
                part.register_buffer(name, fake)
        for name, buffer in [*part.named_buffers(recurse=False)]:
            if buffer.is_meta:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _optimizer(settings: Optimization, own: list[nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimizer == "adafactor":
        return Adafactor(own, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
    return torch.optim.AdamW(own, lr=settings.learning_rate, fused=True)


@contextlib.contextmanager
def _simulation() -> Iterator[None]:
    """Tensors made in the block have no contents, and TorchScript functions of DeBERTa run as Python."""
    scripted = {
        name: value._torchdynamo_inline  # type: ignore[attr-defined]
        for name, value in vars(modeling_deberta_v2).items()
        if isinstance(value, ScriptFunction)
    }
    with warnings.catch_warnings(), mock.patch.multiple(modeling_deberta_v2, **scripted), FakeTensorMode():
        warnings.simplefilter("ignore")  # the tracker's own
        yield
