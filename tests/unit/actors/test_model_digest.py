"""Digest of a model folder: another one where weights changed in place, the same one for a copy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_blender_ray.actors.model_digest import SAMPLE_BYTES, SAMPLES, model_digest

LARGE = SAMPLE_BYTES * SAMPLES * 2  # bytes, of which samples cover half


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights are too large to be read whole."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "toy"}))
    tensors = {"body": np.zeros(LARGE, np.uint8), "head": np.zeros(64, np.uint8), "norm": np.zeros(64, np.uint8)}
    save_file(tensors, made / "model.safetensors")
    return made


def test_a_copy_elsewhere_and_later_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert model_digest(copy) == model_digest(folder)
    assert model_digest(str(folder)) == model_digest(folder)


@pytest.mark.parametrize("name", ["body", "head", "norm"])
def test_trained_weights_of_the_same_shapes_have_another_digest(folder: Path, name: str) -> None:
    """A head alone may have been trained: every tensor is sampled, however small in a large file."""
    before = model_digest(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + np.uint8(1)
    save_file(tensors, folder / "model.safetensors")
    assert model_digest(folder) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modeling_toy.py", "backbone/config.json"])
def test_other_files_that_a_loader_reads_count(folder: Path, name: str) -> None:
    before = model_digest(folder)
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"changed": true}')
    assert model_digest(folder) != before


@pytest.mark.parametrize(
    "name", ["README.md", ".cache/download.json", "__pycache__/modeling.py", "checkpoint-40/model.bin"]
)
def test_files_that_no_loader_reads_do_not_count(folder: Path, name: str) -> None:
    before = model_digest(folder)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert model_digest(folder) == before


@pytest.mark.parametrize("suffix", ["bin", "gguf"])
def test_weights_of_other_formats_are_sampled_to_their_last_byte(folder: Path, suffix: str) -> None:
    file = folder / f"model.{suffix}"
    file.write_bytes(bytes(LARGE))
    before, alone = model_digest(folder), model_digest(file)
    file.write_bytes(bytes(LARGE - 1) + b"\1")
    assert model_digest(folder) != before
    assert model_digest(file) != alone


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 8, (9).to_bytes(8, "little") + b"not JSON.", b"\2" + bytes(7) + b"[]"]
)
def test_a_broken_header_is_left_to_the_loader(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(header + bytes(LARGE))
    assert model_digest(folder) is not None


def test_what_is_no_local_model_has_none(tmp_path: Path) -> None:
    assert model_digest("llm-blender/PairRM") is None
    assert model_digest(tmp_path / "missing") is None
    assert model_digest(tmp_path) is None


def test_an_adapter_that_loads_as_a_model_counts_with_the_model_below_it(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    alone = model_digest(kept)  # beside a model that the config names, whatever the adapter says
    (kept / "config.json").write_text("{}")
    before = model_digest(kept)
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    assert model_digest(kept) != before
    (kept / "config.json").unlink()
    assert model_digest(kept) == alone


@pytest.mark.parametrize("named", ['{"base_model_name_or_path": "some/hub-id"}', '{"r": 8}', "[]", "{"])
def test_an_adapter_whose_model_is_not_here_counts_alone(folder: Path, named: str) -> None:
    (folder / "adapter_config.json").write_text(named)
    before = model_digest(folder)
    assert before is not None
    assert model_digest(folder) == before


def test_adapters_of_one_another_have_a_digest(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / other)})
        )
    assert model_digest(tmp_path / "a")
