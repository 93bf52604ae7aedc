"""PairRanker's network: an encoder reads source and both candidates at once; a head reads the three markers.

Follows LLM-Blender (arXiv 2306.02561, section 3; llm-blender 0.0.2 `CrossCompareReranker`), whose parameter names
(`pretrained_model`, `head_layer`) are kept, so that published weights load as they are.
Shape suffixes: B pairs, L tokens, H hidden, T tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class MarkerIds:
    """Token ids at which the head reads the encoder."""

    source: int
    left: int
    right: int


class PairRMNetwork(nn.Module):
    """Scores the left and the right candidate of each pair."""

    def __init__(
        self, backbone: PreTrainedModel, markers: MarkerIds, *, n_tasks: int = 1, dropout: float = 0.05
    ) -> None:
        super().__init__()
        hidden = backbone.config.hidden_size
        self.pretrained_model = backbone
        self.markers = markers
        self.n_tasks = n_tasks
        self.dropout = dropout
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * hidden, hidden),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_tasks),
        )

    def set_dropout(self, dropout: float) -> None:
        """Set the head's dropout."""
        self.dropout = dropout
        for module in self.head_layer:
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def encode(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The encoder's last hidden states, B x L x H."""
        return self.pretrained_model(
            input_ids=input_ids_BL, attention_mask=attention_mask_BL, return_dict=True
        ).last_hidden_state

    def score(self, hidden_BLH: Tensor, input_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(left, right) scores, each B x T, read at the markers of every sequence."""
        rows_B = torch.arange(len(input_ids_BL), device=input_ids_BL.device)

        def at(marker: int) -> Tensor:
            return hidden_BLH[rows_B, (input_ids_BL == marker).int().argmax(dim=1)]

        source_BH = at(self.markers.source)
        left, right = (
            self.head_layer(torch.cat([source_BH, at(marker)], dim=-1))
            for marker in (self.markers.left, self.markers.right)
        )
        return left, right

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(left, right) scores, each B x T. The pair's logit is `(left - right).mean(-1)`."""
        return self.score(self.encode(input_ids_BL, attention_mask_BL), input_ids_BL)

    def logits(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Logits of left over right, one per pair."""
        left_BT, right_BT = self(input_ids_BL, attention_mask_BL)
        return (left_BT - right_BT).mean(dim=-1)
