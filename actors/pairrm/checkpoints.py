"""PairRanker checkpoints: every published layout in, the Hugging Face layout out.

- `llm-blender/PairRM`, `llm-blender/pair-ranker`: config.json is the original's RankerConfig; `model_name` is the
  backbone (hub id, or a path relative to the checkpoint), which gives the encoder's config and the tokenizer.
- `llm-blender/PairRM-hf`: config.json is the encoder's own, with the markers' ids and the tokenizer. Rankers on
  other backbones are written in the same form, under the architecture that `backbones` names.

Weights are safetensors; a checkpoint that has only `pytorch_model*.bin` (early `pair-ranker`) is read with
`weights_only`, which runs no code of it.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BitsAndBytesConfig, PreTrainedTokenizerFast

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.merged_adapters import is_adapter, locate_adapted, merge_adapter
from llm_blender_ray.actors.model_files import read_json
from llm_blender_ray.actors.pairrm.backbones import Backbone, EncoderBackbone, registered_backbones
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenization
from llm_blender_ray.actors.weights import load_config, load_model, load_tensors, locate, resolve_device

_HEAD = "head.safetensors"  # of a ranker whose backbone's changes are kept as an adapter


class _Config(BaseModel):
    """Settings read from a checkpoint's config.json."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    source_maxlength: int
    candidate_maxlength: int
    n_tasks: int = 1
    drop_out: float = 0.05


_ConfigT = TypeVar("_ConfigT", bound=_Config)


class _OriginalConfig(_Config):
    """The original's RankerConfig."""

    ranker_type: Literal["pairranker"]
    model_name: str


class _HFConfig(_Config):
    """Of the Hugging Face layout, which leaves the lengths to the caller; these are the published model's."""

    source_maxlength: int = 1224
    candidate_maxlength: int = 412


def load_pairrm(
    model: str,
    *,
    revision: str | None = None,
    source_max_length: int | None = None,
    candidate_max_length: int | None = None,
) -> tuple[PairRMNetwork, PairTokenization]:
    """The network (float32, on CPU, in eval mode) and tokenizer of a local folder or hub id, any published layout.

    The lengths (tokens) override the checkpoint's own.

    Raises:
        ModelLoadError: The model can't be used.
    """
    folder = locate(model, revision)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder}: no config.json in it; give a folder or hub id of a PairRanker checkpoint")
    settings = read_json(folder / "config.json")
    kind = _backbone_of_ranker(settings)
    if is_adapter(folder):
        return _load_adapted(folder, settings, source_max_length, candidate_max_length)
    if "ranker_type" in settings:
        original = _read(_OriginalConfig, settings, folder)
        inside = folder / original.model_name
        backbone = inside.resolve() if inside.is_dir() else locate(original.model_name, weights=False)
        checkpoint: _Config = original
    elif kind is not None:
        checkpoint, backbone = _read(_HFConfig, settings, folder), folder
    else:
        raise ModelLoadError(
            f"{folder}: not a PairRanker checkpoint (neither ranker_type nor {_architectures()} in its config.json)"
        )
    budget = PairBudget(
        source_max_length or checkpoint.source_maxlength, candidate_max_length or checkpoint.candidate_maxlength
    )
    config = load_config(backbone)
    if not hasattr(config, "hidden_size") or getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(f"{backbone}: neither an encoder nor a causal LM, so no backbone of a PairRanker")
    model_on = kind or EncoderBackbone()
    network, tokenizer = model_on.assemble(
        AutoModel.from_config(config, dtype=torch.float32),
        backbone,
        budget,
        n_tasks=checkpoint.n_tasks,
        dropout=checkpoint.drop_out,
    )
    _load_weights(network, folder)
    return network.eval(), tokenizer


def _load_adapted(
    folder: Path, settings: dict[str, Any], source_max_length: int | None, candidate_max_length: int | None
) -> tuple[PairRMNetwork, PairTokenization]:
    """`load_pairrm` of an adapter that `save_adapted_pairrm` has written."""
    checkpoint = _read(_HFConfig, settings, folder)
    network, tokenizer = create_pairrm(
        str(locate_adapted(folder)),
        PairBudget(
            source_max_length or checkpoint.source_maxlength,
            candidate_max_length or checkpoint.candidate_maxlength,
        ),
        n_tasks=checkpoint.n_tasks,
        dropout=checkpoint.drop_out,
    )
    network.pretrained_model = merge_adapter(network.pretrained_model, folder)
    try:
        network.head_layer.load_state_dict(load_file(folder / _HEAD))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelLoadError(f"{folder / _HEAD}: can't load the head: {one_line(error)}") from error
    return network.eval(), tokenizer


