"""A linear ranker on words, to which trained PairRankers are compared: it reads no order of words and no prompt.

An answer's score is the sum of its words' weights, each counted as log(1 + occurrences), with a weight for the
logarithm of its length; pairs are learnt from by Bradley-Terry's loss with weight decay.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llm_blender_ray.pipelines.train.pairs import TrainingPair
from llm_blender_ray.pipelines.train.rows import TrainingRow

STEPS = 200
LEARNING_RATE = 0.05
WEIGHT_DECAY = 1e-3  # times the sum of the squared weights
LEAST_ANSWERS = 5  # in which a word occurs, to have a weight


@dataclass(frozen=True, slots=True)
class BagOfWords:
    """A linear ranker.

    Attributes:
        vocabulary: Place of each word's weight.
        weights: Of the words; the last one is of the length.
    """

    vocabulary: dict[str, int]
    weights: Tensor

    def score(self, text: str) -> float:
        """Score of an answer; of two, that with the higher one is better."""
        return float(_features(text, self.vocabulary) @ self.weights)


def train_bag_of_words(rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair]) -> BagOfWords:
    """Train on all pairs at once.

    Args:
        rows: Rows with candidates.
        pairs: Pairs of them.
    """
    answers = Counter(word for row in rows for text in row.texts for word in set(_words(text)))
    words = sorted(word for word, count in answers.items() if count >= LEAST_ANSWERS)
    vocabulary = {word: place for place, word in enumerate(words)}
    differences = torch.stack(
        [
            (_features(row.texts[pair.left], vocabulary) - _features(row.texts[pair.right], vocabulary))
            * math.copysign(1, sum(pair.lead))
            for pair in pairs
            for row in (rows[pair.row],)
        ]
    )
    weights = torch.zeros(len(words) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = -functional.logsigmoid(differences @ weights).mean() + WEIGHT_DECAY * weights.square().sum()
        loss.backward()
        optimizer.step()
    return BagOfWords(vocabulary, weights.detach())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _features(text: str, vocabulary: dict[str, int]) -> Tensor:
    counts = Counter(_words(text))
    features = torch.zeros(len(vocabulary) + 1)
    for word, count in counts.items():
        if word in vocabulary:
            features[vocabulary[word]] = math.log1p(count)
    features[-1] = math.log1p(sum(counts.values()))
    return features
