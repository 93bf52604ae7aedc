"""Tokenizers in which text can't spell a special token.

PairRanker and GenFuser read templates: markers between pieces of foreign text. A text that spells a marker
(`<|candidate1|>`, `</s>`) would become one; the original stops with a shape error there. Here every added token
is renamed, inside this process, to a spelling with a random part that no text can contain; templates write markers
by that spelling (`mark`), and everything else is text.
"""

import json
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from llm_blender_ray.actors.vocabularies import published
from llm_blender_ray.actors.weights import load_tokenizer


def load_tokenizer_backend(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder as it was published, else what transformers makes of its vocabulary files.

    Raises:
        ModelLoadError: The model can't be used.
    """
    return published(folder) or load_tokenizer(folder).backend_tokenizer


class LiteralTokenizer:
    """A tokenizer whose markers are written by `mark` and can't be spelt by text; it adds nothing by itself."""

    def __init__(self, backend: Tokenizer, tokens: Collection[str] | None = None) -> None:
        """Copy a tokenizer.

        Args:
            backend: The tokenizer; it stays as it is.
            tokens: Added tokens that text can't spell; None for all.
        """
        added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self._ids: dict[str, int] = {token: i for token, i in added.items() if tokens is None or token in tokens}
        self._others = {token: i for token, i in added.items() if token not in self._ids}
        self._nonce = secrets.token_hex(8)
        self._backend = Tokenizer.from_str(json.dumps(self._rename(json.loads(backend.to_str()))))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._plain = backend

    def _rename(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Give every marked token its secret spelling, in the vocabulary too.

        A Unigram vocabulary holds control pieces such as [CLS] with the best score of all, and would find them in
        text.
        """
        for token in spec["added_tokens"]:
            token["content"] = self._spelling(token["content"])
        model = spec["model"]
        if isinstance(model.get("vocab"), dict):
            merged = self._merged(model)
            kept = {piece: i for piece, i in model["vocab"].items() if piece not in self._ids or piece in merged}
            # by number: an added token outside the vocabulary gets the next free one
            model["vocab"] = kept | self._others | {self.mark(token): i for token, i in self._ids.items()}
        else:
            model["vocab"] = [[self._spelling(piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = self._spelling(model["unk_token"])
        spec["post_processor"] = None
        return spec

    def _merged(self, model: dict[str, Any]) -> set[str]:
        """Pieces of text that BPE's merges need, among the marked tokens."""
        if self._ids.keys().isdisjoint(model["vocab"]):
            return set()
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
        return {piece for left, right in merges for piece in (left, right, left + right) if piece in self._ids}

    def _spelling(self, piece: str) -> str:
        return self.mark(piece) if piece in self._ids else piece

    def __contains__(self, token: str) -> bool:
        """Whether `token` is an added token, so one that can be marked."""
        return token in self._ids

    def mark(self, token: str) -> str:
        """Spelling of the added token `token` in a template. KeyError when the tokenizer has no such token."""
        return f"<{self._nonce}:{self._ids[token]}>"

    def id_of(self, token: str) -> int:
        """The id of the added token `token`. KeyError when the tokenizer has no such token."""
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens only where `mark` wrote them."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encoding(self, text: str) -> Encoding:
        """Ids as of `encode`, with their places in the text."""
        return self._backend.encode(text, add_special_tokens=False)

    def joined(self, *texts: str) -> Encoding:
        """One or two texts, with what the tokenizer adds to a sequence by itself; nothing in them is marked."""
        first, *second = map(self.encoding, texts)
        return self._plain.post_process(first, second[0] if second else None)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, in parallel threads."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids, special tokens in their public spelling."""
        return self._plain.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def decode_marked(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens as `mark` writes them.

        The unknown token stays itself when the text is encoded again: in its public spelling it would come back as
        the characters `<unk>`.
        """
        return self._backend.decode(list(ids), skip_special_tokens=False)
