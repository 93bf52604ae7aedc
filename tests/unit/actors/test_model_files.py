"""Weights in either published format, single or sharded; what is missing, broken or dangerous is named."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_models import save_plain_model

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_files import check_folder, has_chat_template, weight_files
from llm_blender_ray.actors.weight_checks import check_weights
from llm_blender_ray.actors.weights import load_model, load_tensors, locate

CPU = torch.device("cpu")
Save = Callable[[dict[str, torch.Tensor], Path], None]


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code of a pickle ran",)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "model")


def zipped(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(tensors, file)


def legacy(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def as_bin(folder: Path, shards: int = 1, save: Save = zipped) -> list[Path]:
    """Turn the folder's safetensors into .bin files with an index, as transformers 4 saved them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        save(tensors, folder / "pytorch_model.bin")
        return [folder / "pytorch_model.bin"]
    names = [f"pytorch_model-{n:05}-of-{shards:05}.bin" for n in range(1, shards + 1)]
    weight_map = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return [folder / name for name in names]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("save", [zipped, legacy])
def test_bin_weights_are_the_same_model(folder: Path, published: Path, shards: int, save: Save) -> None:
    as_bin(folder, shards, save)
    check_weights(str(folder))
    auto = transformers.AutoModelForCausalLM
    model, expected = (load_model(auto, one, device=CPU, dtype=torch.float32) for one in (folder, published))
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert load_tensors(folder).keys() == load_tensors(published).keys()


def test_safetensors_come_first(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even read")
    (folder / "training_args.bin").write_bytes(b"no weights")
    check_folder(folder)
    assert weight_files(folder).safetensors
    load_model(transformers.AutoModelForCausalLM, folder, device=CPU, dtype=torch.float32)


def test_other_bin_files_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="no weights"):
        check_folder(folder)


@pytest.mark.parametrize("save", [zipped, legacy])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_that_calls_code_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], save: Save, shards: int
) -> None:
    file = as_bin(folder, shards, save)[-1]
    save({"a": RunsCode()}, file)  # type: ignore[dict-item]
    for load in (check_folder, load_tensors):
        with pytest.raises(ModelLoadError, match=r"calls code \(print\)") as caught:
            load(folder)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert "code of a pickle ran" not in capsys.readouterr().out


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@pytest.mark.parametrize("break_it", [cut, empty, pointer, Path.unlink])
@pytest.mark.parametrize("layout", ["bin", "legacy", "sharded bin", "sharded bin, no index", "safetensors shards"])
def test_a_broken_or_missing_file_is_named(folder: Path, layout: str, break_it: Callable[[Path], None]) -> None:
    if layout == "safetensors shards":
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        files = [folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        for n, file in enumerate(files):
            save_file(dict(list(tensors.items())[n::2]), file, metadata={"format": "pt"})
    else:
        files = as_bin(folder, 2 if "sharded" in layout else 1, legacy if layout == "legacy" else zipped)
    if "no index" in layout:
        (folder / "pytorch_model.bin.index.json").unlink()
    break_it(files[-1])
    with pytest.raises(ModelLoadError) as caught:
        check_weights(str(folder))
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400
    assert files[-1].name in told or (len(files) == 1 and "no weights" in told)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": ["a"]}', "{}"])
def test_a_broken_index_is_named(folder: Path, index: str) -> None:
    as_bin(folder, 2)
    (folder / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(ModelLoadError, match=r"pytorch_model.bin.index.json: "):
        check_folder(folder)


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "training_args.bin"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_pickles_are_downloaded_only_where_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], fetched: list[str], weights: bool
) -> None:
    """A hub whose downloads are empty files."""

    def snapshot_download(
        model: str, *, revision: str | None, allow_patterns: Sequence[str], ignore_patterns: Sequence[str]
    ) -> str:
        for name in filter_repo_objects(
            ["config.json", *there], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("owner/model", weights=weights) == tmp_path
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["config.json", *(fetched if weights else [])]
    )


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, True),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "{{ messages }}"}, True),
        ({"tokenizer_config.json": "{"}, True),  # loading tells
        ({}, True),
    ],
)
def test_whether_there_is_a_chat_template(tmp_path: Path, files: dict[str, str], has: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_chat_template(tmp_path) is has
