"""Losses of scored pairs against values that are worked out by hand from the original's formulae."""

import math
import re
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import Tensor

from llm_blender_ray.configs.losses import LOSSES
from llm_blender_ray.configs.training import Optimization, RankerTraining
from llm_blender_ray.pipelines.train.pair_losses import PairLoss

# Two pairs by two metrics. exp of every logit is a fraction, so that each sigmoid is one too.
LN2, LN3 = math.log(2), math.log(3)
LEFT = torch.tensor([[LN3, 0.0], [0.0, -LN3]])  # sigmoids 3/4, 1/2; 1/2, 1/4
RIGHT = torch.tensor([[0.0, LN3], [0.0, 0.0]])  # sigmoids 1/2, 3/4; 1/2, 1/2
SCORES = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.5], [1.0, 0.5]]])  # left is better; right is; a tie
LEAD = SCORES[:, 0] - SCORES[:, 1]


def pairwise(loss: Any) -> PairLoss:
    """A loss as a config names it."""
    found = RankerTraining(
        backbone="x", metrics=("q",), train="t", output="o", optimization=Optimization(learning_rate=1.0), loss=loss
    ).loss
    assert isinstance(found, PairLoss)
    return found


def terms(loss: Any, left: Tensor = LEFT, right: Tensor = RIGHT, scores: Tensor = SCORES) -> Tensor:
    return pairwise(loss).terms(left, right, scores[:, 0] - scores[:, 1], scores)


def expected(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows)


def test_instructgpt_is_the_better_ones_log_likelihood() -> None:
    """l - r is ln 3, -ln 3; 0, -ln 3: the better one wins with 3/4, 1/4; 1/2; a tie costs ln 2."""
    found = terms("instructgpt")
    torch.testing.assert_close(found, expected((math.log(4 / 3), math.log(4)), (LN2, LN2)))


def test_bce_classifies_each_candidate() -> None:
    """A tie makes both candidates negatives, as in the original."""
    found = terms("bce")
    first = (math.log(4 / 3) + LN2) / 2, (LN2 + math.log(4)) / 2
    second = (LN2 + LN2) / 2, (math.log(4 / 3) + LN2) / 2  # sigmoid(ln 3) = 3/4 is left's chance to be a negative
    torch.testing.assert_close(found, expected(first, second))


def test_open_instruct_bce_classifies_by_each_ones_own_score() -> None:
    scores = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    found = terms("open_instruct_bce", scores=scores)
    first = (math.log(4 / 3) + LN2) / 2, (LN2 + math.log(4)) / 2
    second = (LN2 + LN2) / 2, (math.log(4 / 3) + LN2) / 2
    torch.testing.assert_close(found, expected(first, second))


def test_mse_is_of_both_scores_and_their_difference() -> None:
    left, right = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 3.0], [0.0, 0.5]])
    first = 1 + 1 - 2 * 1 * 1, 1 + 9 - 2 * -3 * 1
    second = 1 + 1 - 2 * 1 * -1, 0.25 + 0 - 2 * 0.5 * 0
    torch.testing.assert_close(terms("mse", left, right), expected(first, second))


def test_mse_is_least_where_the_leads_are_three_times_the_scores() -> None:
    """The derivatives vanish at l = 2a - b and r = 2b - a, where the loss is d^2 + d^2 - 6 d^2."""
    sides = [torch.tensor([[2 * a - b]], requires_grad=True) for a, b in ((0.75, 0.25), (0.25, 0.75))]
    found = terms("mse", *sides, scores=torch.tensor([[[0.75], [0.25]]]))
    found.sum().backward()
    assert found.item() == pytest.approx(-4 * 0.5**2)
    assert [side.grad.item() for side in sides if side.grad is not None] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_bradley_terry_has_a_margin_to_win_by() -> None:
    """Margins LN2 + LN3 * |d|: of 2 * 3 = 6 for d = 1, and of nothing for a tie."""
    found = terms({"kind": "bradley_terry", "margin": LN2, "score_margin": LN3})
    odds = [[3 / 6, 1 / 3 / 6], [1 / 6, 1]]  # of the better one
    torch.testing.assert_close(found, torch.tensor([[math.log(1 + 1 / one) for one in row] for row in odds]))
    torch.testing.assert_close(terms("bradley_terry"), terms("instructgpt"))


def test_a_loss_of_ones_own_is_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of `docs/extending.md`."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^## A loss$.*?^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(code, "extending.md", "exec", dont_inherit=True), space)
    monkeypatch.setattr(LOSSES, "_added", {})
    LOSSES.add("hinge", space["Hinge"])
    torch.testing.assert_close(terms("hinge"), expected((0.0, 1 + LN3), (1.0, 1.0)).clamp(min=0))


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_is_the_same_with_the_sides_swapped(name: str) -> None:
    scores = SCORES.round() if pairwise(name).binary_scores else SCORES
    torch.testing.assert_close(terms(name, scores=scores), terms(name, RIGHT, LEFT, scores.flip(1)))


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_step_down_the_gradient_raises_the_better_candidates_lead(name: str) -> None:
    sides = [torch.zeros(1, 1, requires_grad=True) for _ in range(2)]
    terms(name, *sides, scores=torch.tensor([[[1.0], [0.0]]])).mean().backward()
    left, right = (side.grad for side in sides)
    assert left is not None
    assert right is not None
    assert left < 0 or right > 0
    assert left - right < 0
