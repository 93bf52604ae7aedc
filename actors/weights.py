"""Model folders: finding them, and loading configs, tokenizers and weights from them.

`from_pretrained` alone is too lenient and too obscure for an unattended run: it initialises tensors that a
checkpoint lacks at random with only a warning, and reports a missing file in a paragraph. Here a folder is checked
before it is loaded, and any failure becomes one ModelLoadError that names the cure. A hub id is first resolved to a
local folder, so that everything after that handles folders only.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.model_files import (
    check_config,
    check_folder,
    check_gguf,
    is_gguf,
    read_json,
    read_pickle,
    weight_files,
)
from llm_blender_ray.actors.vocabularies import published
from llm_blender_ray.actors.weight_checks import hub_errors

_DESCRIBING = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "spm.model", "vocab.json", "vocab.txt")
_NOT_DOWNLOADED = ["consolidated*", "original/*", "onnx/*", "openvino/*"]  # the same weights once more


def locate(
    model: str, revision: str | None = None, *, weights: bool = True, pickled: str = "pytorch_model*.bin"
) -> Path:
    """Find the folder of a model: a local folder itself, or the hub's snapshot of it, downloaded on first use.

    Pickled weights (`pytorch_model*.bin`) are downloaded only when the model has no safetensors.

    Args:
        model: Local folder or hub id.
        revision: Of the hub's repository.
        weights: Whether to download weights; without, only config and tokenizer.
        pickled: Pattern of the names of pickled weights.

    Returns:
        The local folder.

    Raises:
        ModelLoadError: When there is no such folder and the hub can't give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() or is_gguf(folder):
        return folder
    with hub_errors(model, revision):
        folder = _download(model, revision, [*_DESCRIBING, *(["*.safetensors"] if weights else [])])
        if weights and not any(folder.glob("*.safetensors")):
            folder = _download(model, revision, [*_DESCRIBING, pickled])
        return folder


def _download(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=list(patterns), ignore_patterns=_NOT_DOWNLOADED
        )
    )


