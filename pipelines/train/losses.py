"""The losses of a PairRanker.

Of scored pairs one of `pair_losses`; of judged pairs the cross-entropy of the share of judgements for each side.
The auxiliary ones: `configs.training.AuxiliaryLosses`.
Shape suffixes: B pairs, L tokens, H hidden, T tasks (metrics), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.configs.training import AuxiliaryLosses
from llm_blender_ray.pipelines.train.examples import IGNORED
from llm_blender_ray.pipelines.train.pair_losses import InstructGPT, PairLoss


class RankerLoss(nn.Module):
    """A PairRanker with its losses in the Trainer's interface: tensors in, `loss` and the pairs' logits out."""

    def __init__(
        self, network: PairRMNetwork, auxiliary: AuxiliaryLosses, pairwise: PairLoss | None = None
    ) -> None:
        """Put losses on a ranker.

        Args:
            network: The ranker.
            auxiliary: Weights of the token-level losses.
            pairwise: Loss of scored pairs; None: InstructGPT's.
        """
        super().__init__()
        config = network.pretrained_model.config
        self.network = network
        self.auxiliary = auxiliary
        self.pairwise = pairwise or InstructGPT()
        self.reference_head = (
            nn.Linear(config.hidden_size, config.vocab_size) if auxiliary.reference_token else None
        )
        self.right_head = nn.Linear(config.hidden_size, 1) if auxiliary.token_is_right else None

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable gradient checkpointing; called by the Trainer with options of the backbone's method."""
        self.network.pretrained_model.gradient_checkpointing_enable(**options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        reference_ids: Tensor | None = None,
        weights: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute loss and logits.

        Args:
            input_ids: B x L.
            attention_mask: B x L.
            labels: B x T, by how much left is better; with weights from -1 to 1.
            reference_ids: B x L, the reference's token at each position, or IGNORED; None: nowhere.
            weights: B, weights of judged pairs; None: of scored pairs.
            scores: B x 2 x T, scores of left and right, for losses that read more than their difference.

        Returns:
            `loss` (scalar) and `logits` (B).
        """
        hidden_BLH = self.network.encode(input_ids, attention_mask)
        sides = self.network.sides(hidden_BLH, input_ids, attention_mask)
        left_BT, right_BT = (side_BT.float() for side_BT in sides)  # autocast gives bfloat16
        lead_BT = left_BT - right_BT
        if weights is None:
            loss = self.pairwise.terms(left_BT, right_BT, labels, scores).mean()
        else:
            of_each_BT = functional.binary_cross_entropy_with_logits(lead_BT, (1 + labels) / 2, reduction="none")
            loss = (of_each_BT.mean(dim=-1) * weights).mean()
        if reference_ids is not None and (aligned := reference_ids != IGNORED).any():
            hidden, expected = hidden_BLH[aligned], reference_ids[aligned]
            if self.reference_head:
                cross_entropy = functional.cross_entropy(self.reference_head(hidden), expected)
                loss = loss + self.auxiliary.reference_token * cross_entropy
            if self.right_head:
                is_right = (input_ids[aligned] == expected).to(hidden.dtype)
                logits = self.right_head(hidden).squeeze(-1)
                cross_entropy = functional.binary_cross_entropy_with_logits(logits, is_right)
                loss = loss + self.auxiliary.token_is_right * cross_entropy
        return {"loss": loss, "logits": lead_BT.mean(dim=-1)}


def pair_is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the ranker prefers the candidate with the higher mean score, else 0; -1 for equal ones; B."""
    lead_B = labels.mean(dim=-1)
    return torch.where(lead_B == 0, -1, ((logits > 0) == (lead_B > 0)).int())
