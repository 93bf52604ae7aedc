"""Prompts as token ids in which text stays text: only a chat template writes control tokens.

A tokenizer finds its added tokens anywhere in a string, so a prompt that quotes `<|im_end|>` would end its turn.
Here text is guarded before a template sees it: a random number stands for the first character of every control
token that it spells. The control tokens of the rendered prompt are the template's. Then the characters come back,
and a tokenizer which knows control tokens by secret names only (`tokens.LiteralTokenizer`) reads the text to the
letter.
"""

import logging
import re
import secrets
from collections.abc import Collection, Iterable

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.tokens import LiteralTokenizer

_log = logging.getLogger(__name__)

_WORDS = "hello world 123 apples"
_PROBES = {
    "words": _WORDS,
    "capital letters": "Hello World",
    "digits": "1234567890",
    "several spaces": "a  b",
    "line breaks": "a\nb",
    "accents": "é ü",
    "Chinese": "你好",
    "emoji": "🙂",
}
_MARKUP = re.compile(r"[<\[{(◁|｜].*[>\]})▷|｜]", re.DOTALL)
_HTML = re.compile(  # elements that some vocabularies (Gemma) hold as pieces of text
    r"</?(a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td|tfoot|"
    r"th|thead|tr|u|ul)/?>"
)


def control_tokens(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> frozenset[str]:
    """Find the tokens that text can't spell.

    These are the special tokens, and of the other added tokens those that the chat template writes or that look
    like markup. Words, blanks and HTML elements that were added to a vocabulary are text.

    Args:
        tokenizer: Any tokenizer of transformers.
        chat_template: Jinja text of the template in use.

    Returns:
        The tokens' contents.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    others = {token.content for token in added} - special
    markup = {token for token in others if _MARKUP.fullmatch(token) and not _HTML.fullmatch(token)}
    written = {token for token in others if token in (chat_template or "")}
    return frozenset(token for token in special | markup | written if token.strip(" \n\t▁"))


class PromptTokenizer:
    """A tokenizer for guarded text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, controls: Collection[str]) -> None:
        """Rename the control tokens, where the tokenizer is one of the `tokenizers` library.

        Args:
            tokenizer: Any tokenizer of transformers.
            controls: Tokens that text can't spell.
        """
        self._tokenizer = tokenizer
        self._fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        self._number = f"{secrets.randbelow(10**20):020}"  # digits: templates may trim, quote or change case
        self._hidden = re.compile(rf"{self._number}(\d{{7}})")
        self._controls = _alternatives(controls)
        self._spelt: dict[frozenset[str], re.Pattern[str]] = {}
        self._all = frozenset(controls)
        if self._fast:
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            self._literal = LiteralTokenizer(backend, self._all)

    def guard(self, text: str, *, but: Collection[str] = ()) -> str:
        """Make text safe to be put into a template.

        Args:
            text: Untrusted text.
            but: Control tokens that it may spell.

        Returns:
            The text with a number for the first character of every control token, overlapping ones included.
        """
        tokens = self._all.difference(but)
        if tokens not in self._spelt:
            self._spelt[tokens] = re.compile(f"(?={_alternatives(tokens).pattern}).", re.DOTALL)
        return self._spelt[tokens].sub(lambda found: f"{self._number}{ord(found[0]):07}", text)

    def unguard(self, text: str) -> str:
        """The text as it was before `guard`."""
        return self._hidden.sub(lambda found: chr(int(found[1])), text)

    def encode(self, rendered: str) -> list[int]:
        """Read a rendered template.

        Args:
            rendered: Guarded text between control tokens of the template.

        Returns:
            Ids; nothing is added to them.
        """
        if self._fast:
            return self.encoding(rendered).ids
        return [i for piece in self._pieces(rendered) for i in self._slow(piece)]

    def encoding(self, rendered: str) -> Encoding:
        """The same with masks and offsets. Only for a tokenizer of the `tokenizers` library."""
        marked = self._controls.sub(lambda found: self._literal.mark(found[0]), rendered)
        return self._literal.encoding(self.unguard(marked))

    def encode_text(self, text: str) -> list[int]:
        """Read plain text, not guarded.

        Args:
            text: Any text.

        Returns:
            Ids, with the special tokens that the tokenizer adds by itself.
        """
        if self._fast:
            return self._literal.joined(text).ids
        return self._tokenizer.encode(text, split_special_tokens=True, verbose=False)

    def encode_pair(self, left: str, right: str) -> Encoding:
        """Read two plain texts as a pair. Only for a tokenizer of the `tokenizers` library."""
        return self._literal.joined(left, right)

    def _pieces(self, rendered: str) -> Iterable[tuple[str, bool]]:
        """Pieces of a rendered template, and whether each is a control token."""
        end = 0
        for found in self._controls.finditer(rendered):
            yield self.unguard(rendered[end : found.start()]), False
            yield found[0], True
            end = found.end()
        yield self.unguard(rendered[end:]), False

    def _slow(self, piece: tuple[str, bool]) -> list[int]:
        text, control = piece
        if control:
            return [self._tokenizer.convert_tokens_to_ids(text)]
        if not text:
            return []
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def _alternatives(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def check_round_trip(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Encode a few texts and decode them again; warn of what doesn't come back.

    Args:
        tokenizer: Of a base LLM.
        where: Its folder, for messages.

    Raises:
        ModelLoadError: Spaces between words are lost, as when a byte-level vocabulary is read by another class.
    """

    def back(text: str) -> str:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip(" ")

    words = back(_WORDS)
    if words != _WORDS and words.replace(" ", "") == _WORDS.replace(" ", ""):
        raise ModelLoadError(
            f"{where}: its tokenizer reads {_WORDS!r} as {words!r}: its files belong to another class than "
            "tokenizer_config.json names; copy the model's tokenizer.json there"
        )
    if lost := [name for name, text in _PROBES.items() if back(text) != text]:
        _log.warning("%s: its tokenizer doesn't keep %s, so the model reads other text", where, ", ".join(lost))
