"""Counterfactual rows for fusers: values swapped in the reference and all candidates alike.

A fuser that sees only true references learns the facts of its training rows, and answers from memory whatever its
candidates have. Where a value of the reference is swapped with another one in all texts of the row, memory is
wrong, and only the candidates lead to the reference: the substitution of Longpre et al., "Entity-Based Knowledge
Conflicts in Question Answering" (EMNLP 2021), with the row's own candidates as the corpus. What a candidate has in
the place of some words of the reference is of their kind, and needs no list of entities.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from enum import Enum

import regex

from llm_blender_ray.actors.records import digest
from llm_blender_ray.configs.training import Counterfactuals
from llm_blender_ray.pipelines.train.rows import TrainingRow

LONGEST_VALUE = 3  # words; longer ones are other wordings of a sentence, not other values
SHORT_REFERENCE = 16  # words; in a longer one, plain words are wording, and only numbers and names are values
# words, without the numbers of a list's lines
_WORD = regex.compile(r"^\s*\d+[.)](*SKIP)(*FAIL)|\w+(?:['’]\w+)*", regex.MULTILINE)
_Value = tuple[str, ...]


class _Kind(Enum):
    NUMBER = "every word has a digit"
    NAME = "every word begins with a capital letter"
    PLAIN = "any other words"


def counterfactual_row(row: TrainingRow, settings: Counterfactuals) -> TrainingRow:
    """A row with some values swapped, by a draw of the seed, its id and its texts; see `swap_values`."""
    if row.reference is None:
        return row
    rng = random.Random(f"{settings.seed} {row.prompt.id} {digest(row.prompt, *row.texts).hex()}")
    return swap_values(row, settings.share, rng)


def swap_values(row: TrainingRow, share: float, rng: random.Random) -> TrainingRow:
    """Swap values of the reference with those that candidates have in their place.

    A value is one to three words of the reference that some candidate has too, in whose place another candidate
    has other words of the same number and kind: numbers, names, or in a short reference any words. Neither may
    occur in the prompt, from which the fuser could take it. Both are swapped in every text of the row, so that
    candidates agree and differ as before.

    Args:
        row: A row with a reference.
        share: Probability of the swap of each value.
        rng: Draws them.

    Returns:
        The row with the swaps; the given one where there is nothing to swap.
    """
    words, prompt = _words(row.reference or ""), _words("\n".join(row.prompt.turns()))
    others = [_words(text) for text in row.texts]
    lower = {word for text in (words, prompt, *others) for word in text if word[:1].islower()}
    swaps: dict[_Value, _Value] = {}
    taken: set[str] = set()
    for value, alternatives in _alternatives(words, others).items():
        kind = _kind(value, lower)
        if kind is _Kind.PLAIN and len(words) > SHORT_REFERENCE:
            continue
        usable = [
            one
            for one in alternatives
            if _kind(one, lower) is kind and taken.isdisjoint(one) and not _contains(prompt, one)
        ]
        if not usable or not taken.isdisjoint(value) or _contains(prompt, value):
            continue
        if not any(_contains(text, value) for text in others) or rng.random() >= share:
            continue
        other = rng.choice(usable)
        swaps |= {value: other, other: value}
        taken |= {*value, *other}
    if not swaps:
        return row
    texts = tuple(_swapped(text, swaps) for text in row.texts)
    return replace(row, reference=_swapped(row.reference or "", swaps), texts=texts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _kind(value: _Value, lower: set[str]) -> _Kind:
    """Kind of a value. A word that the row also has in lower case is no name: it begins a sentence."""
    if all(any(character.isdigit() for character in word) for word in value):
        return _Kind.NUMBER
    if all(word[0].isupper() and word.lower() not in lower for word in value):
        return _Kind.NAME
    return _Kind.PLAIN


def _alternatives(words: Sequence[str], texts: Sequence[Sequence[str]]) -> dict[_Value, list[_Value]]:
    """What texts have in the place of words of the reference, by these words, in their order."""
    found: dict[tuple[int, int], dict[_Value, None]] = {}
    for text in texts:
        for change, begin, end, left, right in SequenceMatcher(None, words, text, autojunk=False).get_opcodes():
            if change == "replace" and end - begin == right - left <= LONGEST_VALUE:
                found.setdefault((begin, end), {})[tuple(text[left:right])] = None
    alternatives: dict[_Value, list[_Value]] = {}
    for (begin, end), ones in sorted(found.items()):
        value = tuple(words[begin:end])
        folded = {word.casefold() for word in value}
        different = [one for one in ones if folded.isdisjoint(word.casefold() for word in one)]
        alternatives.setdefault(value, []).extend(different)
    return alternatives


def _contains(words: Sequence[str], value: _Value) -> bool:
    return any(tuple(words[i : i + len(value)]) == value for i in range(len(words) - len(value) + 1))


def _swapped(text: str, swaps: Mapping[_Value, _Value]) -> str:
    """The text with the words of each value replaced; what stands between them stays."""
    places = list(_WORD.finditer(text))
    words = [place[0] for place in places]
    at = 0
    while at < len(words):
        value = next((value for value in swaps if tuple(words[at : at + len(value)]) == value), None)
        if value is None:
            at += 1
            continue
        words[at : at + len(value)] = swaps[value]
        at += len(value)
    ends = [0, *(place.end() for place in places)]
    parts = (text[end : place.start()] + word for end, place, word in zip(ends, places, words, strict=False))
    return "".join(parts) + text[ends[-1] :]
