"""Ranks candidates with one PairRanker: plays the rows' tournaments together and scores their pairs in batches.

All pairs of all rows in hand are scored at once, sorted by length, in batches of a token budget, so that little is
padded whatever the rows are. What a row is given depends on the row alone.
"""

from collections.abc import Sequence

import torch

from actors.pairrm.checkpoints import load_pairrm
from actors.pairrm.network import PairRMNetwork
from actors.pairrm.tokenization import PairTokenizer
from actors.records import Candidate, Comparison, Prompt, Ranking
from actors.tournament import Full, Pair
from actors.weights import resolve_device, resolve_dtype
from configs.schema import Ranker as RankerSettings

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # a CPU's caches hold no more; a GPU is idle with less


class PairScorer:
    """Logits of tokenized pairs, whatever their lengths."""

    def __init__(self, network: PairRMNetwork, pad_id: int, *, batch_tokens: int) -> None:
        self._network = network
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens
        self._device = next(network.parameters()).device

    def score(self, pairs: Sequence[list[int]]) -> list[float]:
        """One logit per pair, in the order given."""
        logits = [0.0] * len(pairs)
        for batch in length_batches([len(pair) for pair in pairs], self._batch_tokens):
            for i, logit in zip(batch, self._forward([pairs[i] for i in batch]), strict=True):
                logits[i] = logit
        return logits

    @torch.inference_mode()
    def _forward(self, pairs: list[list[int]]) -> list[float]:
        longest = max(map(len, pairs))
        ids_BL = torch.tensor([pair + [self._pad_id] * (longest - len(pair)) for pair in pairs])
        mask_BL = torch.tensor([[1] * len(pair) + [0] * (longest - len(pair)) for pair in pairs])
        return self._network.logits(ids_BL.to(self._device), mask_BL.to(self._device)).float().tolist()


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indexes of `lengths` in batches of like length, each at most `batch_tokens` padding included (or one)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):  # a batch's first is its longest
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class Ranker:
    """One PairRanker, loaded and ready."""

    def __init__(self, settings: RankerSettings) -> None:
        """Raises ModelLoadError when the model can't be used."""
        self.settings = settings
        network, self.tokenizer = load_pairrm(
            settings.model,
            revision=settings.revision,
            source_max_length=settings.source_max_length,
            candidate_max_length=settings.candidate_max_length,
        )
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        network.to(device=device, dtype=torch.float16 if dtype == "auto" else dtype)  # on GPU as the original
        batch_tokens = settings.batch_tokens or BATCH_TOKENS[device.type]
        self._scorer = PairScorer(network, self.tokenizer.pad_id, batch_tokens=batch_tokens)

    def rank(self, rows: Sequence[tuple[Prompt, Sequence[Candidate]]]) -> list[Ranking]:
        """The ranking of every row's candidates, in the order given; rows may differ in how many they have."""
        games = [_Game(self.tokenizer, prompt, candidates) for prompt, candidates in rows]
        while asked := [(game, pair) for game in games for pair in game.tournament.ask()]:
            logits = self._scorer.score([game.tokens(pair) for game, pair in asked])
            for (game, (left, right)), logit in zip(asked, logits, strict=True):
                game.tournament.tell([Comparison(left, right, logit)])
        return [game.tournament.ranking() for game in games]


class _Game:
    """One row's tournament and its tokens; every text is tokenized once."""

    def __init__(self, tokenizer: PairTokenizer, prompt: Prompt, candidates: Sequence[Candidate]) -> None:
        self._tokenizer = tokenizer
        self._source = tokenizer.encode_source("".join(prompt.texts()))
        length = len(self._source)
        self._ids = [None if c.text is None else tokenizer.encode_candidate(c.text, length) for c in candidates]
        self.tournament = Full([None if ids is None else tuple(ids) for ids in self._ids])

    def tokens(self, pair: Pair) -> list[int]:
        left, right = (self._ids[i] for i in pair)
        assert left is not None and right is not None  # tournaments never ask for absent candidates
        return self._tokenizer.join(self._source, left, right)
