"""The original's config classes, and the settings of this project that they stand for.

They can be changed after they were made, as users of the original do; what was loaded doesn't change with them.
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
    """What holds for ranker and fuser where nothing else is said."""

    device: str | None = None  # any device of torch: cpu, cuda, cuda:1, mps; None: the GPU where there is one
    use_tqdm: bool = True  # no effect: there are no bars


@dataclass
class RankerConfig:
    """How a ranker is loaded. Its types and the number of its tasks are told by the checkpoint, not read here."""

    ranker_type: str | None = None
    model_type: str | None = None
    model_name: str | None = None
    cache_dir: str | None = None  # a folder in which the model may lie; downloads go to the hub's cache (HF_HOME)
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
    load_in_4bit: bool = False  # refused: not supported
    load_in_8bit: bool = False
    device: str | None = None


def local_ranker(path: str, config: RankerConfig, *devices: Device) -> LocalRanker:
    """Settings for the checkpoint at `path`, a PairRanker unless its config.json says sequence classification.

    devices: the first that is given counts. Raises ModelLoadError.
    """
    device, path = _device(*devices), _kept(path, config.cache_dir)
    file = locate(path) / "config.json"
    architectures = (read_json(file).get("architectures") if file.is_file() else None) or ()
    settings: LocalRanker = PairRanker(model=path, device=device)
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        settings = RewardModel(kind="reward", model=path, device=device)
    settings = settings.model_copy(update={"dtype": "auto" if config.fp16 else "float32"})
    return with_lengths(settings, config.source_maxlength, config.candidate_maxlength)


def with_lengths(settings: LocalRanker, source: int | None, candidate: int | None) -> LocalRanker:
    """The settings with these token lengths where they are given; a reward model takes the sum of both."""
    if isinstance(settings, RewardModel):
        update = {"max_length": source + candidate} if source and candidate else {}
    else:
        given = {"source_max_length": source, "candidate_max_length": candidate}
        update = {name: length for name, length in given.items() if length}
    return type(settings).model_validate(settings.model_dump() | update)


def fuser_settings(path: str, config: GenFuserConfig, *devices: Device) -> GenFuser:
    """Settings for the fuser at `path`. devices: the first that is given counts."""
    if config.load_in_4bit or config.load_in_8bit:
        raise ValueError("load_in_4bit, load_in_8bit: not supported; use torch_dtype='bfloat16'")
    device = _device(*devices)
    on_gpu = torch.cuda.is_available() if device == "auto" else not device.startswith("cpu")
    return GenFuser(
        model=_kept(path, config.cache_dir),
        top_k=1,  # how many there are is told by every call
        max_length=config.max_length,
        candidate_max_length=config.candidate_maxlength,
        dtype=config.torch_dtype or ("bfloat16" if on_gpu else "float32"),
        device=device,
    )


def _device(*given: Device) -> str:
    """The first device that is given, by its name in torch; `auto` where none is."""
    device = next((device for device in given if device is not None), "auto")
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _kept(path: str, cache_dir: str | None) -> str:
    """`path`, or the folder in `cache_dir` where the original put its download of it."""
    if cache_dir is None or Path(path).is_dir() or not (kept := Path(cache_dir) / path).is_dir():
        return path
    return str(kept)
