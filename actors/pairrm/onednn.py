"""Adapter of torch's private oneDNN operators: linear layers in bfloat16 on CPU, with weights packed once.

torch packs the weights of `functional.linear` for the matrix units in every call. Where an operator is missing or
the CPU lacks bfloat16, `is_available` is False and callers use `functional.linear`.
"""

import torch
from torch import Tensor

_OPERATORS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this dtype can be packed on this device."""
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return False
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in _OPERATORS) or not hasattr(
        operators._linear_pointwise, "binary"
    ):
        return False
    return bool(operators._is_mkldnn_bf16_supported())


def pack(weight: Tensor) -> Tensor:
    """Pack the weight of a linear layer."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def linear(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """Compute x Wᵀ + b."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def linear_plus(x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """Compute x Wᵀ + b + residual."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
