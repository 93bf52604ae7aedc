"""The original's config classes, translated into settings of this project.

They are mutable, like the original's; a later change does not affect loaded models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llm_blender_ray.actors.model_files import read_json
from llm_blender_ray.actors.weights import locate
from llm_blender_ray.configs.schema import GenFuser, PairRanker, RewardModel

Device = str | int | torch.device | None
LocalRanker = PairRanker | RewardModel


@dataclass
class BlenderConfig:
    """Defaults of ranker and fuser."""

    device: str | None = None  # any device of torch: cpu, cuda, cuda:1, mps; None: the GPU where there is one
    use_tqdm: bool = True  # no effect


@dataclass
class RankerConfig:
    """How a ranker is loaded. `ranker_type`, `model_type` and `n_tasks` are read from the checkpoint instead."""

    ranker_type: str | None = None
    model_type: str | None = None
    model_name: str | None = None
    cache_dir: str | None = None  # a folder that may hold the model; downloads go to the hub's cache (HF_HOME)
    load_checkpoint: str | None = None  # folder or hub id; None: `model_name`
    source_maxlength: int | None = None  # tokens; None: the checkpoint's own
    candidate_maxlength: int | None = None
    n_tasks: int = 1
    fp16: bool = True  # on a GPU
    device: str | None = None


@dataclass
class GenFuserConfig:
    """How a fuser is loaded."""

    model_name: str = "llm-blender/gen_fuser_3b"
    cache_dir: str | None = None  # as RankerConfig's
    max_length: int = 1024  # tokens of the whole input
    candidate_maxlength: int = 128  # tokens of one candidate, and of the answer
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = (
        None  # None: bfloat16 on a GPU, float32 on a CPU
    )
    load_in_4bit: bool = False  # not supported
    load_in_8bit: bool = False
    device: str | None = None


def local_ranker(path: str, config: RankerConfig, *devices: Device) -> LocalRanker:
    """Settings for a checkpoint: a PairRanker unless its config.json names a sequence classification model.

    Args:
        path: Folder or hub id.
        config: The original's settings.
        *devices: Devices by priority; the first that is not None counts.

    Raises:
        ModelLoadError: The checkpoint cannot be found.
    """
    device, path = _device(*devices), _downloaded(path, config.cache_dir)
    file = locate(path) / "config.json"
    architectures = (read_json(file).get("architectures") if file.is_file() else None) or ()
    settings: LocalRanker = PairRanker(model=path, device=device)
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        settings = RewardModel(kind="reward", model=path, device=device)
    settings = settings.model_copy(update={"dtype": "auto" if config.fp16 else "float32"})
    return with_lengths(settings, config.source_maxlength, config.candidate_maxlength)


def with_lengths(settings: LocalRanker, source: int | None, candidate: int | None) -> LocalRanker:
    """Settings with these token lengths where given; a reward model takes the sum of both."""
    if isinstance(settings, RewardModel):
        update = {"max_length": source + candidate} if source and candidate else {}
    else:
        given = {"source_max_length": source, "candidate_max_length": candidate}
        update = {name: length for name, length in given.items() if length}
    return type(settings).model_validate(settings.model_dump() | update)


def fuser_settings(path: str, config: GenFuserConfig, *devices: Device) -> GenFuser:
    """Settings for a fuser.

    Args:
        path: Folder or hub id.
        config: The original's settings.
        *devices: Devices by priority; the first that is not None counts.

    Raises:
        ValueError: Quantized loading is asked for.
    """
    if config.load_in_4bit or config.load_in_8bit:
        raise ValueError("load_in_4bit, load_in_8bit: not supported; use torch_dtype='bfloat16'")
    device = _device(*devices)
    on_gpu = torch.cuda.is_available() if device == "auto" else not device.startswith("cpu")
    return GenFuser(
        model=_downloaded(path, config.cache_dir),
        top_k=1,  # every call gives its own
        max_length=config.max_length,
        candidate_max_length=config.candidate_maxlength,
        dtype=config.torch_dtype or ("bfloat16" if on_gpu else "float32"),
        device=device,
    )


def _device(*given: Device) -> str:
    """Torch name of the first device that is not None, else `auto`."""
    device = next((device for device in given if device is not None), "auto")
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _downloaded(path: str, cache_dir: str | None) -> str:
    """`path`, or the folder in `cache_dir` to which the original downloaded it."""
    if cache_dir is None or Path(path).is_dir() or not (folder := Path(cache_dir) / path).is_dir():
        return path
    return str(folder)