def create_pairrm(
    backbone: str,
    budget: PairBudget,
    *,
    n_tasks: int = 1,
    dropout: float = 0.05,
    quantization: BitsAndBytesConfig | None = None,
) -> tuple[PairRMNetwork, PairTokenization]:
    """A ranker to train.

    Args:
        backbone: Folder or hub id. Of an encoder or a causal LM: its published weights, what else the kind of
            backbone needs (`backbones`), and a new head. Of a PairRanker: all as it is.
        budget: Token budgets of the ranker.
        n_tasks: Outputs of the head, one for each metric.
        dropout: Of the head.
        quantization: Of the weights of an encoder or a causal LM, while they are loaded.

    Raises:
        ModelLoadError: The backbone can't be used, or its head has another number of outputs.
    """
    folder = locate(backbone)
    settings = _settings(folder)
    if _is_ranker(settings):
        if quantization is not None:
            raise ModelLoadError(f"{backbone}: a PairRanker is not quantized; start from an encoder or a causal LM")
        network, tokenizer = load_pairrm(
            str(folder),
            source_max_length=budget.source_max_length,
            candidate_max_length=budget.candidate_max_length,
        )
        if network.n_tasks != n_tasks:
            raise ModelLoadError(
                f"{backbone}: its head has {network.n_tasks} outputs, but metrics has {n_tasks}; name as many "
                "metrics as it was trained on, or start from an encoder or a causal LM"
            )
        network.set_dropout(dropout)
        return network, tokenizer
    device = resolve_device("auto") if quantization else torch.device("cpu")
    model = load_model(AutoModel, folder, device=device, dtype=torch.float32, quantization=quantization)
    architectures = settings.get("architectures") or ()
    kind = next(kind for kind in registered_backbones() if kind.fits(architectures))
    return kind.assemble(model, folder, budget, n_tasks=n_tasks, dropout=dropout)


def outline_pairrm(
    backbone: str, budget: PairBudget, *, n_tasks: int = 1, dropout: float = 0.05
) -> tuple[PairRMNetwork, PairTokenization]:
    """`create_pairrm` with random weights: config and tokenizer alone are read.

    Raises:
        ModelLoadError: They can't be used.
    """
    folder = locate(backbone, weights=False)
    settings = _settings(folder)
    if "ranker_type" in settings:
        original = _read(_OriginalConfig, settings, folder).model_name
        folder = (folder / original).resolve() if (folder / original).is_dir() else locate(original, weights=False)
        settings = _settings(folder)
    kinds = registered_backbones()
    kind = _backbone_of_ranker(settings) or next(
        kind for kind in kinds if kind.fits(settings.get("architectures") or ())
    )
    model = AutoModel.from_config(load_config(folder), dtype=torch.float32)
    model.resize_token_embeddings = partial(model.resize_token_embeddings, mean_resizing=False)  # reads no weights
    return kind.assemble(model, folder, budget, n_tasks=n_tasks, dropout=dropout)


def is_pairranker(model: str) -> bool:
    """Whether a folder or hub id is a PairRanker, not an encoder or causal LM.

    Raises:
        ModelLoadError: It can't be found.
    """
    return _is_ranker(_settings(locate(model)))


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _is_ranker(settings: Mapping[str, Any]) -> bool:
    return "ranker_type" in settings or _backbone_of_ranker(settings) is not None


def _backbone_of_ranker(settings: Mapping[str, Any]) -> Backbone | None:
    """The kind of backbone that a ranker with this config.json is on; None for another model or layout."""
    architectures = settings.get("architectures") or ()
    return next((kind for kind in registered_backbones() if kind.architecture in architectures), None)


def _architectures() -> str:
    return " or ".join(kind.architecture for kind in registered_backbones())


def _read(schema: type[_ConfigT], settings: dict[str, Any], folder: Path) -> _ConfigT:
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelLoadError(f"{folder}: config.json: {fields}") from error


def _load_weights(network: PairRMNetwork, folder: Path) -> None:
    weights = load_tensors(folder)
    expected = network.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise ModelLoadError(f"{folder}: lacks {len(missing)} of {len(expected)} weights, first {missing[0]}")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise ModelLoadError(
                f"{folder}: {name} has shape {list(weights[name].shape)}, expected {list(tensor.shape)}"
            )
    network.load_state_dict({name: weights[name] for name in expected})


def save_pairrm(
    network: PairRMNetwork, tokenizer: PairTokenization, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the Hugging Face layout (as `llm-blender/PairRM-hf`, with the token budgets added)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_config(network, tokenizer, folder, dtype)
    save_weights(network, folder, dtype)
    save_tokenizer(tokenizer, folder)


def save_adapted_pairrm(network: PairRMNetwork, tokenizer: PairTokenization, folder: Path) -> None:
    """Write all of a ranker but its backbone's weights, into a folder that holds an adapter of the backbone."""
    _save_config(network, tokenizer, folder, torch.float32)
    head = {name: tensor.detach().float().contiguous() for name, tensor in network.head_layer.state_dict().items()}
    save_file(head, folder / _HEAD, metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def _save_config(network: PairRMNetwork, tokenizer: PairTokenization, folder: Path, dtype: torch.dtype) -> None:
    config = network.pretrained_model.config.to_dict() | {
        "dtype": str(dtype).removeprefix("torch."),
        "n_tasks": network.n_tasks,
        "drop_out": network.dropout,
        "source_maxlength": tokenizer.budget.source_max_length,
        "candidate_maxlength": tokenizer.budget.candidate_max_length,
        **tokenizer.config_fields,
    }
    config.pop("_name_or_path", None)  # where it was trained from is a path of that machine
    config.pop("quantization_config", None)  # of a training
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_weights(network: PairRMNetwork, folder: Path, dtype: torch.dtype) -> None:
    """Write model.safetensors, which is the same in every layout."""
    state = {name: tensor.detach().to(dtype).contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(tokenizer: PairTokenization, folder: Path) -> None:
    """Write a ranker's tokenizer, its markers included."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **tokenizer.special_tokens).save_pretrained(folder)
