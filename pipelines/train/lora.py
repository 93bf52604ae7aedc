"""LoRA and QLoRA of rankers and fusers, by peft: adapters put into a model, merged or saved after training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.merged_adapters import merge_weights
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.configs.extras import require
from llm_blender_ray.configs.lora import LoraTraining


def add_lora(model: PreTrainedModel, name: str, settings: LoraTraining, *, tokens: Sequence[int] = ()) -> Any:
    """Freeze a model and put an adapter into it.

    Args:
        model: The model; peft replaces the layers that it adapts.
        name: Its folder or hub id, which a kept adapter names.
        settings: Rank and target modules.
        tokens: Ids of tokens that are new to the model, whose embeddings are trained too.

    Returns:
        The `PeftModel`.

    Raises:
        BlendError: The model has no such modules.
        ModuleNotFoundError: peft is missing.
    """
    require("peft")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    targets = settings.target_modules
    embeddings = model.get_input_embeddings()
    embedding = next(name for name, part in model.named_modules() if part is embeddings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices={embedding: list(tokens)} if tokens else None,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "FEATURE_EXTRACTION",
    )
    if settings.quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise BlendError(f"lora.target_modules: {one_line(error)}") from error
    path = Path(name).expanduser()
    adapted.peft_config["default"].base_model_name_or_path = str(path.resolve()) if path.is_dir() else name
    return adapted


def drop_frozen_weights(model: nn.Module) -> None:
    """Leave frozen weights out of a model's state, so that checkpoints do not repeat those of the model."""

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        trained = {name for name, one in module.named_parameters() if one.requires_grad}
        for name in [name for name in state if name.removeprefix(prefix) not in trained]:
            del state[name]

    model.register_state_dict_post_hook(drop)
    vars(model)["_keys_to_ignore_on_save"] = None  # what the Trainer reads when a checkpoint lacks weights


def merge_trained(
    model: Any, settings: LoraTraining, merge_saved: Callable[[Path], PreTrainedModel]
) -> PreTrainedModel:
    """The model with its trained adapter merged.

    Args:
        model: The `PeftModel`.
        settings: Of its training.
        merge_saved: Loads the model anew, and merges the adapter of a folder: quantized weights are too coarse to
            merge into.
    """
    if not settings.quantization:
        return merge_weights(model)
    with TemporaryDirectory() as folder:
        save_adapter(model, Path(folder))
        return merge_saved(Path(folder))


def save_adapter(model: Any, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and the config of the model they make.

    Args:
        model: The `PeftModel`.
        folder: Where to write them.
    """
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)
        model.config.save_pretrained(folder)
