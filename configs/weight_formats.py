"""Formats of published weights that each engine reads, as data: quantizations, GGUF files, multimodal models."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class AdapterFormats:
    """LoRA adapters that a loader reads beside a model's weights.

    Attributes:
        max_rank: Highest rank; None: any.
        refused: Keys of adapter_config.json that must have no value, with what each is.
    """

    max_rank: int | None = None
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class WeightFormats:
    """What the loader of a part reads beside float weights of text models.

    Attributes:
        reader: Name of the loader, for messages.
        quantizations: Values of `quant_method` in config.json, with the modules that each needs; None: any.
        refused: Values of `quant_method` that it doesn't read, whatever is installed.
        multimodal: Values of `model_type` that it loads although they also read images or sounds; None: any.
        generates: Whether the model has to write text.
        gguf: Whether it reads GGUF files.
        adapters: LoRA adapters that it reads; None: it reads none.
    """

    reader: str = ""
    quantizations: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)
    refused: frozenset[str] = frozenset()
    multimodal: frozenset[str] | None = None
    generates: bool = False
    gguf: bool = False
    adapters: AdapterFormats | None = None


ANY_FORMAT = WeightFormats()

# Of peft's kinds of LoRA those that change the model's own weights, or that no batch of several adapters can have.
_UNSHARED = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "an activated LoRA",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "trained tokens",
    "modules_to_save": "whole modules",
}

# The quantizers of transformers 5 (`transformers.quantizers.auto`). Methods without a module run anywhere: fp8,
# mxfp8 and mxfp4 are dequantized where the device has no kernels for them.
TRANSFORMERS = WeightFormats(
    reader="engine: transformers",
    quantizations={
        "aqlm": ("aqlm",),
        "auto-round": ("auto_round",),
        "awq": ("gptqmodel",),
        "bitnet": (),
        "bitsandbytes": ("bitsandbytes",),
        "compressed-tensors": ("compressed_tensors",),
        "eetq": ("kernels",),
        "fbgemm_fp8": ("fbgemm_gpu",),
        "fouroversix": ("fouroversix",),
        "fp8": (),
        "fp_quant": ("fp_quant",),
        "gemma": (),
        "gguf": ("gguf",),
        "gptq": ("optimum", "gptqmodel"),
        "higgs": ("flute", "fast_hadamard_transform"),
        "hqq": ("hqq",),
        "metal": ("kernels",),
        "mxfp4": (),
        "mxfp8": (),
        "nvfp4": (),
        "quanto": ("optimum", "optimum.quanto"),
        "quark": ("quark",),
        "sinq": ("sinq",),
        "spqr": ("spqr_quant",),
        "torchao": ("torchao",),
        "vptq": ("vptq",),
    },
    multimodal=frozenset(
        {"gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4", "mllama", "phi4_multimodal"}
        | {"qwen3_5", "qwen3_5_moe", "qwen4_exp"}
    ),
    generates=True,
    gguf=True,
    adapters=AdapterFormats(refused=_UNSHARED),
)
# Which others it reads differs by version and platform: vLLM itself decides.
VLLM = WeightFormats(
    reader="engine: vllm",
    refused=frozenset({"aqlm", "eetq", "exl2", "exl3", "higgs", "quanto", "spqr", "vptq"}),
    generates=True,
    adapters=AdapterFormats(
        max_rank=512,
        refused={
            **_UNSHARED,
            "lora_bias": "biases",
            "use_bdlora": "BD-LoRA",
            "use_qalora": "QALoRA",
        },
    ),
)
