"""PairRanker as a scorer: a matchup is one sequence of tokens, and one forward gives its logit.

Waiting matchups are sorted by length and scored in batches of a token budget, so that little is padded. A matchup's
score depends on it alone.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch

from llm_blender_ray.actors.batching import length_batches
from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.actors.pairrm.inference import PairRMForward
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.actors.weights import resolve_device, weights_digest
from llm_blender_ray.configs.schema import PairRanker

# Tokens of a forward. On CPU the fastest of 512 to 16,384, as measured; a GPU, not measured, is idle with less.
CPU_BATCH_TOKENS = {torch.float32: 2048, torch.bfloat16: 4096, torch.float16: 2048}
CUDA_BATCH_TOKENS = 32768
TEXTS_KEPT = 8192  # tokenized texts kept for the next round of the same rows


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Cost of scoring: tokens of the pairs, the same with padding, and FLOPs of their matrix products."""

    tokens: int
    positions: int
    flops: int | None


class PairwiseScorer:
    """One PairRanker, loaded and ready.

    On CPU each of torch's threads takes a batch of its own: two threads on one batch wait for each other at every
    layer. On a GPU batches follow one another.
    """

    def __init__(self, settings: PairRanker) -> None:
        """Load the model.

        Raises:
            ModelLoadError: The model can't be used.
        """
        network, self.tokenizer = load_pairrm(
            settings.model,
            revision=settings.revision,
            source_max_length=settings.source_max_length,
            candidate_max_length=settings.candidate_max_length,
        )
        self.device = resolve_device(settings.device)
        # gpu_dtype is bfloat16 where float16 overflows
        self.dtype = resolve_dtype(settings.dtype, self.device, network.gpu_dtype, without_bfloat16=torch.float32)
        tokenizer = (self.tokenizer.backend.to_str(), str(self.tokenizer.budget))
        decides = (*tokenizer, str(self.dtype), settings.results_version)
        identity = weights_digest(network, *decides) if settings.cache else None
        self.traits = Traits(pointwise=False, identity=identity)
        self._forward = PairRMForward(network, device=self.device, dtype=self.dtype)
        on_cpu = self.device.type == "cpu"
        measured = CPU_BATCH_TOKENS[self.dtype] if on_cpu else CUDA_BATCH_TOKENS
        self._batch_tokens = settings.batch_tokens or measured
        self._workers = torch.get_num_threads() if on_cpu else 1
        self._batches = ThreadPoolExecutor(
            self._workers, "forward", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._source = lru_cache(TEXTS_KEPT)(self.tokenizer.encode_source)
        self._candidate = lru_cache(TEXTS_KEPT)(self.tokenizer.encode_candidate)
        self._calls = ThreadPoolExecutor(1, "pairranker")  # one call after the other

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        return await asyncio.get_running_loop().run_in_executor(self._calls, self.logits, matchups)

    async def check_health(self) -> None:
        """A model in this process can score as long as the process lives."""

    async def close(self) -> None:
        """See `actors.scorers.Scorer`."""
        await asyncio.to_thread(self._calls.shutdown)
        self._batches.shutdown()

    def tokens(self, matchup: Matchup) -> list[int]:
        """The matchup's one sequence."""
        source = self._source(*matchup.prompt.turns())
        left, right = (self._candidate(text, len(source)) for text in (matchup.left, matchup.right))
        return self.tokenizer.join(source, left, right)

    def work(self, matchups: Sequence[Matchup]) -> ForwardCost:
        """Cost of scoring these in one call."""
        lengths = [len(self.tokens(matchup)) for matchup in matchups]
        positions = sum(self._forward.positions([lengths[i] for i in batch]) for batch in self._cut(lengths))
        return ForwardCost(sum(lengths), positions, self._forward.flops(lengths))

    def logits(self, matchups: Sequence[Matchup]) -> list[Score]:
        """The same as `score`, in the calling thread."""
        pairs = [self.tokens(matchup) for matchup in matchups]
        batches = self._cut([len(pair) for pair in pairs])
        logits: list[Score] = [0.0] * len(pairs)
        forwards = self._batches.map(self._forward.logits, [[pairs[i] for i in batch] for batch in batches])
        for batch, some in zip(batches, forwards, strict=True):
            for i, logit in zip(batch, some, strict=True):
                logits[i] = logit
        return logits

    def _cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of like length, as many for each thread."""
        total = sum(lengths)
        batches = self._workers * math.ceil(total / self._batch_tokens / self._workers)
        return length_batches(lengths, total // batches + max(lengths))  # where a batch is cut, one is left over
