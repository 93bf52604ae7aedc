"""One label for each item from those of several annotators: the majority's, or Dawid and Skene's.

Dawid and Skene (1979) estimate each annotator's confusion matrix together with the items' true labels, by
expectation maximisation. An annotator who is often wrong counts for less, and one who is wrong in a regular way
counts for what that tells. The start is the majority, as in crowd-kit, whose figures a test has.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ITERATIONS = 1000
TOLERANCE = 1e-9  # of the likelihood's lower bound per label
_TINY = 1e-10  # smallest probability of a confusion


class Label(NamedTuple):
    """What one annotator says of one item."""

    item: int
    annotator: str
    value: str


@dataclass(frozen=True)
class Consensus:
    """Labels of items by Dawid and Skene.

    Attributes:
        items: The items.
        values: V labels, sorted.
        chances: I x V: how likely each label is each item's.
        annotators: A names, sorted.
        confusion: A x V x V: `confusion[a, t, v]` is how likely annotator a says v of an item whose label is t.
        prior: V: how frequent each label is.
    """

    items: list[int]
    values: list[str]
    chances: np.ndarray
    annotators: list[str]
    confusion: np.ndarray
    prior: np.ndarray

    def labels(self) -> dict[int, str]:
        """The most likely label of each item."""
        return {item: self.values[int(row.argmax())] for item, row in zip(self.items, self.chances, strict=True)}

    def accuracy(self) -> dict[str, float]:
        """How likely each annotator is right about an item."""
        right_A = np.einsum("att,t->a", self.confusion, self.prior)
        return dict(zip(self.annotators, map(float, right_A), strict=True))


def majority(labels: Sequence[Label]) -> dict[int, str | None]:
    """The most frequent label of each item; None where several are."""
    counts: dict[int, Counter[str]] = {}
    for one in labels:
        counts.setdefault(one.item, Counter())[one.value] += 1
    chosen: dict[int, str | None] = {}
    for item, count in counts.items():
        (first, most), *others = count.most_common(2)
        chosen[item] = None if others and others[0][1] == most else first
    return chosen


def dawid_skene(labels: Sequence[Label]) -> Consensus:
    """Fit labels, of which there must be one or more; an annotator has at most one for an item."""
    items = list(dict.fromkeys(one.item for one in labels))
    annotators, values = sorted({one.annotator for one in labels}), sorted({one.value for one in labels})
    places = [{name: at for at, name in enumerate(names)} for names in (items, annotators, values)]
    said_IAV = np.zeros((len(items), len(annotators), len(values)))
    for one in labels:
        said_IAV[places[0][one.item], places[1][one.annotator], places[2][one.value]] = 1
    chances_IV = said_IAV.sum(1) / said_IAV.sum((1, 2))[:, None]
    bound = -np.inf
    for _ in range(ITERATIONS):
        prior_V, confusion_AVV = chances_IV.mean(0), _confusion(said_IAV, chances_IV)
        log_IV = np.log(np.maximum(prior_V, _TINY)) + np.einsum("iav,atv->it", said_IAV, np.log(confusion_AVV))
        top_I = log_IV.max(1)
        likelihood_I = top_I + np.log(np.exp(log_IV - top_I[:, None]).sum(1))
        chances_IV = np.exp(log_IV - likelihood_I[:, None])
        if (reached := float(likelihood_I.sum()) / len(labels)) - bound < TOLERANCE:
            break
        bound = reached
    return Consensus(items, values, chances_IV, annotators, _confusion(said_IAV, chances_IV), chances_IV.mean(0))


def _confusion(said_IAV: np.ndarray, chances_IV: np.ndarray) -> np.ndarray:
    """A x V x V: shares of what annotators say, by the true label."""
    counts_AVV = np.maximum(np.einsum("it,iav->atv", chances_IV, said_IAV), _TINY)
    return counts_AVV / counts_AVV.sum(2, keepdims=True)