def resolve_device(name: str) -> torch.device:
    """The torch device of a setting: `auto` is the GPU where there is one, else the CPU.

    Raises:
        ModelLoadError: This process has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"device: {name} is set, but this process has no GPU; set device: cpu, or give it num_gpus"
        )
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # as each backend likes
        raise ModelLoadError(f"device: {name}: this process has no such device ({one_line(error)})") from error
    return device


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's config.

    Raises:
        ModelLoadError: The config can't be read, or transformers doesn't know the architecture.
    """
    if is_gguf(folder):
        check_gguf(folder)
        with _as_load_error(folder, "config"):
            return transformers.AutoConfig.from_pretrained(folder.parent, gguf_file=folder.name)
    check_config(folder)
    content = read_json(folder / "config.json")
    model_type = content.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        if "auto_map" not in content:
            raise ModelLoadError(
                f"{folder}: model_type {model_type!r} in config.json isn't known to "
                f"transformers {transformers.__version__}"
            )
        if not trust_remote_code:
            raise ModelLoadError(
                f"{folder}: needs Python code that comes with the model; read it, and if you trust it set "
                "trust_remote_code: true"
            )
    with _as_load_error(folder, "config"):
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_model(
    auto_class: Any,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | Literal["auto"],
    trust_remote_code: bool = False,
    unused: Sequence[str] = (),
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Load a model in evaluation mode, from safetensors or else from pickled weights, whose code never runs.

    Args:
        auto_class: One of transformers' Auto classes, or a model class.
        folder: The model folder, or a GGUF file.
        device: Where it is put.
        dtype: Of its weights; "auto" for the checkpoint's own.
        trust_remote_code: Whether Python code of the folder may run.
        unused: Prefixes of tensors that are not used, which a checkpoint may lack.
        quantization: How linear layers are quantized while they are loaded; `dtype` is that of the rest.

    Returns:
        The model.

    Raises:
        ModelLoadError: Also when the checkpoint lacks tensors or has them in other shapes.
    """
    options: dict[str, Any]
    silent: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if is_gguf(folder):
        check_gguf(folder)
        source, options = folder.parent, {"gguf_file": folder.name}  # dequantized to `dtype`
        silent = contextlib.redirect_stderr(io.StringIO())  # its progress bar has no switch
    else:
        check_folder(folder)
        source, options = folder, {"use_safetensors": weight_files(folder).safetensors, "weights_only": True}
        if trust_remote_code:  # model classes don't take it
            options["trust_remote_code"] = True
    if quantization is not None:
        options["quantization_config"] = quantization
    with _as_load_error(folder, "model"), silent:
        model, info = auto_class.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": device} if device.type != "cpu" or quantization else None,
            ignore_mismatched_sizes=True,  # reported below, with the missing ones
            output_loading_info=True,
            **options,
        )
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    bad = sorted(name for name in missing if not name.startswith(tuple(unused)))
    if bad:
        raise ModelLoadError(
            f"{folder}: the weights lack, or have in another shape, {len(bad)} of the tensors that "
            f"{type(model).__name__} needs ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}); "
            "it is another kind of model, or its config.json belongs to other weights"
        )
    return model.eval()


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights of a folder by name, of any architecture.

    Args:
        folder: The model folder.

    Returns:
        Tensors on the CPU.

    Raises:
        ModelLoadError: When a file is missing, broken, or a pickle that needs code.
    """
    check_folder(folder)
    weights = weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in weights.files:
        tensors |= load_file(file) if weights.safetensors else read_pickle(file)
    return tensors


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder: `tokenizer.json` as it was published, wherever there is one.

    Transformers rebuilds it by the class that tokenizer_config.json names, which may be wrong (a byte-level
    vocabulary as LlamaTokenizerFast loses all spaces); it repairs that for some hub ids, not for folders. The class
    still gives the names of special tokens that the config leaves out.

    Args:
        folder: The model folder.
        trust_remote_code: Whether Python code of the folder may run.

    Returns:
        The tokenizer.

    Raises:
        ModelLoadError: There is none, or it can't be loaded.
    """
    if is_gguf(folder):
        check_gguf(folder)
        with _as_load_error(folder, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder.parent, gguf_file=folder.name)
            if tokenizer.bos_token is not None and _begins_with_bos(folder):
                tokenizer.add_bos_token = True  # transformers 5.19 leaves it out
            return tokenizer
    if not any((folder / name).is_file() for name in (*_VOCABULARIES, "tokenizer_config.json")):
        raise ModelLoadError(
            f"{folder}: no tokenizer in it; save the model's tokenizer there (tokenizer.save_pretrained)"
        )
    has_json = (folder / "tokenizer.json").is_file()
    vocabulary = published(folder)
    with _as_load_error(folder, "tokenizer"):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception:  # a class that can't be made of the file
            if not has_json:
                raise
            return PreTrainedTokenizerFast.from_pretrained(folder)
        its_own = not type(tokenizer).__module__.startswith("transformers.")  # code of the folder
        if vocabulary is None or its_own or (has_json and type(tokenizer) is PreTrainedTokenizerFast):
            return tokenizer
        names = {
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str) and vocabulary.token_to_id(token) is not None
        }
        options = {"model_input_names": tokenizer.model_input_names, **names}
        if has_json:
            return PreTrainedTokenizerFast.from_pretrained(folder, **options)
        return PreTrainedTokenizerFast(
            tokenizer_object=vocabulary,
            chat_template=tokenizer.chat_template,
            model_max_length=tokenizer.model_max_length,
            **options,
        )


def _begins_with_bos(file: Path) -> bool:
    """Whether bare prompts of a GGUF model begin with BOS: as the file says, else as in llama.cpp."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    if (said := fields.get("tokenizer.ggml.add_bos_token")) is not None:
        return bool(said.contents())
    kind = fields.get("tokenizer.ggml.model")
    return kind is not None and kind.contents() == "llama"  # SentencePiece's


def weights_digest(model: torch.nn.Module, *others: object) -> str:
    """Make a digest of a model's weights at the precision that they have, and of what else decides its answers.

    Args:
        model: The model.
        others: JSON values.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError: A value has no JSON form.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps(others, sort_keys=True).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers' warnings and bars off: what matters of them comes as an error, or in a run's own lines."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _as_load_error(folder: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises in the block into a ModelLoadError; its warnings are suppressed."""
    try:
        with quiet():
            yield
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{folder}: the {what} doesn't fit on the GPU; use a smaller dtype, or give it a GPU of its own"
        ) from error
    except Exception as error:  # any of two dozen types, remote code's own among them
        raise ModelLoadError(f"{folder}: can't load the {what}: {one_line(error)}") from error
