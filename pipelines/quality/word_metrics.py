"""Metrics that count what two texts have in common: BLEU, chrF, ROUGE.

All candidates of a row are compared with the same reference, so that what was made of a text is kept for a while.
"""

import functools
from abc import abstractmethod
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import BLEU, CHRF

from llm_blender_ray.pipelines.quality.metrics import PairMetric
from llm_blender_ray.pipelines.quality.segmentation import ascii_words, spaced, words

Words = tuple[str, ...]
Ngrams = Counter[Words]
WordTokenizer = Literal["unicode", "ascii"]
_TEXTS_KEPT = 256
_STEMS_KEPT = 65_536
_BLEU_ORDER = 4


def ngrams(tokens: Words, n: int) -> Ngrams:
    """Count the n-grams of a sequence of words."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def shared_ngrams(one: Ngrams, other: Ngrams) -> int:
    """Number of n-grams that are in both, each as often as in the text that has it less often."""
    few, many = (one, other) if len(one) <= len(other) else (other, one)
    return sum(min(count, many[ngram]) for ngram, count in few.items() if ngram in many)


def f1_of(hits: int, given: int, wanted: int) -> float:
    """F1 of `hits` right ones among `given`, of `wanted` ones."""
    if not hits:
        return 0.0
    precision, recall = hits / given, hits / wanted
    return 2 * precision * recall / (precision + recall)


class SentenceBleu(PairMetric):
    """Sentence BLEU with effective order (sacrebleu), from 0 to 1."""

    name = "bleu"
    label = "BLEU"
    report_order = 20

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        (length, given), (wanted_length, wanted) = _bleu_ngrams(text), _bleu_ngrams(reference)
        return float(
            BLEU.compute_bleu(
                correct=[shared_ngrams(*pair) for pair in zip(given, wanted, strict=True)],
                total=[max(length - n, 0) for n in range(_BLEU_ORDER)],
                sys_len=length,
                ref_len=wanted_length,
                smooth_method="exp",
                effective_order=True,
            ).score
            / 100
        )


@functools.lru_cache(_TEXTS_KEPT)
def _bleu_ngrams(text: str) -> tuple[int, list[Ngrams]]:
    """Number of words as sacrebleu splits them, and the n-grams of each order."""
    tokens = tuple(_bleu().tokenizer(spaced(text).rstrip()).split())
    return len(tokens), [ngrams(tokens, n) for n in range(1, _BLEU_ORDER + 1)]


@functools.cache
def _bleu() -> BLEU:
    return BLEU(effective_order=True)


class ChrF(PairMetric):
    """Sentence chrF (sacrebleu): F-score of character n-grams, from 0 to 1; chrF++ with `word_order` 2.

    Attributes:
        char_order: Longest n-grams of characters.
        word_order: Longest n-grams of words, which count too; 0: none.
        beta: Weight of recall against precision.
    """

    name = "chrf"
    label = "chrF"
    by_default = False
    report_order = 25

    char_order: Annotated[int, Field(ge=1)] = 6
    word_order: Annotated[int, Field(ge=0)] = 0
    beta: Annotated[int, Field(ge=1)] = 2

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        metric = _chrf(reference, self.char_order, self.word_order, self.beta)
        return float(metric.corpus_score([text], None).score / 100)


@functools.lru_cache(_TEXTS_KEPT)
def _chrf(reference: str, char_order: int, word_order: int, beta: int) -> CHRF:
    return CHRF(char_order, word_order, beta, references=[[reference]])


class Rouge(PairMetric):
    """F1 of what the words of two texts have in common, from 0 to 1.

    With `tokenizer: ascii` the scores are those of Google's `rouge-score` 0.1.2, to the digit.

    Attributes:
        tokenizer: `unicode`: words of any script (`segmentation.words`); `ascii`: runs of a-z and 0-9 only.
        stemmer: Compare words of more than three letters by their stems (Porter, as NLTK extends it), as the
            original LLM-Blender does.
    """

    by_default = False

    tokenizer: WordTokenizer = "unicode"
    stemmer: bool = False

    def tokens(self, text: str) -> list[str]:
        """Split a text into the words that are compared."""
        return list(self._words(text))

    def _words(self, text: str) -> Words:
        return _tokens(text, self.tokenizer, stemmer=self.stemmer)

    @abstractmethod
    def compare(self, reference: str, text: str) -> float:
        """See `PairMetric`."""


@functools.lru_cache(_TEXTS_KEPT)
def _tokens(text: str, tokenizer: WordTokenizer, *, stemmer: bool) -> Words:
    found = ascii_words(text) if tokenizer == "ascii" else words(text)
    return tuple(_stem(one) if len(one) > 3 else one for one in found) if stemmer else tuple(found)


@functools.lru_cache(_STEMS_KEPT)
def _stem(word: str) -> str:
    from nltk.stem.porter import PorterStemmer  # takes 1 s to import

    stem: str = PorterStemmer().stem(word)
    return stem


class RougeN(Rouge):
    """ROUGE-N: F1 of n-grams of words."""

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        n = int(self.name[-1])
        wanted, given = ngrams(self._words(reference), n), ngrams(self._words(text), n)
        return f1_of(shared_ngrams(wanted, given), given.total(), wanted.total())


class Rouge1(RougeN):
    """ROUGE-1: F1 of words."""

    name = "rouge_1"
    label = "ROUGE-1"
    report_order = 12


class Rouge2(RougeN):
    """ROUGE-2: F1 of pairs of adjacent words."""

    name = "rouge_2"
    label = "ROUGE-2"
    report_order = 14


class RougeL(Rouge):
    """ROUGE-L: F1 of the longest common subsequence of words."""

    name = "rouge_l"
    label = "ROUGE-L"
    by_default = True
    report_order = 10

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        wanted, given = self._words(reference), self._words(text)
        return f1_of(LCSseq.similarity(wanted, given), len(given), len(wanted))


class RougeLsum(Rouge):
    """ROUGE-L of summaries: F1 of the union of longest common subsequences, line by line."""

    name = "rouge_lsum"
    label = "ROUGE-Lsum"
    report_order = 16

    def compare(self, reference: str, text: str) -> float:
        """See the class."""
        wanted, given = ([self._words(line) for line in one.split("\n") if line] for one in (reference, text))
        left_of_given = Counter(word for line in given for word in line)
        left_of_wanted = Counter(word for line in wanted for word in line)
        lengths = left_of_given.total(), left_of_wanted.total()
        hits = 0
        for line in wanted:
            union = set().union(*(common_places(line, other) for other in given))
            for word in (line[i] for i in sorted(union)):  # a word counts as often as both texts have it
                if left_of_given[word] > 0 and left_of_wanted[word] > 0:
                    hits += 1
                    left_of_given[word] -= 1
                    left_of_wanted[word] -= 1
        return f1_of(hits, *lengths)


def common_places(wanted: Words, given: Words) -> list[int]:
    """Indexes of a longest common subsequence in `wanted`: of several the one that `rouge-score` reads out."""
    there = set(given)
    places = [i for i, word in enumerate(wanted) if word in there]  # the others change nothing in the table
    lengths = [[0] * (len(given) + 1)]
    for place in places:
        one, before, row, last = wanted[place], lengths[-1], [0], 0
        for j, other in enumerate(given):
            last = before[j] + 1 if one == other else max(before[j + 1], last)
            row.append(last)
        lengths.append(row)
    found: list[int] = []
    i, j = len(places), len(given)
    while i and j:
        if wanted[places[i - 1]] == given[j - 1]:
            i, j = i - 1, j - 1
            found.append(places[i])
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
