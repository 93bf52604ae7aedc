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

    def __init__(self, decode: Callable[[list[int]], str], vocabulary: Mapping[str, int]) -> None:
        """Use a tokenizer.

        Args:
            decode: Makes the text of ids without special tokens.
            vocabulary: Ids by piece.
        """
        self.decode = decode
        # A byte that doesn't fit undoes the characters of all bytes in front of it: `ByteFallback` of tokenizers.
        self.unsettled = frozenset(i for piece, i in vocabulary.items() if _BYTE_PIECE.fullmatch(piece))

    def text(self, ids: Sequence[int]) -> str:
        """The whole text."""
        return self.decode(list(ids)).rstrip(_HALF)

    def until(self, ids: Sequence[int], stop: Sequence[str]) -> tuple[str, int | None]:
        """The text up to the first stop string, and how many tokens that took; None: it has none."""
        text = self.text(ids)
        if not any(end in text for end in stop):
            return text, None
        tokens = bisect_left(range(len(ids)), True, key=lambda n: any(end in self.text(ids[:n]) for end in stop))
        text = self.text(ids[:tokens])
        return text[: min(at for end in stop if (at := text.find(end)) >= 0)], tokens


class Transcript:
    """The text of one answer while its tokens come. What was given is never taken back.

    A token is decoded behind those that gave the last piece of text, not behind the whole answer: some decoders
    treat the first token otherwise (the sliding window of vLLM and text-generation-inference).
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer, self._stop = detokenizer, stop
        self._window: list[int] = []
        self._context = 0  # tokens at the window's start that gave the last piece
        self._known = 0  # characters of the window's text that were given
        self._undoable = False  # the window ends in bytes that may not fit
        self._held = ""  # of the given ones: what may be the beginning of a stop string
        self.stopped = False  # a stop string is there; nothing is given any more

    def push(self, token: int) -> str:
        """The text that is certain with this token, and wasn't before."""
        text = self._held + self._settled(token)
        self.stopped = self.stopped or any(end in text for end in self._stop)
        if self.stopped:
            return ""
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        beginnings = (n for n in range(longest, 0, -1) if any(end.startswith(text[-n:]) for end in self._stop))
        certain = len(text) - next(beginnings, 0)
        self._held = text[certain:]
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
