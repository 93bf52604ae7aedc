"""Learned metrics as BLEURT (arXiv 2004.04696): a sequence classifier with one label reads reference and text."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification

from llm_blender_ray.actors.batching import length_batches, padded, token_mask
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.metrics.text_encoder import TextEncoder
from llm_blender_ray.configs.metrics import MetricModel


class Regressor:
    """One classifier with one label, loaded and ready."""

    def __init__(self, settings: MetricModel) -> None:
        """Load the model.

        Raises:
            ModelLoadError: It can't be used.
        """
        self._encoder = TextEncoder(settings, AutoModelForSequenceClassification)
        config = self._encoder.config
        if config.num_labels != 1:
            raise ModelLoadError(f"{settings.model}: classifies into {config.num_labels} labels; a metric has one")
        types = getattr(config, "type_vocab_size", None) or 0
        self._typed = "token_type_ids" in self._encoder.tokenizer.model_input_names and types > 1

    @torch.inference_mode()
    def scores(self, references: Sequence[str], texts: Sequence[str]) -> list[float]:
        """The model's output for each pair."""
        encoded = self._encoder.encode(references, texts)
        ids, device = encoded["input_ids"], self._encoder.device
        found: dict[int, float] = {}
        for batch in length_batches([len(one) for one in ids], self._encoder.batch_tokens):
            rows = [ids[i] for i in batch]
            inputs = {
                "input_ids": padded(rows, self._encoder.pad, device=device),
                "attention_mask": token_mask(rows, device=device),
            }
            if self._typed:
                inputs["token_type_ids"] = padded([encoded["token_type_ids"][i] for i in batch], 0, device=device)
            logits_N = self._encoder.model(**inputs).logits.float().reshape(len(rows))
            found |= dict(zip(batch, logits_N.tolist(), strict=True))
        return [found[i] for i in range(len(ids))]
