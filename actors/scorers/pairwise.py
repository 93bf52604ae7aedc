"""PairRanker as a scorer: a matchup is one sequence of tokens, and one forward gives its logit.

Matchups in hand are sorted by length and scored in batches of a token budget, so that little is padded whatever the
rows are. What a matchup is given depends on it alone.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch

from actors.pairrm.checkpoints import load_pairrm
from actors.pairrm.inference import PairRMForward
from actors.records import Matchup
from actors.scorers import Score, Traits
from actors.scorers.batches import length_batches
from actors.weights import resolve_device, resolve_dtype, weights_digest
from configs.schema import PairRanker

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # a CPU's caches hold no more; a GPU is idle with less
TEXTS_KEPT = 8192  # tokenized texts kept for the next round of the same rows


@dataclass(frozen=True, slots=True)
class Work:
    """What scoring takes: tokens of the pairs, the same with padding, and FLOPs of their matrix products."""

    tokens: int
    positions: int
    flops: int | None


class PairwiseScorer:
    """One PairRanker, loaded and ready. Forwards run one after the other, in a thread of their own."""

    def __init__(self, settings: PairRanker) -> None:
        """Raises ModelLoadError when the model can't be used."""
        network, self.tokenizer = load_pairrm(
            settings.model,
            revision=settings.revision,
            source_max_length=settings.source_max_length,
            candidate_max_length=settings.candidate_max_length,
        )
        self.device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, self.device)
        self.dtype = torch.float16 if dtype == "auto" else dtype  # on GPU as the original
        decides = (self.tokenizer.backend.to_str(), str(self.tokenizer.budget), str(self.dtype))
        identity = weights_digest(network, *decides) if settings.cache else None
        self.traits = Traits(pointwise=False, identity=identity)
        self._forward = PairRMForward(network, device=self.device, dtype=self.dtype)
        self._batch_tokens = settings.batch_tokens or BATCH_TOKENS[self.device.type]
        self._source = lru_cache(TEXTS_KEPT)(self.tokenizer.encode_source)
        self._candidate = lru_cache(TEXTS_KEPT)(self.tokenizer.encode_candidate)
        self._thread = ThreadPoolExecutor(1, "pairranker")  # torch's own threads belong to one thread of Python

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.logits, matchups)

    async def check_health(self) -> None:
        """A model in this process can score as long as the process lives."""

    def tokens(self, matchup: Matchup) -> list[int]:
        """The matchup's one sequence."""
        source = self._source("".join(matchup.prompt.texts()))
        left, right = (self._candidate(text, len(source)) for text in (matchup.left, matchup.right))
        return self.tokenizer.join(source, left, right)

    def work(self, matchups: Sequence[Matchup]) -> Work:
        """What scoring these takes, in one call."""
        lengths = [len(self.tokens(matchup)) for matchup in matchups]
        batches = length_batches(lengths, self._batch_tokens)
        positions = sum(self._forward.positions([lengths[i] for i in batch]) for batch in batches)
        return Work(sum(lengths), positions, self._forward.flops(lengths))

    def logits(self, matchups: Sequence[Matchup]) -> list[Score]:
        """The same as `score`, in the calling thread."""
        pairs = [self.tokens(matchup) for matchup in matchups]
        logits: list[Score] = [0.0] * len(pairs)
        for batch in length_batches([len(pair) for pair in pairs], self._batch_tokens):
            for i, logit in zip(batch, self._forward.logits([pairs[i] for i in batch]), strict=True):
                logits[i] = logit
        return logits
