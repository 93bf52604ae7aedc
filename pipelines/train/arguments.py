"""The project's training settings as transformers' Trainer takes them."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.extras import is_installed
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.train.sharding import sharding_arguments

OPTIMIZERS = {"adafactor": "adafactor", "adamw_8bit": "adamw_bnb_8bit"}  # AdamW is the Trainer's own choice


def training_arguments(
    settings: Optimization, folder: Path, *, evaluates: bool, label_smoothing: float = 0.0
) -> TrainingArguments:
    """Arguments of the Trainer.

    Args:
        settings: Optimizer, schedule, batch sizes, checkpoints.
        folder: Of the checkpoints.
        evaluates: Whether there are held-out examples.
        label_smoothing: Share of each label's target that all tokens share.

    Raises:
        BlendError: The settings need a package that is missing, or more processes.
    """
    if settings.optimizer == "adamw_8bit" and not is_installed("bitsandbytes"):
        raise BlendError("optimization.optimizer: adamw_8bit needs bitsandbytes: pip install bitsandbytes")
    optimizer = {"optim": OPTIMIZERS[settings.optimizer]} if settings.optimizer in OPTIMIZERS else {}
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=uses_bf16(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        logging_steps=settings.log_every,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.evaluate_every,
        save_steps=settings.save_every,
        save_total_limit=settings.keep_checkpoints,
        load_best_model_at_end=settings.result == "best",
        metric_for_best_model=f"eval_{settings.select_by}",
        greater_is_better=settings.select_by != "loss",
        restore_callback_states_from_checkpoint=settings.early_stopping is not None,
        label_smoothing_factor=label_smoothing,
        logging_nan_inf_filter=False,  # `failures.LossWatch` ends such a training
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        **optimizer,
        **sharding_arguments(settings),
    )


def uses_bf16(settings: Optimization) -> bool:
    """Whether a training multiplies in bfloat16."""
    if settings.bf16 == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.bf16
