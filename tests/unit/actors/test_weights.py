"""Whatever is wrong with a model folder is one clear line at load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import save_plain_model
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llm_blender_ray.actors import weights
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.model_files import WEIGHTS_INDEX
from llm_blender_ray.actors.records import Message

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("good"))


def load(folder: Path) -> None:
    weights.load_config(folder)
    weights.load_tokenizer(folder)
    weights.load_model(transformers.AutoModelForCausalLM, folder, device=CPU, dtype=torch.float32)


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        config = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        pytest.param(lambda folder: shutil.rmtree(folder), "no such folder", id="no folder"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json", id="no config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), "JSON", id="broken config"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "no weights", id="no weights"),
        pytest.param(cut_weights, "model.safetensors: can't be read", id="cut weights"),
        pytest.param(only_index, "no model-00002-of-00002", id="missing shard"),
        pytest.param(drop_tensor, "layers.1.mlp.up_proj.weight", id="missing tensor"),
        pytest.param(change_config(intermediate_size=96), "another shape", id="other shape"),
        pytest.param(change_config(num_hidden_layers=3), "tensors that", id="other depth"),
        pytest.param(drop_tokenizer, "no tokenizer", id="no tokenizer"),
        pytest.param(change_config(model_type="novel"), "'novel'", id="unknown architecture"),
        pytest.param(
            change_config(model_type="novel", auto_map={"AutoConfig": "code.Novel"}),
            "trust_remote_code: true",
            id="remote code",
        ),
    ],
)
def test_broken_folder(good: Path, tmp_path: Path, break_it: Callable[[Path], None], says: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    load(folder)
    break_it(folder)
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/folder", "no/such/folder/either", "./nor-this"])
def test_missing_folder_is_not_looked_for_on_the_hub(model: str) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        weights.locate(model)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="hub can't be reached"):
        weights.locate("some-owner/some-model")


def test_folder_is_located_as_it_is(good: Path) -> None:
    assert weights.locate(str(good)) == good


def test_loading_leaves_transformers_log_level_alone(good: Path) -> None:
    before = transformers.utils.logging.get_verbosity()
    load(good)
    assert transformers.utils.logging.get_verbosity() == before


def save_gguf_tokenizer(file: Path, kind: str, bos: bool | None) -> None:
    """Save a GGUF file of a tokenizer of bytes, without weights; `bos` is what it says of BOS."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    tokens = ["<s>", "</s>", "hi", *bytes_to_unicode().values()]
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "bos", "begins"),
    [("gpt2", True, True), ("gpt2", False, False), ("gpt2", None, False), ("llama", None, True)],
)
def test_a_bare_prompt_of_a_gguf_file_begins_with_bos_where_the_file_says_so(
    tmp_path: Path, kind: str, bos: bool | None, begins: bool
) -> None:
    save_gguf_tokenizer(tmp_path / "model.gguf", kind, bos)
    tokenizer = weights.load_tokenizer(tmp_path / "model.gguf")
    chat = [Message(role="user", content="hi")]
    assert ChatTokenizer(tokenizer).encode(chat) == ([0, 2] if begins else [2])
    template = "{{ bos_token }}{{ messages[0].content }}"  # which writes it itself
    assert ChatTokenizer(tokenizer, template).encode(chat) == [0, 2]
