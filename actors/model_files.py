"""Weight files of a model folder, and checks of their integrity. Reads headers only.

Weights are safetensors where the folder has them, else PyTorch's pickles (`pytorch_model*.bin`), which are read
with `weights_only=True`: that builds tensors and plain containers and runs no code of the file.
"""

import importlib.util
import json
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.configs.weight_formats import GGUF_SUFFIX

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS_INDEX = f"{SAFETENSORS}.index.json"
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
_LFS_POINTER = b"version https://git-lfs"
COPY = "copy or download it again"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a model folder.

    Attributes:
        files: All of them, sorted by name; each may still be missing on disk.
        safetensors: Their format; otherwise they are PyTorch's pickles.
    """

    files: tuple[Path, ...]
    safetensors: bool


def weight_files(folder: Path) -> WeightFiles:
    """Find the weights of a model folder, safetensors first.

    An index counts before the shards that are there. Shards without an index count by their names
    (`NAME-00001-of-00003.bin`).

    Args:
        folder: A model folder.

    Returns:
        Its weight files, and those that an index or a shard's name implies, whether they are there or not.

    Raises:
        ModelLoadError: When there are none, or an index can't be read.
    """
    for whole, pattern in ((SAFETENSORS, "*.safetensors"), (PICKLED, "pytorch_model*.bin")):
        if files := _files(folder, whole, pattern):
            return WeightFiles(tuple(folder / name for name in sorted(files)), whole == SAFETENSORS)
    raise ModelLoadError(
        f"{folder}: no weights in it: no model.safetensors, pytorch_model.bin, or shards of one; {COPY}"
    )


def _files(folder: Path, whole: str, pattern: str) -> set[str]:
    """Names of one format's files. A whole file counts before shards, as in transformers."""
    if (folder / whole).is_file():
        return {whole}
    index = folder / f"{whole}.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelLoadError(f"{index}: expected a weight_map of tensors to files; {COPY}")
        return set(shards.values())
    names = {file.name for file in folder.glob(pattern)}
    return names | {sibling for name in names for sibling in _siblings(name)}


def _siblings(name: str) -> Iterable[str]:
    """All shards of the set that one shard's name belongs to."""
    if match := _NUMBERED.fullmatch(name):
        stem, number, count, suffix = match.groups()
        return (f"{stem}-{n:0{len(number)}}-of-{count}{suffix}" for n in range(1, int(count) + 1))
    return ()


def check_folder(folder: Path) -> None:
    """Check that config.json and every file of the weights are there and whole.

    Args:
        folder: A model folder.

    Raises:
        ModelLoadError: Naming the file that is missing or broken.
    """
    check_config(folder)
    weights = weight_files(folder)
    for file in weights.files:
        if not file.is_file():
            raise ModelLoadError(f"{folder}: weights are missing: no {file.name}; {COPY}")
        check_not_pointer(file)
        (check_safetensors if weights.safetensors else _check_pickle)(file)


def check_not_pointer(file: Path) -> None:
    """Check that a file is itself there, and no pointer of Git LFS to it.

    Raises:
        ModelLoadError: It is one.
    """
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelLoadError(f"{file}: only a Git LFS pointer, not the weights; run git lfs pull")


def check_safetensors(file: Path) -> None:
    """Check that the header of a safetensors file can be read.

    Raises:
        ModelLoadError: It can't.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file}: can't be read as safetensors ({one_line(error)}); {COPY}") from error


def _check_pickle(file: Path) -> None:
    """A zip archive (torch 1.6 and later) is mapped, not read; an older file has to be read whole."""
    read_pickle(file, device="meta", mapped=zipfile.is_zipfile(file))


def read_pickle(file: Path, *, device: str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read a file of PyTorch's pickled weights, running no code of it.

    Args:
        file: The file.
        device: Of the tensors; "meta" for tensors without contents.
        mapped: Whether to map the file into memory; only for zip archives.

    Returns:
        Tensors by name.

    Raises:
        ModelLoadError: When it is broken, needs code, or holds something else.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            weights = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises a dozen types for broken files
        text = str(error)
        if isinstance(error, UnpicklingError) and re.search(r"Unsupported (global|class)|not an allowed", text):
            raise ModelLoadError(
                f"{file}: its pickle calls code ({_named_global(text)}), so it isn't loaded; take safetensors of "
                "this model, or convert the file where you trust it"
            ) from error
        reason = "no pickle of tensors" if isinstance(error, UnpicklingError) else text.partition(". ")[0][:120]
        raise ModelLoadError(
            f"{file}: can't be read as PyTorch weights ({reason or 'it ends too early'}); {COPY}"
        ) from error
    if not isinstance(weights, dict):
        raise ModelLoadError(f"{file}: expected tensors by name, got {type(weights).__name__}")
    return weights


def _named_global(text: str) -> str:
    match = re.search(r"(?:GLOBAL|global:?|class)\s+(?:GLOBAL\s+)?([\w.]+)", text.partition("Unsupported")[2])
    return match[1] if match else "not plain tensors"


def check_config(folder: Path) -> None:
    """Check that there is a folder with a config.json. Reads no weights, so it is quick at any size.

    Args:
        folder: A model folder.

    Raises:
        ModelLoadError: There is none; the message says what is there instead.
    """
    if is_gguf(folder):
        raise ModelLoadError(f"{folder}: {_GGUF}")
    if folder.is_file():
        raise ModelLoadError(f"{folder}: a file; give the folder of the model")
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder}: {_other_contents(folder)}")


def is_gguf(path: Path) -> bool:
    """Whether the path is that of a GGUF file."""
    return path.suffix.lower() == GGUF_SUFFIX and path.is_file()


def check_gguf(file: Path) -> None:
    """Check that a GGUF file is one, and that it can be read here.

    Raises:
        ModelLoadError: It isn't, or the package `gguf` is missing.
    """
    check_not_pointer(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelLoadError(f"{file}: no GGUF file, whatever its name; {COPY}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError(f"{file}: reading GGUF needs the package gguf; pip install gguf")


_GGUF = (
    "weights for llama.cpp (GGUF); give the file itself to engine: transformers, or the folder of the model that "
    "it was made from, or serve it with llama-server and use engine: endpoint"
)


def _other_contents(folder: Path) -> str:
    """What a folder without a config.json holds, and the cure."""
    if (folder / ADAPTER_CONFIG).is_file():
        settings = read_json(folder / ADAPTER_CONFIG)
        kind, base = settings.get("peft_type", "PEFT"), settings.get("base_model_name_or_path") or "another model"
        return (
            f"a {kind} adapter of {base}, not a model; give that one as model, and this folder as its adapter, or "
            "among its adapters"
        )
    if (folder / "model_index.json").is_file():
        return "a diffusion pipeline, not a language model"
    if any(folder.glob("*.gguf")):
        return _GGUF
    if (folder / "params.json").is_file():
        return "weights in their publisher's own format (params.json); take the model's Hugging Face format"
    return "no config.json in it, so it isn't a model folder"


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder has a chat template.

    Args:
        folder: A model folder.

    Returns:
        True also if that cannot be read.
    """
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    try:
        return not settings.is_file() or bool(read_json(settings).get("chat_template"))
    except ModelLoadError:
        return True


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: The file.

    Returns:
        The object.

    Raises:
        ModelLoadError: When there is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: can't be read as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: expected a JSON object")
    return content
