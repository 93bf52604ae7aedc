"""Sharding of a training over workers: FSDP2 of PyTorch, ZeRO-2 and ZeRO-3 of DeepSpeed.

Weights, gradients and optimizer states are divided among the workers (ZeRO-2: gradients and states alone). FSDP2
and ZeRO-3 gather the weights of one transformer layer at a time. Checkpoints and the result hold whole weights.
"""

import copy
import os
from collections import Counter
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import DistributedType, PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.training import Optimization

_Model = TypeVar("_Model", bound=nn.Module)


def sharding_arguments(settings: Optimization) -> dict[str, Any]:
    """Arguments of the Trainer for `settings.sharding`; none without it.

    Args:
        settings: Of the training.

    Raises:
        BlendError: There is one process alone, or DeepSpeed is missing.
    """
    if settings.sharding is None:
        return {}
    if "WORLD_SIZE" not in os.environ and not torch.distributed.is_initialized():
        raise BlendError(
            f"optimization.sharding: {settings.sharding} divides a training among workers, and this is one "
            "process; set scaling.workers"
        )
    if settings.sharding == "fsdp":
        return {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT", "auto_wrap_policy": "NO_WRAP"}}
    if not is_installed("deepspeed"):
        raise BlendError(
            f"optimization.sharding: {settings.sharding} needs DeepSpeed: pip install deepspeed; or set "
            "sharding: fsdp"
        )
    return {"deepspeed": _deepspeed(int(settings.sharding.removeprefix("zero")))}


def _deepspeed(stage: int) -> dict[str, Any]:
    """DeepSpeed's config. The Trainer fills in `auto` from its own arguments."""
    return {
        "zero_optimization": {"stage": stage, "overlap_comm": True}
        | ({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}),
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def shard(model: nn.Module, settings: Optimization, *, bf16: bool) -> None:
    """Shard a model over all workers by FSDP2, in place; nothing without `sharding: fsdp`.

    A unit is a transformer layer or an embedding; what is left (tied embeddings, heads) is one more. accelerate
    takes a model that is sharded already as it is. Its own units fail on embeddings that are tied in three places,
    as in T5, and on CPUs it replicates without a word (`AcceleratorState`, 1.15).

    Args:
        model: The model to train, whole in every process.
        settings: Of the training, of which the process group has started.
        bf16: Whether weights are gathered, and used, in bfloat16.
    """
    if settings.sharding != "fsdp":
        return
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU
    options: dict[str, Any] = {"mesh": init_device_mesh(state.device.type, (state.num_processes,))}
    if bf16:  # labels stay as they are
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for unit in sharding_units(model):
        fully_shard(unit, **options)
    fully_shard(model, **options)
    empty = (one._local_tensor for one in model.parameters() if isinstance(one, DTensor))
    for number, part in enumerate(part for part in empty if not part.numel()):
        # accelerate distinguishes parameters by their addresses, and the shards of a short one may be empty
        part.data_ptr = partial(int, -1 - number)  # type: ignore[method-assign]


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Transformer layers and input embeddings.

    Others' weights (DeBERTa's relative positions) are read without a call, and calls are when FSDP2 gathers. Tied
    embeddings have to be in one unit.
    """
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    uses = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    embeddings = {
        id(part.get_input_embeddings()): part.get_input_embeddings()
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
    }
    return [
        *layers,
        *(one for one in embeddings.values() if all(uses[id(weight)] == 1 for weight in one.parameters())),
    ]


def hollow_copy(model: _Model) -> _Model:
    """A copy whose parameters have shapes, and no memory (device "meta"), for `gather_weights` to fill."""
    hollow = {
        id(one): nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=one.requires_grad)
        for one in model.parameters()
    }
    return copy.deepcopy(model, memo=dict(hollow))


def gather_weights(trainer: Trainer, copied: nn.Module) -> None:
    """Put the whole weights of a sharded model into its hollow copy, on the CPU of the first process.

    Every worker calls it. The copy stays hollow in the others.

    Args:
        trainer: After training.
        copied: By `hollow_copy`, of the model before training.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    copied.load_state_dict(weights, strict=False, assign=True)  # of tied weights it may have one name
    for part in copied.modules():
        if isinstance(part, PreTrainedModel):
            part.tie_weights()
    if lost := [name for name, one in copied.named_parameters() if one.is_meta]:
        raise BlendError(f"{len(lost)} weights could not be gathered, first {lost[0]}")
