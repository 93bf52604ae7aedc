"""Tokenizers in which text can't spell a special token.

PairRanker and GenFuser read templates: markers between pieces of foreign text. A text that spells a marker
(`<|candidate1|>`, `</s>`) would become one; the original stops with a shape error there. Here every added token
is renamed, inside this process, to a spelling with a random part that no text can contain; templates write markers
by that spelling (`mark`), and everything else is text.

Transformers 5 rebuilds DeBERTa's and T5's tokenizers without the published normalizer (it drops the charsmap of
tokenizer.json), which gives other ids than the models were trained on; so the published tokenizer.json is loaded as
it is, and a lone SentencePiece model through transformers' own converter.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import DebertaV2Converter

from actors.errors import ModelLoadError, one_line
from actors.model_files import read_json
from actors.weights import load_tokenizer


def load_tokenizer_backend(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder as it was published: tokenizer.json, else a DeBERTa spm.model, else what
    transformers makes of other vocabulary files. Raises ModelLoadError."""
    published, sentencepiece = folder / "tokenizer.json", folder / "spm.model"
    if published.is_file():
        try:
            return Tokenizer.from_file(str(published))
        except Exception as error:  # tokenizers raises plain Exception for everything
            raise ModelLoadError(f"{published}: can't be read: {one_line(error)}") from error
    if sentencepiece.is_file():
        settings_file = folder / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.is_file() else {}
        slow = SimpleNamespace(  # what the converter reads of the slow tokenizer that transformers 5 dropped
            vocab_file=str(sentencepiece),
            do_lower_case=settings.get("do_lower_case", False),
            split_by_punct=settings.get("split_by_punct", False),
            convert_tokens_to_ids={"[CLS]": 1, "[SEP]": 2}.__getitem__,
        )
        backend = DebertaV2Converter(slow).converted()
        backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
        return backend
    return load_tokenizer(folder).backend_tokenizer


class LiteralTokenizer:
    """A tokenizer whose markers are written by `mark` and can't be spelt by text; it adds nothing by itself."""

    def __init__(self, backend: Tokenizer) -> None:
        self._ids: dict[str, int] = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self._nonce = secrets.token_hex(8)
        self._backend = Tokenizer.from_str(json.dumps(self._rename(json.loads(backend.to_str()))))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._plain = backend

    def _rename(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Give every added token its secret spelling, in the vocabulary too: a Unigram vocabulary holds control
        pieces such as [CLS] with the best score of all, and would find them in text."""
        for token in spec["added_tokens"]:
            token["content"] = self.mark(token["content"])
        model = spec["model"]
        if isinstance(model.get("vocab"), dict):
            model["vocab"] = {self._spelling(piece): i for piece, i in model["vocab"].items()}
        else:
            model["vocab"] = [[self._spelling(piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = self._spelling(model["unk_token"])
        spec["post_processor"] = None
        return spec

    def _spelling(self, piece: str) -> str:
        return self.mark(piece) if piece in self._ids else piece

    def __contains__(self, token: str) -> bool:
        """Whether `token` is an added token, so one that can be marked."""
        return token in self._ids

    def mark(self, token: str) -> str:
        """How a template writes the added token `token`. KeyError when the tokenizer has no such token."""
        return f"<{self._nonce}:{self._ids[token]}>"

    def id_of(self, token: str) -> int:
        """The id of the added token `token`. KeyError when the tokenizer has no such token."""
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens only where `mark` wrote them."""
        return self._backend.encode(text, add_special_tokens=False).ids

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
