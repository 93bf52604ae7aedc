"""Words of a text in any script, for metrics that compare words.

In scripts that are written without spaces each character is a word. Google's `rouge-score` keeps ASCII
letters and digits only, so that two equal Chinese texts have nothing in common; BLEU reads a whole sentence as one
word.
"""

import regex

_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\u30fc\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}"
)
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]*", regex.V1
)
_ASCII_WORD = regex.compile("[a-z0-9]+")
_APART = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]", regex.V1
)


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits, or single characters of unspaced scripts."""
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else _WORD.findall(text.lower())


def ascii_words(text: str) -> list[str]:
    """Runs of ASCII letters and digits in lower case, as `rouge-score` splits a text."""
    return _ASCII_WORD.findall(text.lower())


def spaced(text: str) -> str:
    """The text with spaces around each character of an unspaced script and its punctuation; others as they are."""
    if text.isascii() or not _APART.search(text):
        return text
    return regex.sub(r" {2,}", " ", _APART.sub(r" \g<0> ", text)).strip()
