"""Losses of a PairRanker on scored candidates: those of LLM-Blender's training, and Bradley-Terry with a margin.

Formulae, with l and r what the head gives the left and the right candidate, a and b their scores by one metric, and
d = a - b. Each is a mean over pairs and metrics, as in the original (`CrossCompareReranker.compute_loss`):

    instructgpt         -log sigmoid(sign(d) (l - r))
    bce                 (BCE(l, d > 0) + BCE(r, d < 0)) / 2
    mse                 (l - a)^2 + (r - b)^2 - 2 (l - r) d
    open_instruct_bce   (BCE(l, a) + BCE(r, b)) / 2, the scores being 0 or 1
    bradley_terry       -log sigmoid(sign(d) (l - r) - margin - score_margin |d|)

BCE(x, y) = -y log sigmoid(x) - (1 - y) log sigmoid(-x). Shape suffixes: B pairs, T tasks (metrics).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from llm_blender_ray.configs.losses import LossSettings


class PairLoss(LossSettings):
    """A loss of pairs of scored candidates.

    Attributes:
        of_sides: Whether it reads what the head gives each candidate, beyond the difference: then the ranker has to
            score candidates, which one on a causal LM does not.
        of_scores: Whether it reads the candidates' scores, beyond their difference.
        binary_scores: Whether scores have to be 0 or 1.
    """

    of_sides: ClassVar[bool] = False
    of_scores: ClassVar[bool] = False
    binary_scores: ClassVar[bool] = False

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """Loss of each pair by each metric, B x T.

        Args:
            left_BT: What the head gives the left candidate; without `of_sides` only left - right counts.
            right_BT: What it gives the right one.
            lead_BT: By how much the left one is scored higher.
            scores_B2T: Scores of both; None without `of_scores`.
        """
        raise NotImplementedError


class InstructGPT(PairLoss):
    """InstructGPT's loss (arXiv 2203.02155), which LLM-Blender trains with: Bradley-Terry without a margin."""

    kind: Literal["instructgpt"] = "instructgpt"

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """See base class."""
        return -functional.logsigmoid((left_BT - right_BT) * lead_BT.sign())


class BradleyTerry(PairLoss):
    """Negative log-likelihood that the better candidate wins by a margin, as in Llama 2 (arXiv 2307.09288)."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # log-odds
    score_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # log-odds per unit of score difference

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """See base class. A pair without a winner has no margin."""
        sign_BT = lead_BT.sign()
        margin_BT = sign_BT.abs() * self.margin + lead_BT.abs() * self.score_margin
        return -functional.logsigmoid((left_BT - right_BT) * sign_BT - margin_BT)


class BinaryCrossEntropy(PairLoss):
    """Each candidate classified by whether it is the better one of the pair."""

    of_sides: ClassVar[bool] = True

    kind: Literal["bce"] = "bce"

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """See base class."""
        return _mean_cross_entropy(left_BT, right_BT, (lead_BT > 0).float(), (lead_BT < 0).float())


class OpenInstructBCE(PairLoss):
    """Each candidate classified by its own score of 0 or 1, as for the data of open-instruct."""

    of_sides: ClassVar[bool] = True
    of_scores: ClassVar[bool] = True
    binary_scores: ClassVar[bool] = True

    kind: Literal["open_instruct_bce"] = "open_instruct_bce"

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """See base class."""
        assert scores_B2T is not None
        return _mean_cross_entropy(left_BT, right_BT, *scores_B2T.unbind(dim=1))


class MeanSquaredError(PairLoss):
    """Regression of each candidate's score, and of the better one's lead. It may be negative."""

    of_sides: ClassVar[bool] = True
    of_scores: ClassVar[bool] = True

    kind: Literal["mse"] = "mse"

    def terms(self, left_BT: Tensor, right_BT: Tensor, lead_BT: Tensor, scores_B2T: Tensor | None) -> Tensor:
        """See base class."""
        assert scores_B2T is not None
        left_scores_BT, right_scores_BT = scores_B2T.unbind(dim=1)
        errors_BT = (left_BT - left_scores_BT) ** 2 + (right_BT - right_scores_BT) ** 2
        return errors_BT - 2 * (left_BT - right_BT) * lead_BT


def _mean_cross_entropy(
    left_BT: Tensor, right_BT: Tensor, left_is_good_BT: Tensor, right_is_good_BT: Tensor
) -> Tensor:
    """Mean of both candidates' binary cross-entropies."""
    cross_entropy = functional.binary_cross_entropy_with_logits
    of_left_BT = cross_entropy(left_BT, left_is_good_BT, reduction="none")
    return (of_left_BT + cross_entropy(right_BT, right_is_good_BT, reduction="none")) / 2
