"""BERTScore (arXiv 1904.09675): greedy matching of the contextual embeddings of two texts' tokens.

Equal to the package `bert-score` 0.3.13 without idf: special tokens are matched, but do not count.
Shape suffixes: N texts, L tokens, R and T tokens of reference and text, H hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from llm_blender_ray.actors.batching import length_batches, padded, token_mask
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.metrics.text_encoder import TextEncoder
from llm_blender_ray.configs.metrics import BERTScoreModel

# The layers that `bert-score` 0.3.13 names, those that correlate best with people's scores of WMT16.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "distilroberta-base": 5,
    "distilbert-base-uncased": 5,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
    "bart-base": 6,
    "bart-large": 10,
    "bart-large-mnli": 11,
    "deberta-base-mnli": 9,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
    "mpnet-base": 8,
}
_PAIRS_AT_ONCE = 128  # whose embeddings are held: half a gigabyte for texts of 512 tokens and 1,024 dimensions


class BERTScorer:
    """One encoder, loaded and ready."""

    def __init__(self, settings: BERTScoreModel) -> None:
        """Load the encoder and drop the layers above the chosen one.

        Raises:
            ModelLoadError: It can't be used.
        """
        self._encoder = TextEncoder(settings, AutoModel, unused=("pooler.",))
        self._measure = settings.measure
        model = self._encoder.model
        self._model = model.get_encoder() if self._encoder.config.is_encoder_decoder else model
        name = settings.model.rstrip("/").rpartition("/")[2]
        layers: int = self._encoder.config.get_text_config().num_hidden_layers
        self._layer = LAYERS.get(name) if settings.layer is None else settings.layer
        if self._layer is None:
            raise ModelLoadError(
                f"{settings.model}: set `layer`, 1 to {layers}: there is no usual one for this model"
            )
        if not 1 <= self._layer <= layers:
            raise ModelLoadError(f"{settings.model}: layer {self._layer}: it has {layers} layers")
        stack = getattr(getattr(self._model, "encoder", None), "layer", None)  # of BERT and its relatives
        if isinstance(stack, torch.nn.ModuleList):
            del stack[self._layer :]
        tokenizer = self._encoder.tokenizer
        self._uncounted = {tokenizer.cls_token_id, tokenizer.sep_token_id}

    @torch.inference_mode()
    def scores(self, references: Sequence[str], texts: Sequence[str]) -> list[float]:
        """BERTScore of each text by its reference; 0 if one of them is empty."""
        found: list[float] = []
        for start in range(0, len(texts), _PAIRS_AT_ONCE):
            end = start + _PAIRS_AT_ONCE
            found += self._scores(references[start:end], texts[start:end])
        return found

    def _scores(self, references: Sequence[str], texts: Sequence[str]) -> list[float]:
        distinct = list(dict.fromkeys([*references, *texts]))
        ids = self._encoder.encode([self._encoder.as_sentence(one) for one in distinct])["input_ids"]
        at = {text: i for i, text in enumerate(distinct)}
        embeddings = self._embeddings(ids)
        device = self._encoder.device
        counted = [torch.tensor([token not in self._uncounted for token in one], device=device) for one in ids]
        pairs = [(at[reference], at[text]) for reference, text in zip(references, texts, strict=True)]
        return [self._match(embeddings[r], counted[r], embeddings[t], counted[t]) for r, t in pairs]

    def _embeddings(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Unit vectors of the tokens of N texts, L x H each."""
        found: dict[int, Tensor] = {}
        for batch in length_batches([len(one) for one in ids], self._encoder.batch_tokens):
            rows = [ids[i] for i in batch]
            hidden_NLH = self._model(
                input_ids=padded(rows, self._encoder.pad, device=self._encoder.device),
                attention_mask=token_mask(rows, device=self._encoder.device),
                output_hidden_states=True,
            ).hidden_states[self._layer]
            for i, row, hidden_LH in zip(batch, rows, hidden_NLH, strict=True):
                found[i] = functional.normalize(hidden_LH[: len(row)].float(), dim=-1)
        return [found[i] for i in range(len(ids))]

    def _match(self, reference_RH: Tensor, reference_R: Tensor, text_TH: Tensor, text_T: Tensor) -> float:
        if not (reference_R.any() and text_T.any()):
            return 0.0
        similarity_TR = text_TH @ reference_RH.T
        precision = similarity_TR.amax(dim=1)[text_T].mean().item()
        recall = similarity_TR.amax(dim=0)[reference_R].mean().item()
        if self._measure != "f1":
            return precision if self._measure == "precision" else recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
