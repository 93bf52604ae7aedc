"""Pooling of a PairRanker: which hidden states of a pair its head reads, and how they become a lead.

A lead is by how much the left candidate is better, one number for each metric that the ranker was trained on.
Shape suffixes: B pairs, L tokens, M positions read, H hidden, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


class Pooling(Protocol):
    """What a PairRanker reads of its backbone. It holds no weights: those are in the head that it makes.

    Attributes:
        scores_sides: Whether the head gives each candidate a score, and not the pair its lead alone.
    """

    scores_sides: ClassVar[bool]

    def make_head(self, hidden_size: int, n_tasks: int, dropout: float) -> nn.Sequential:
        """A new head."""
        ...

    def places(self, ids: Sequence[int]) -> list[int]:
        """M positions that the head reads of a pair's token ids."""
        ...

    def places_of_batch(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The same for pairs that are padded on the right, B x M."""
        ...

    def sides(self, head: nn.Module, hidden_BMH: Tensor) -> tuple[Tensor, Tensor]:
        """What the head gives the left and the right candidate, B x T each, from the states at those positions.

        Their difference is the lead; without `scores_sides` the right one's is 0.
        """
        ...

    def lead(self, head: nn.Module, hidden_BMH: Tensor) -> Tensor:
        """Leads of left over right, B x T."""
        ...


@dataclass(frozen=True, slots=True)
class MarkerPooling:
    """Reads an encoder at the first token of the source and of each candidate (LLM-Blender, section 3).

    The head scores each candidate next to the source; the lead is the difference.

    Attributes:
        source: Token id of the source's marker.
        left: Token id of the left candidate's marker.
        right: Token id of the right candidate's marker.
    """

    scores_sides: ClassVar[bool] = True

    source: int
    left: int
    right: int

    def make_head(self, hidden_size: int, n_tasks: int, dropout: float) -> nn.Sequential:
        """See Pooling. In the original's layout, so that published weights load as they are."""
        return nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_size, hidden_size),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, n_tasks),
        )

    def places(self, ids: Sequence[int]) -> list[int]:
        """See Pooling. A marker counts where it first occurs."""
        return [ids.index(marker) for marker in (self.source, self.left, self.right)]

    def places_of_batch(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """See Pooling."""
        markers = (self.source, self.left, self.right)
        return torch.stack([(input_ids_BL == marker).int().argmax(dim=1) for marker in markers], dim=1)

    def sides(self, head: nn.Module, hidden_BMH: Tensor) -> tuple[Tensor, Tensor]:
        """See Pooling."""
        source_BH, left_BH, right_BH = hidden_BMH.unbind(dim=1)
        left_BT, right_BT = (head(torch.cat([source_BH, side_BH], dim=-1)) for side_BH in (left_BH, right_BH))
        return left_BT, right_BT

    def lead(self, head: nn.Module, hidden_BMH: Tensor) -> Tensor:
        """See Pooling."""
        left_BT, right_BT = self.sides(head, hidden_BMH)
        return left_BT - right_BT


class LastTokenPooling:
    """Reads a causal LM at the last token of a pair, the only one that attends to all of it."""

    scores_sides: ClassVar[bool] = False

    def make_head(self, hidden_size: int, n_tasks: int, dropout: float) -> nn.Sequential:
        """See Pooling. It starts near 0: at chance, and not with what the LM has for a side."""
        output = nn.Linear(hidden_size, n_tasks, bias=False)
        nn.init.normal_(output.weight, std=0.01 * hidden_size**-0.5)
        return nn.Sequential(nn.Dropout(dropout), output)

    def places(self, ids: Sequence[int]) -> list[int]:
        """See Pooling."""
        return [len(ids) - 1]

    def places_of_batch(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """See Pooling."""
        return attention_mask_BL.sum(dim=1, keepdim=True) - 1

    def sides(self, head: nn.Module, hidden_BMH: Tensor) -> tuple[Tensor, Tensor]:
        """See Pooling."""
        lead_BT = self.lead(head, hidden_BMH)
        return lead_BT, torch.zeros_like(lead_BT)

    def lead(self, head: nn.Module, hidden_BMH: Tensor) -> Tensor:
        """See Pooling."""
        lead_BT: Tensor = head(hidden_BMH.squeeze(1))
        return lead_BT
