"""Model folders and what is loaded from them, shared by every class that holds weights.

`from_pretrained` alone is too forgiving and too obscure for a run nobody watches: it initialises tensors that
a checkpoint lacks at random with no more than a warning, and explains a missing file in a paragraph. Here a
folder is checked before it is loaded, and whatever is wrong becomes one ModelLoadError that names the cure. A
hub id is first brought to a local folder, so that everything after that sees folders only.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from actors.errors import ModelLoadError, one_line

WEIGHTS_INDEX = "model.safetensors.index.json"
_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
_NOT_DOWNLOADED = ["consolidated*", "original/*", "onnx/*", "openvino/*"]  # the same weights once more


def locate(model: str, revision: str | None = None, *, also: Sequence[str] = ()) -> Path:
    """The folder of `model`: a local folder itself, or the hub's snapshot of it, downloaded on first use.

    also: names of files to download beside the usual ones.

    Raises ModelLoadError when there is no such folder and the hub can't give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    with _as_hub_error(model, revision):
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=[*_DOWNLOADED, *also],
                ignore_patterns=_NOT_DOWNLOADED,
            )
        )


def check_there(model: str, revision: str | None = None, *, weights: bool = True) -> None:
    """Raise ModelLoadError when there is no such folder, its weights aren't whole, or the hub doesn't give it.

    Of a model on the hub only config.json is fetched, so it is quick at any size. weights: in a local folder there
    must be safetensors; without, it may be any layout.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if weights:
            check_folder(folder)
        return
    with _as_hub_error(model, revision):
        huggingface_hub.hf_hub_download(model, "config.json", revision=revision)


@contextlib.contextmanager
def _as_hub_error(model: str, revision: str | None) -> Iterator[None]:
    """What the hub raises in the block, as a ModelLoadError of one line."""
    try:
        yield
    except HFValidationError as error:  # not of the form "owner/name": a path was meant
        raise ModelLoadError(f"{model}: no such folder") from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model}: access must be asked for on its hub page, and HF_TOKEN set to your token"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{model}: neither a local folder nor on the hub (for a private one, set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model}: the hub has no revision {revision!r} of it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelLoadError(
            f"{model}: no such local folder, not in the hub's cache, and the hub can't be reached; "
            "give a local folder, or check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelLoadError(f"{model}: the download failed: {one_line(error)}") from error


def check_folder(folder: Path) -> None:
    """Raise ModelLoadError unless config.json and every file of safetensors weights are there and whole.

    Reads headers only, so it is quick at any size.
    """
    _check_config(folder)
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(
            f"{folder}: no weights (*.safetensors) in it; load .bin files once with transformers and "
            "save them with save_pretrained, or take the hub's conversion of it (revision: refs/pr/N)"
        )
    for file in files:
        if not file.is_file():
            raise ModelLoadError(f"{folder}: weights are missing: no {file.name}; copy or download it again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{file}: can't be read as safetensors ({one_line(error)}); copy or download it again"
            ) from error


def _check_config(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder}: no config.json in it, so it isn't a model folder")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises ModelLoadError when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: can't be read as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: expected a JSON object")
    return content


def resolve_device(name: str) -> torch.device:
    """The torch device of a setting: `auto` is the GPU where there is one, else the CPU.

    Raises ModelLoadError.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ModelLoadError(
            "device: cuda is asked for, but this process sees no GPU; set device: cpu, or give it num_gpus"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and cuda) else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | Literal["auto"]:
    """The torch dtype of a setting: `auto` is float32 on CPU and the checkpoint's own ("auto") on GPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's config. Raises ModelLoadError, also for an architecture that transformers doesn't know."""
    _check_config(folder)
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
) -> PreTrainedModel:
    """The model in evaluation mode on `device`, from safetensors only.

    auto_class: one of transformers' Auto classes, or a model class. Raises ModelLoadError, also when the
    checkpoint lacks tensors or has them in other shapes.
    """
    check_folder(folder)
    options = {"trust_remote_code": True} if trust_remote_code else {}  # model classes don't take it
    with _as_load_error(folder, "model"):
        model, info = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            device_map={"": device} if device.type != "cpu" else None,
            ignore_mismatched_sizes=True,  # reported below, with the missing ones
            output_loading_info=True,
            **options,
        )
    bad = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if bad:
        raise ModelLoadError(
            f"{folder}: the weights lack, or have in another shape, {len(bad)} of the tensors that "
            f"{type(model).__name__} needs ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}); "
            "it is another kind of model, or its config.json belongs to other weights"
        )
    return model.eval()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; `options` go to transformers as they are. Raises ModelLoadError."""
    vocabularies = (
        "tokenizer.json",
        "tokenizer.model",
        "spiece.model",
        "spm.model",
        "vocab.json",
        "vocab.txt",
    )
    if not any((folder / name).is_file() for name in (*vocabularies, "tokenizer_config.json")):
        raise ModelLoadError(
            f"{folder}: no tokenizer in it; save the model's tokenizer there (tokenizer.save_pretrained)"
        )
    with _as_load_error(folder, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)


def weights_digest(model: torch.nn.Module, *others: object) -> str:
    """A digest of a model's weights at the precision that they have, and of what else decides its answers.

    others: anything JSON has a type for.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps(others, sort_keys=True, default=str).encode())
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
    """Whatever transformers raises in the block becomes a ModelLoadError; its warnings stay silent."""
    try:
        with quiet():
            yield
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{folder}: the {what} doesn't fit on the GPU; use a smaller dtype, or give it a GPU of its own"
        ) from error
    except Exception as error:  # any of two dozen types, remote code's own among them
        raise ModelLoadError(f"{folder}: can't load the {what}: {one_line(error)}") from error
