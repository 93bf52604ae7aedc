"""Training of a PairRanker on rows with scored candidates, as in LLM-Blender (arXiv 2306.02561, section 3).

Pairs of a row's candidates, each on a random side; the loss is InstructGPT's, -log sigmoid of how much higher
the better one is scored. `configs.training.AuxiliaryLosses` describes the auxiliary losses.
Shape suffixes: B pairs, L tokens, H hidden, T tasks (metrics), V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm.checkpoints import create_pairrm, save_pairrm
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenizer
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.configs.training import AuxiliaryLosses, PairSampling, RankerTraining
from llm_blender_ray.pipelines.train.loop import (
    IGNORED,
    Example,
    is_main_process,
    mask,
    pad,
    print_results,
    run_trainer,
)
from llm_blender_ray.pipelines.train.rows import TrainingRow, read_training_rows


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """Two candidates of a row.

    Attributes:
        row: Index of the row.
        left: Index of the left candidate.
        right: Index of the right candidate.
        lead: By how much left is better, per metric.
    """

    row: int
    left: int
    right: int
    lead: tuple[float, ...]


def sample_pairs(
    texts: Sequence[str],
    scores: Sequence[tuple[float, ...]],
    settings: PairSampling,
    rng: random.Random,
    row: int = 0,
) -> list[TrainingPair]:
    """Sample pairs of different texts and different scores, on random sides.

    Args:
        texts: The candidates of a row. A text that several have counts once, with the first one's score.
        scores: Each candidate's score by each metric.
        settings: Which pairs, and how many.
        rng: Decides pairs and sides.
        row: Index that the pairs carry.

    Returns:
        The pairs; none when all texts or all scores are equal.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    best_first = sorted(first.values(), key=lambda i: sum(scores[i]), reverse=True)
    if settings.sampling == "top_bottom":
        count = min(settings.per_row, len(best_first) - 1)
        chosen = list(zip(best_first[:count], best_first[-count:], strict=True)) if count > 0 else []
        chosen = [pair for pair in chosen if scores[pair[0]] != scores[pair[1]]]
    else:
        differing = [pair for pair in combinations(best_first, 2) if scores[pair[0]] != scores[pair[1]]]
        chosen = rng.sample(differing, min(settings.per_row, len(differing)))
    sided = [pair if rng.random() < 0.5 else pair[::-1] for pair in chosen]
    return [
        TrainingPair(row, i, j, tuple(a - b for a, b in zip(scores[i], scores[j], strict=True))) for i, j in sided
    ]


