"""PairRanker's network: a backbone reads source and both candidates at once; a head reads it at a few tokens.

Follows LLM-Blender (arXiv 2306.02561, section 3; llm-blender 0.0.2 `CrossCompareReranker`), whose parameter names
(`pretrained_model`, `head_layer`) are kept, so that published weights load as they are.
Shape suffixes: B pairs, L tokens, H hidden, T tasks.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_blender_ray.actors.pairrm.pooling import Pooling


class PairRMNetwork(nn.Module):
    """Gives the lead of the left over the right candidate of each pair."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        pooling: Pooling,
        *,
        n_tasks: int = 1,
        dropout: float = 0.05,
        gpu_dtype: torch.dtype = torch.float16,
    ) -> None:
        """Make a network with a new head.

        Args:
            backbone: Its last hidden states are read; it becomes a part of the network.
            pooling: Where they are read.
            n_tasks: Outputs of the head.
            dropout: Of the head.
            gpu_dtype: Of inference on a GPU, unless settings name another; the original's.
        """
        super().__init__()
        self.pretrained_model = backbone
        self.pooling = pooling
        self.n_tasks = n_tasks
        self.dropout = dropout
        self.gpu_dtype = gpu_dtype
        self.head_layer = pooling.make_head(backbone.config.hidden_size, n_tasks, dropout)

    def set_dropout(self, dropout: float) -> None:
        """Set the head's dropout."""
        self.dropout = dropout
        for module in self.head_layer:
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def encode(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The backbone's last hidden states, B x L x H."""
        return self.pretrained_model(
            input_ids=input_ids_BL, attention_mask=attention_mask_BL, return_dict=True
        ).last_hidden_state

    def sides(self, hidden_BLH: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What the head gives left and right, from all hidden states, B x T each; see `Pooling.sides`."""
        places_BM = self.pooling.places_of_batch(input_ids_BL, attention_mask_BL)
        rows_B1 = torch.arange(len(places_BM), device=places_BM.device)[:, None]
        return self.pooling.sides(self.head_layer, hidden_BLH[rows_B1, places_BM])

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Leads of left over right, B x T."""
        hidden_BLH = self.encode(input_ids_BL, attention_mask_BL)
        left_BT, right_BT = self.sides(hidden_BLH, input_ids_BL, attention_mask_BL)
        return left_BT - right_BT

    def logits(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Logits of left over right, one per pair."""
        lead_BT: Tensor = self(input_ids_BL, attention_mask_BL)
        return lead_BT.mean(dim=-1)
