"""LoRA adapters beside the weights of one model: found, checked, and applied by peft, each to its own rows."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llm_blender_ray.actors.adapter_files import adapter_weights, check_adapter
from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.model_files import read_pickle
from llm_blender_ray.actors.weights import locate, quiet
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.weight_formats import WeightFormats

BASE = "__base__"  # peft's name for a row without an adapter


def locate_adapter(adapter: Adapter, formats: WeightFormats, base: Path) -> Path:
    """Find the folder of an adapter, downloaded on first use, and check all of it. Code in a pickle never runs.

    Args:
        adapter: The adapter.
        formats: What the loader reads.
        base: Where its model is; only that of a folder is compared with it.

    Raises:
        ModelLoadError: There is none, or it can't be applied to that model.
    """
    folder = locate(adapter.path, adapter.revision, pickled="adapter_model.bin")
    check_adapter(folder, formats, base if base.is_dir() else None)
    if (file := adapter_weights(folder)).suffix == ".bin":
        read_pickle(file, device="meta")
    return folder


def with_adapters(model: PreTrainedModel, folders: Sequence[Path]) -> Any:
    """Put adapters beside a model's weights, at the precision of those.

    Args:
        model: The model; peft replaces the layers that adapters have weights for.
        folders: Folders of adapters that were checked.

    Returns:
        The model, or a `PeftModel` of it. Its `generate` needs `adapter_names` (`rows_adapters`).

    Raises:
        ModelLoadError: The weights of one are not those that its settings describe, or peft is missing.
    """
    if folders and not is_installed("peft"):
        raise ModelLoadError("adapters under engine: transformers need the package peft; pip install peft")
    adapted: Any = model
    for number, folder in enumerate(folders):
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of peft's is checked
            adapted = _with_adapter(adapted, folder, _name(number))
    return adapted


def rows_adapters(model: Any, adapters: Sequence[int | None]) -> dict[str, Any]:
    """Make the argument of `generate` that gives each row of a batch its adapter.

    Args:
        model: A result of `with_adapters`.
        adapters: Number of each row's adapter; None: the model alone.

    Returns:
        No argument for a model without adapters.
    """
    if not hasattr(model, "peft_config"):
        return {}
    return {"adapter_names": [BASE if number is None else _name(number) for number in adapters]}


def _name(number: int) -> str:
    """Name of an adapter in peft's model: in no other's or a layer's, since peft searches tensors' names for it."""
    return f"adapter_{number:04}"


def _with_adapter(model: Any, folder: Path, name: str) -> Any:
    """Peft's model with one adapter more."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    try:
        found = load_peft_weights(str(folder), device="cpu").keys()
        options = {"adapter_name": name, "autocast_adapter_dtype": False, "torch_device": "cpu"}
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), **options)
        else:
            model = PeftModel.from_pretrained(model, str(folder), **options)
        expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).keys()
    except Exception as error:  # of a dozen types
        raise ModelLoadError(f"{folder}: can't apply the adapter: {one_line(error)}") from error
    if wrong := sorted(found ^ expected):
        raise ModelLoadError(
            f"{folder}: its weights are not those of its adapter_config.json in this model: {len(wrong)} tensors "
            f"are missing or too many ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})"
        )
    return model.eval()
