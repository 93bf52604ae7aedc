"""PairRanker's forward for ranking: sequences of any lengths in, logits out, computing only what is read."""

from collections.abc import Sequence

import torch
from transformers import DebertaV2Config

from llm_blender_ray.actors.pairrm.deberta import marker_encoder, sequence_flops
from llm_blender_ray.actors.pairrm.network import PairRMNetwork


class PairRMForward:
    """The network's logits, as `PairRMNetwork.logits` gives them, from its weights in another dtype or place."""

    def __init__(self, network: PairRMNetwork, *, device: torch.device, dtype: torch.dtype) -> None:
        """The network gives its weights away: it is of no use after that."""
        self._encoder = marker_encoder(network.pretrained_model, device=device, dtype=dtype)
        self._head = network.head_layer.to(device=device, dtype=dtype)
        config = network.pretrained_model.config
        self._config = config if isinstance(config, DebertaV2Config) else None
        self._pooling = network.pooling

    @torch.inference_mode()
    def logits(self, pairs: Sequence[list[int]]) -> list[float]:
        """Logits of left over right, one per pair of token ids."""
        places = [self._pooling.places(pair) for pair in pairs]
        hidden_BMH = self._encoder.at_markers(pairs, places)
        return self._pooling.lead(self._head, hidden_BMH).mean(dim=-1).float().tolist()

    def positions(self, lengths: Sequence[int]) -> int:
        """Number of tokens computed for pairs of these lengths in one batch, padding included."""
        return self._encoder.positions(lengths)

    def flops(self, lengths: Sequence[int]) -> int | None:
        """Of the matrix products that pairs of these lengths need, padding not counted; None where unknown."""
        if self._config is None:
            return None
        return sum(sequence_flops(self._config, length) for length in lengths)