class PairDataset(Dataset[Example]):
    """Data set of pairs, tokenized on access: the tokens of a large set do not fit in memory."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        metrics: Sequence[str],
        tokenizer: PairTokenizer,
        pairs: PairSampling,
        seed: int,
    ) -> None:
        """Sample the pairs of all rows.

        Args:
            rows: The rows to learn from.
            metrics: Names of the scores.
            tokenizer: The ranker's tokenizer.
            pairs: How pairs are sampled.
            seed: Decides pairs and sides.

        Raises:
            BlendError: A score is missing, or no two candidates of any row differ.
        """
        rng = random.Random(seed)
        self._rows = rows
        self._tokenizer = tokenizer
        self._pairs = [
            pair
            for i, row in enumerate(rows)
            for pair in sample_pairs(row.texts, row.scores(metrics), pairs, rng, i)
        ]
        if not self._pairs:
            raise BlendError("no row has two candidates with different texts and different scores to learn from")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self._pairs[index]
        row = self._rows[pair.row]
        source = self._tokenizer.encode_source(*row.prompt.turns())
        left, right = (self._tokenizer.encode_candidate(row.texts[i], len(source)) for i in (pair.left, pair.right))
        reference = self._tokenizer.encode_candidate(row.reference or "", len(source))
        return {
            "input_ids": self._tokenizer.join(source, left, right),
            "reference_ids": [IGNORED] * len(source) + _aligned(left, reference) + _aligned(right, reference),
            "labels": pair.lead,
        }


def _aligned(candidate: list[int], reference: list[int]) -> list[int]:
    """Reference ids at each text token of the candidate; IGNORED at markers, and everywhere if lengths differ."""
    if len(candidate) != len(reference):
        return [IGNORED] * len(candidate)
    return [IGNORED, IGNORED, *reference[2:-1], IGNORED]


class RankerLoss(nn.Module):
    """A PairRanker with its losses in the Trainer's interface: tensors in, `loss` and the pairs' logits out."""

    def __init__(self, network: PairRMNetwork, auxiliary: AuxiliaryLosses) -> None:
        super().__init__()
        config = network.pretrained_model.config
        self.network = network
        self.auxiliary = auxiliary
        self.reference_head = (
            nn.Linear(config.hidden_size, config.vocab_size) if auxiliary.reference_token else None
        )
        self.right_head = nn.Linear(config.hidden_size, 1) if auxiliary.token_is_right else None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Enable gradient checkpointing; called by the Trainer."""
        self.network.pretrained_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, reference_ids: Tensor
    ) -> dict[str, Tensor]:
        """Compute loss and logits.

        Args:
            input_ids: B x L.
            attention_mask: B x L.
            labels: B x T, by how much left is better.
            reference_ids: B x L, the reference's token at each position, or IGNORED.

        Returns:
            `loss` (scalar) and `logits` (B).
        """
        hidden_BLH = self.network.encode(input_ids, attention_mask)
        left_BT, right_BT = self.network.score(hidden_BLH, input_ids)
        score_gap_BT = left_BT - right_BT
        loss = -functional.logsigmoid(score_gap_BT * labels.sign()).mean()
        aligned = reference_ids != IGNORED
        if aligned.any():
            hidden, expected = hidden_BLH[aligned], reference_ids[aligned]
            if self.reference_head:
                cross_entropy = functional.cross_entropy(self.reference_head(hidden), expected)
                loss = loss + self.auxiliary.reference_token * cross_entropy
            if self.right_head:
                is_right = (input_ids[aligned] == expected).to(hidden.dtype)
                logits = self.right_head(hidden).squeeze(-1)
                cross_entropy = functional.binary_cross_entropy_with_logits(logits, is_right)
                loss = loss + self.auxiliary.token_is_right * cross_entropy
        return {"loss": loss, "logits": score_gap_BT.mean(dim=-1)}


def pair_is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the ranker prefers the candidate with the higher mean score, else 0; B."""
    return ((logits > 0) == (labels.mean(dim=-1) > 0)).int()


@quiet()
def run_ranker_training(config: RankerTraining) -> dict[str, float]:
    """Train a ranker and save it in `config.output`.

    Returns:
        The last held-out loss and pairwise accuracy; empty without held-out rows.

    Raises:
        BlendError: A row cannot be learnt from.
        ModelLoadError: The backbone cannot be used.
    """
    rows = read_training_rows(config.train)
    heldout_rows = read_training_rows(config.heldout, config.heldout_limit) if config.heldout else None
    torch.manual_seed(config.optimization.seed)
    network, tokenizer = create_pairrm(
        config.backbone,
        PairBudget(config.source_max_length, config.candidate_max_length),
        n_tasks=len(config.metrics),
        dropout=config.dropout,
    )
    seed = config.optimization.seed
    dataset = PairDataset(rows, config.metrics, tokenizer, config.pairs, seed)
    every_kind = PairSampling(sampling="all_pair", per_row=config.pairs.per_row)  # easy and hard pairs alike
    heldout = PairDataset(heldout_rows, config.metrics, tokenizer, every_kind, seed) if heldout_rows else None

    def collate(batch: Sequence[Example]) -> dict[str, Tensor]:
        ids = [example["input_ids"] for example in batch]
        return {
            "input_ids": pad(ids, tokenizer.pad_id),
            "attention_mask": mask(ids),
            "reference_ids": pad([example["reference_ids"] for example in batch], IGNORED),
            "labels": torch.tensor([example["labels"] for example in batch]),
        }

    output = Path(config.output)
    measured = run_trainer(
        RankerLoss(network, config.auxiliary),
        dataset,
        heldout,
        collate,
        config.optimization,
        output,
        title="ranker",
        run=config,
        right_or_not=pair_is_right,
    )
    if is_main_process():
        save_pairrm(network, tokenizer, output, dtype=getattr(torch, config.dtype))
        print_results("ranker", output, measured)
    return measured
