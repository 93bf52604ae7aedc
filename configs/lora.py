"""Settings of LoRA and QLoRA, which train low-rank changes of a frozen model; and of quantized loading."""

from typing import Annotated, Literal

from pydantic import Field

from llm_blender_ray.configs.settings import Settings

Quantization = Literal["int8", "nf4"]  # bitsandbytes' LLM.int8() and 4-bit NormalFloat


class LoraTraining(Settings):
    """Settings of LoRA (arXiv 2106.09685), and of QLoRA (arXiv 2305.14314) with `quantization`."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0  # changes are scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of the changes' input
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    merge: bool = True  # into the model's weights; false: the result is an adapter, which needs the model to load
    quantization: Quantization | None = None  # of the frozen weights while training (bitsandbytes)
