"""LoRA and QLoRA of rankers and fusers, by peft: adapters put into a model, merged or saved after training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.merged_adapters import merge_weights
from llm_blender_ray.actors.pairrm.checkpoints import is_pairranker
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairTokenization
from llm_blender_ray.actors.quantization import bitsandbytes_config
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.configs.extras import require
from llm_blender_ray.configs.lora import LoraTraining
from llm_blender_ray.configs.training import FuserTraining, RankerTraining
from llm_blender_ray.pipelines.train.arguments import uses_bf16


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


def adapt_ranker(network: PairRMNetwork, tokenizer: PairTokenization, config: RankerTraining) -> None:
    """Put an adapter into a ranker's backbone. Markers that are new to the backbone are trained with it.

    Raises:
        BlendError: See `add_lora`.
    """
    assert config.lora is not None
    new = () if is_pairranker(config.backbone) else tokenizer.marker_ids
    network.pretrained_model = add_lora(network.pretrained_model, config.backbone, config.lora, tokens=new)


def trained_quantization(config: RankerTraining | FuserTraining) -> BitsAndBytesConfig | None:
    """How the weights that an adapter is trained on are loaded.

    Raises:
        ModelLoadError: bitsandbytes is missing.
    """
    bits = config.lora.quantization if config.lora else None
    return bitsandbytes_config(bits, torch.bfloat16 if uses_bf16(config.optimization) else torch.float32)


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
