"""Loading of weights in 8 or 4 bits by bitsandbytes."""

import torch
from transformers import BitsAndBytesConfig

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.lora import Quantization


def bitsandbytes_config(quantization: Quantization | None, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """Transformers' `quantization_config`.

    Args:
        quantization: Of the weights of linear layers; None: none.
        compute: Type in which 4-bit weights are multiplied.

    Raises:
        ModelLoadError: bitsandbytes is missing.
    """
    if quantization is None:
        return None
    if not is_installed("bitsandbytes"):
        raise ModelLoadError(
            f"quantization: {quantization} needs the package bitsandbytes: pip install bitsandbytes"
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
