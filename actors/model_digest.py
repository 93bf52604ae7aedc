"""Digest of a local model folder from samples of its files: detects weights replaced under the same path.

It reads a few MB where a full hash reads gigabytes. Modification times are left out: copies, uploads and containers
change them while the weights stay the same.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from llm_blender_ray.actors.model_files import ADAPTER_CONFIG

SUFFIXES = frozenset({".json", ".model", ".txt", ".jinja", ".tiktoken", ".py", ".safetensors", ".bin", ".gguf"})
_CONFIGS = ("config.json", ADAPTER_CONFIG)  # of a model, of an adapter
SAMPLE_BYTES = 4096
SAMPLES = 64  # of a file, evenly spaced; of safetensors also the beginning of every tensor
_MAX_HEADER = 100_000_000  # bytes; the limit of safetensors itself
_CONCURRENT_READS = 16
_NEVER_LOADED = re.compile(r"\.|__pycache__$|checkpoint-\d+$")  # subfolders: caches of downloads, of a training


def model_digest(model: str | Path) -> str | None:
    """Make a digest of a model's files: their names, sizes and samples of their bytes.

    Of a kept adapter (`actors.merged_adapters`) they are those of its model, too.

    Args:
        model: Local folder, of a model or an adapter, local file, or hub id.

    Returns:
        16 hexadecimal digits; None without a local model of that path, as for a hub id.

    Raises:
        OSError: A file cannot be read.
    """
    path = Path(model).expanduser()
    if not (path.is_file() or any((path / name).is_file() for name in _CONFIGS)):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for folder in _loaded(path):
        files = [folder] if folder.is_file() else sorted(_files(folder))
        with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
            for file, sampled in zip(files, pool.map(_sampled, files), strict=True):
                digest.update(json.dumps([str(file.relative_to(folder)), sampled]).encode())
    return digest.hexdigest()


def _loaded(path: Path) -> list[Path]:
    """A model and the local models that are loaded below it."""
    found: list[Path] = []
    below: Path | None = path
    while below is not None and below not in found:
        found.append(below)
        below = _adapted(below)
    return found


def _adapted(folder: Path) -> Path | None:
    """The local model that is loaded below an adapter: that of a folder with the configs of both."""
    if not all((folder / name).is_file() for name in _CONFIGS):
        return None
    try:
        base = json.loads((folder / _CONFIGS[1]).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):  # loading reports it
        return None
    found = Path(base).expanduser() if isinstance(base, str) and base else None
    return found if found is not None and (found / _CONFIGS[0]).is_file() else None


def _files(folder: Path) -> Iterable[Path]:
    """Files of a model folder that a loader may read."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _NEVER_LOADED.match(name)]
        yield from (Path(parent, name) for name in names if Path(name).suffix in SUFFIXES and name[0] != ".")


def _sampled(file: Path) -> str:
    """Digest of a file's size and samples, or of all its bytes where samples would cover them."""
    digest = hashlib.blake2b(digest_size=8)
    with file.open("rb") as source:
        size = source.seek(0, os.SEEK_END)
        digest.update(f"{size} ".encode())
        if size <= SAMPLE_BYTES * SAMPLES:
            source.seek(0)
            digest.update(source.read())
            return digest.hexdigest()
        starts = {i * (size - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)}
        if file.suffix == ".safetensors":
            starts |= set(_tensor_starts(source, size))
        for start in sorted(starts):
            source.seek(start)
            digest.update(source.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _tensor_starts(source: BinaryIO, size: int) -> Iterable[int]:
    """Offsets of the tensors of a safetensors file; none of one with a broken header, which loading reports."""
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if not 0 < length <= min(size - 8, _MAX_HEADER):
        return
    try:
        tensors = json.loads(source.read(length))
        starts = [int(tensor["data_offsets"][0]) for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return
    for start in starts:
        if 0 <= start < size:
            yield 8 + length + start
