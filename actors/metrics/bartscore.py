"""BARTScore (arXiv 2106.11520): mean log-likelihood of one text's tokens, given the other text.

Shape suffixes: N pairs, S tokens of the source, T of the target, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM

from llm_blender_ray.actors.batching import length_batches, padded, token_mask
from llm_blender_ray.actors.metrics.text_encoder import TextEncoder
from llm_blender_ray.configs.metrics import MetricModel

_IGNORED = -100  # a label of no token, by transformers' convention


class LikelihoodScorer:
    """One sequence-to-sequence model, loaded and ready."""

    def __init__(self, settings: MetricModel) -> None:
        """Load the model.

        Raises:
            ModelLoadError: It can't be used.
        """
        self._encoder = TextEncoder(settings, AutoModelForSeq2SeqLM)

    @torch.inference_mode()
    def scores(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """Mean log-likelihood of each target's tokens, special tokens included, given its source."""
        source_ids, target_ids = (self._encoder.encode(texts)["input_ids"] for texts in (sources, targets))
        pairs = list(zip(source_ids, target_ids, strict=True))
        found: dict[int, float] = {}
        for batch in length_batches([len(s) + len(t) for s, t in pairs], self._encoder.batch_tokens):
            means_N = self._means([pairs[i][0] for i in batch], [pairs[i][1] for i in batch])
            found |= dict(zip(batch, means_N.tolist(), strict=True))
        return [found[i] for i in range(len(pairs))]

    def _means(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
        device = self._encoder.device
        labels_NT = padded(targets, _IGNORED, device=device)
        logits_NTV = self._encoder.model(
            input_ids=padded(sources, self._encoder.pad, device=device),
            attention_mask=token_mask(sources, device=device),
            labels=labels_NT,
        ).logits
        losses_NT = functional.cross_entropy(
            logits_NTV.float().transpose(1, 2), labels_NT, reduction="none", ignore_index=_IGNORED
        )
        return -losses_NT.sum(dim=1) / (labels_NT != _IGNORED).sum(dim=1).clamp(min=1)
