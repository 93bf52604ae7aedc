"""Outcomes of judgements as arrays, with the length and style of the answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_blender_ray.pipelines.quality.judgements import Outcome

_MARKS = {
    "headers": re.compile(r"^#{1,6}\s", re.M),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "lists": re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.M),
}
STYLE_FEATURES = ("length", *_MARKS)


def count_style(text: str) -> tuple[int, ...]:
    """Characters, Markdown headers, bold spans and list items of a text: `STYLE_FEATURES`."""
    return len(text), *(len(mark.findall(text)) for mark in _MARKS.values())


@dataclass(frozen=True)
class OutcomeTable:
    """M outcomes between N contestants.

    Attributes:
        names: The contestants.
        prompts: Index of each outcome's prompt, the unit that bootstraps draw.
        left: Index of a contestant in `names`.
        right: The other one's.
        shares: Share of a win that is left's: 1, 0, a half for ties, or a probability.
        styles: `STYLE_FEATURES` of the left and the right answer, M x 2 x F; None unless asked for.
    """

    names: tuple[str, ...]
    prompts: np.ndarray
    left: np.ndarray
    right: np.ndarray
    shares: np.ndarray
    styles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, mask_M: np.ndarray) -> "OutcomeTable":
        """Outcomes for which a mask is true."""
        return replace(
            self,
            prompts=self.prompts[mask_M],
            left=self.left[mask_M],
            right=self.right[mask_M],
            shares=self.shares[mask_M],
            styles=None if self.styles is None else self.styles[mask_M],
        )

    def among(self, names: Sequence[str]) -> "OutcomeTable":
        """Outcomes between these contestants only, numbered in this order."""
        number_N = np.array([names.index(name) if name in names else -1 for name in self.names], dtype=int)
        kept = self.take((number_N[self.left] >= 0) & (number_N[self.right] >= 0))
        return replace(kept, names=tuple(names), left=number_N[kept.left], right=number_N[kept.right])


class OutcomeRecorder:
    """Outcomes one by one, of which the numbers are kept and the texts are not."""

    def __init__(self, *, with_style: bool = False) -> None:
        """Start without outcomes.

        Args:
            with_style: Count the style of the answers, too.
        """
        self._with_style = with_style
        self._names: dict[str, int] = {}
        self._outcomes: list[tuple[int, int, int, float]] = []
        self._styles: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def add(self, prompt: int, outcome: Outcome) -> None:
        """Add an outcome of the prompt with this index."""
        left, right = (self._names.setdefault(name, len(self._names)) for name in (outcome.left, outcome.right))
        self._outcomes.append((prompt, left, right, outcome.left_wins))
        if self._with_style:
            self._styles.append((count_style(outcome.left_text), count_style(outcome.right_text)))

    def table(self) -> OutcomeTable:
        """The outcomes so far."""
        prompts, left, right, shares = list(zip(*self._outcomes, strict=True)) or [()] * 4
        styles = np.array(self._styles, dtype=float).reshape(-1, 2, len(STYLE_FEATURES))
        return OutcomeTable(
            tuple(self._names),
            np.array(prompts, dtype=int),
            np.array(left, dtype=int),
            np.array(right, dtype=int),
            np.array(shares, dtype=float),
            styles if self._with_style else None,
        )
