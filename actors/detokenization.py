"""Detokenization of an answer, whole or as a stream. Pure.

What is decoded piece by piece joins to what is decoded at once, for every tokenizer in which text only grows.

`tokenizers.decoders.DecodeStream` does the same for real text. With a byte-fallback tokenizer (Llama 2) it raises
where sampled bytes form no character (529 of 3,000 random sequences; 2 more lose a space), it needs a `tokenizers`
tokenizer, and it skips all special tokens or none, while those that mark reasoning have to stay.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

_HALF = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no character, or not yet
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # of SentencePiece's byte fallback


class Detokenizer:
    """Text of token ids. Half a character at the end is left out, as vLLM's detokenizer does."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        vocabulary: Mapping[str, int],
        token: Callable[[int], str] | None = None,
    ) -> None:
        """Use a tokenizer.

        Args:
            decode: Makes the text of ids without special tokens.
            vocabulary: Ids by piece.
            token: Text of one token by itself, special or not; None: what `decode` makes of it.
        """
        self.decode = decode
        self.token = token or (lambda i: decode([i]))
        # A byte that doesn't fit undoes the characters of all bytes in front of it: `ByteFallback` of tokenizers.
        self.unsettled = frozenset(i for piece, i in vocabulary.items() if _BYTE_PIECE.fullmatch(piece))

    def text(self, ids: Sequence[int]) -> str:
        """The whole text."""
        return self.decode(list(ids)).rstrip(_HALF)

    def until(self, ids: Sequence[int], stop: Sequence[str], min_tokens: int = 0) -> tuple[str, int | None]:
        """The text up to the first stop string, and how many tokens that took; None: it has none.

        One that is complete with the first `min_tokens` tokens is none.
        """
        free = len(self.text(ids[:min_tokens])) if stop else 0
        text = self.text(ids)
        if not starts_of(stop, text, free):
            return text, None
        tokens = bisect_left(
            range(len(ids)), True, lo=min_tokens, key=lambda n: bool(starts_of(stop, self.text(ids[:n]), free))
        )
        text = self.text(ids[:tokens])
        return text[: min(starts_of(stop, text, free))], tokens


def starts_of(stop: Sequence[str], text: str, free: int = 0) -> list[int]:
    """Where stop strings begin in a text: the first place of each that ends behind its first `free` characters."""
    found = (text.find(end, max(0, free - len(end) + 1)) for end in stop)
    return [at for at in found if at >= 0]


class Transcript:
    """The text of one answer while its tokens come. What was given is never taken back.

    A token is decoded behind those that gave the last piece of text, not behind the whole answer: some decoders
    treat the first token otherwise (the sliding window of vLLM and text-generation-inference).
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        """Start an answer whose first `min_tokens` tokens complete no stop string."""
        self._detokenizer, self._stop = detokenizer, stop
        self._min_tokens = min_tokens
        self._window: list[int] = []
        self._context = 0  # tokens at the window's start that gave the last piece
        self._known = 0  # characters of the window's text that were given
        self._undoable = False  # the window ends in bytes that may not fit
        self._held = ""  # of the given ones: what may be the beginning of a stop string
        self._free = 0  # of the held characters: those in which no stop string ends
        self.stopped = False  # a stop string is there; nothing is given any more

    def push(self, token: int) -> str:
        """The text that is certain with this token, and wasn't before."""
        text = self._held + self._settled(token)
        self._min_tokens -= 1
        free = len(text) if self._min_tokens >= 0 else self._free
        self.stopped = self.stopped or bool(starts_of(self._stop, text, free))
        if self.stopped:
            return ""
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        beginnings = (n for n in range(longest, 0, -1) if any(end.startswith(text[-n:]) for end in self._stop))
        certain = len(text) - next(beginnings, 0)
        self._held = text[certain:]
        self._free = max(0, free - certain)
        return text[:certain]

    def _settled(self, token: int) -> str:
        """The text that no later token can change, and that wasn't so before."""
        self._window.append(token)
        silent = self._undoable and not self._detokenizer.decode(
            [token]
        )  # a special token, that ends no run of bytes
        self._undoable = silent or token in self._detokenizer.unsettled
        if self._undoable:
            return ""
        text = self._detokenizer.decode(self._window)
        settled = text.rstrip(_HALF)
        piece = settled[self._known :]
        self._known = max(self._known, len(settled))
        if piece and settled == text:
            del self._window[: self._context]
            self._context = len(self._window)
            self._known = len(self._detokenizer.decode(self._window))
        return piece
