"""Chat messages to token ids and back, the same for every engine with a tokenizer.

A prompt is rendered and tokenised here, not by the engine, so that a model answers alike wherever it runs and
a prompt which doesn't fit is refused in the same words.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from jinja2 import TemplateSyntaxError
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from llm_blender_ray.actors.engines.reasoning_formats import (
    REASONING_FORMATS,
    ReasoningFormat,
    formats_of,
    marking_tokens,
    opened_reasoning,
)
from llm_blender_ray.actors.engines.reasoning_tokens import ReasoningTokens
from llm_blender_ray.actors.engines.rendering import render_chat
from llm_blender_ray.actors.errors import ModelLoadError, PromptError, TooLongError
from llm_blender_ray.actors.prompt_tokens import PromptTokenizer, check_round_trip, control_tokens
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.weights import load_tokenizer
from llm_blender_ray.configs import templates
from llm_blender_ray.configs.schema import LocalLLM, Sampling

_log = logging.getLogger(__name__)

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of a blank in a piece
# Of earlier answers: a template cuts the reasoning that an assistant's message begins with.
_REASONING_TAGS = {
    (*format.begins, *format.ends): format for format in REASONING_FORMATS if len(format.begins) == 1
}


_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class ChatPrompt(NamedTuple):
    """A chat as a model reads it.

    Attributes:
        ids: Token ids, up to where the answer begins.
        opened: Mark of reasoning (`<think>`) that the chat template wrote in the answer's place; "" for none.
    """

    ids: list[int]
    opened: str


class ChatTokenizer:
    """A tokenizer with a model's chat template. No text can spell a control token of it.

    Attributes:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        """Take a tokenizer as it is.

        Args:
            tokenizer: Any tokenizer of transformers.
            chat_template: As `LocalLLM.chat_template`; None for the tokenizer's own.

        Raises:
            ModelLoadError: The tokenizer has several templates and no default.
        """
        self.tokenizer = tokenizer
        self._template = _own(tokenizer) if chat_template is None else templates.template_text(chat_template)
        self._controls = control_tokens(tokenizer, self._template)
        self._tokens = PromptTokenizer(tokenizer, self._controls)
        self._token_texts: dict[int, str] = {}

    @classmethod
    def load(cls, folder: Path, model: LocalLLM) -> Self:
        """Load what belongs to a base LLM.

        Args:
            folder: The model folder.
            model: Its settings.

        Returns:
            Its tokenizer and template, tried on a short chat.

        Raises:
            ModelLoadError: The tokenizer can't be loaded or loses spaces, or the template leaves out the prompt.
        """
        tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
        check_round_trip(tokenizer, str(folder))
        chat = cls(tokenizer, model.chat_template)
        if chat._template is None and model.chat_template is None:
            _log.warning(
                "%s: its tokenizer has no chat template, so prompts reach it as bare text; set chat_template (%s)",
                model.name,
                ", ".join(templates.template_names()),
            )
        variables = model.sampling.template_variables
        if variables and not any(name in (chat._template or "") for name in variables):
            _log.warning(
                "%s: its chat template knows none of %s, so reasoning_effort or chat_template_kwargs is in vain",
                model.name,
                ", ".join(variables),
            )
        try:
            chat.encode([Message(role="user", content="How many are 3 and 4?")])
        except PromptError as error:
            if error.__cause__ is None or isinstance(error.__cause__, TemplateSyntaxError):
                raise ModelLoadError(f"{folder}: {error}; set another chat_template") from error
        return chat

    @property
    def bare(self) -> bool:
        """Whether there is no template: the contents are read as they are, a line each."""
        return self._template is None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat, up to where the answer begins. See `prompt`."""
        return self.prompt(messages).ids

    def prompt(self, messages: Sequence[Message], variables: Mapping[str, Any] = _NO_VARIABLES) -> ChatPrompt:
        """The chat as the model reads it.

        Args:
            messages: The chat.
            variables: Further variables of the template.

        Returns:
            The prompt. Without a template, with the special tokens that the tokenizer adds by itself.

        Raises:
            PromptError: The template refuses the chat or leaves out a message.
        """
        if self._template is None:
            return ChatPrompt(self._tokens.encode_text("\n".join(message["content"] for message in messages)), "")
        text = self._render(messages, variables, add_generation_prompt=True)
        return ChatPrompt(self._tokens.encode(text), opened_reasoning(text))

    def encode_whole(self, messages: Sequence[Message]) -> Encoding:
        """Encode a chat that ends with an answer; where there is no template, a question and its answer as a pair.

        Args:
            messages: The chat; without a template, two messages.

        Returns:
            Ids, masks and types. Only for a tokenizer of the `tokenizers` library.

        Raises:
            PromptError: The template refuses the chat or leaves out a message.
        """
        if self._template is None:
            return self._tokens.encode_pair(*(message["content"] for message in messages))
        return self._tokens.encoding(self._render(messages, _NO_VARIABLES, add_generation_prompt=False))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token of a plain text. Only for a tokenizer of the `tokenizers` library."""
        return self._tokens.encoding(self._tokens.guard(text)).offsets

    def rendered(self, messages: Sequence[Message]) -> str:
        """The chat as text, up to where the answer begins.

        Raises:
            PromptError: As `encode` does.
        """
        if self._template is None:
            return "\n".join(message["content"] for message in messages)
        return self._tokens.unguard(self._render(messages, _NO_VARIABLES, add_generation_prompt=True))

    def reasoning_tokens(self, parser: str, opened: str, budget: int | None) -> ReasoningTokens:
        """What reads the reasoning in an answer's ids.

        Args:
            parser: A `reasoning_parser` setting.
            opened: See `ChatPrompt`.
            budget: Most tokens of reasoning; None for any number.
        """
        encode = partial(self.tokenizer.encode, add_special_tokens=False)
        return ReasoningTokens(self.decoder(), encode, formats_of(parser), opened, budget)

    def reasoning_format(self, parser: str) -> ReasoningFormat | None:
        """Find the format in which the model marks its reasoning, as far as it shows before the model has answered.

        Args:
            parser: A `reasoning_parser` setting.

        Returns:
            The format of the named family, or whose marks the vocabulary or the chat template has; None for none.
        """
        formats = formats_of(parser)
        if formats is not REASONING_FORMATS:
            return formats[0]
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        return next(
            (
                format
                for format in formats
                if format.tokens
                and all(mark in added or mark in (self._template or "") for mark in format.tokens[:2])
            ),
            None,
        )

    def token_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of those strings that are control tokens: a stop string may be one."""
        return [self.tokenizer.convert_tokens_to_ids(token) for token in tokens if token in self._controls]

    @property
    def marks_reasoning(self) -> bool:
        """Whether special tokens mark reasoning, so that a decoder mustn't leave them out."""
        return bool(marking_tokens(self._special()))

    def decoder(self) -> Callable[[list[int]], str]:
        """Decoder of an answer's ids: without special tokens, except those that mark reasoning."""
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
        special = self._special()
        kept = marking_tokens(special)
        if not kept:
            return partial(decode, skip_special_tokens=True)
        left_out = {special[token] for token in special if token not in kept}
        return lambda ids: decode([i for i in ids if i not in left_out], skip_special_tokens=False)

    def token_text(self, token: int) -> str:
        """Text of one token by itself, special or not, with a blank in front where its piece has one."""
        if token not in self._token_texts:  # log-probabilities name up to 21 tokens for each of an answer
            self._token_texts[token] = self._token_text(token)
        return self._token_texts[token]

    def _token_text(self, token: int) -> str:
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = self.tokenizer.convert_ids_to_tokens(token) or ""
        blanks = len(piece) - len(piece.lstrip(_BLANK))  # SentencePiece's decoder takes the first one for its own
        return f"{' ' * (blanks - (len(text) - len(text.lstrip(' '))))}{text}"

    def _special(self) -> dict[str, int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: i for i, token in added if token.special}

    def _render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> str:
        def apply(turns: list[Any]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{name: self._guarded_value(value) for name, value in variables.items()},
            )

        return render_chat(apply, [self._guarded(message) for message in messages])

    def _guarded_value(self, value: Any) -> Any:
        """A variable of the template: texts in it can't spell a control token either."""
        if isinstance(value, str):
            return self._tokens.guard(value)
        if isinstance(value, Mapping):
            return {name: self._guarded_value(one) for name, one in value.items()}
        return [self._guarded_value(one) for one in value] if isinstance(value, list) else value

    def _guarded(self, message: Message) -> Message:
        content = message["content"]
        if message["role"] == "assistant":
            for tags, format in _REASONING_TAGS.items():
                begin, end = format.begins[0], format.ends[0]
                if content.lstrip().startswith(begin) and end in content:
                    reasoning, end, answer = content.partition(end)
                    guarded = self._tokens.guard(reasoning + end, but=tags) + self._tokens.guard(answer)
                    return Message(role="assistant", content=guarded)
        return Message(role=message["role"], content=self._tokens.guard(content))


def _own(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's own template."""
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelLoadError(
            f"{tokenizer.name_or_path}: its tokenizer has several chat templates and no default; set chat_template"
        ) from error


def check_room(sampling: Sampling, context: int | None) -> None:
    """Raise ModelLoadError when answers of `max_tokens` leave no prompt any room in `context` tokens."""
    if context is not None and sampling.max_tokens >= context:
        raise ModelLoadError(
            f"sampling.max_tokens ({sampling.max_tokens}) leaves no room for a prompt in the model's "
            f"context of {context} tokens; set a smaller one"
        )


def check_fits(
    prompt_tokens: int, answer_tokens: int, context: int | None, max_prompt_tokens: int | None = None
) -> None:
    """Check that a prompt and the longest answer fit a model.

    Args:
        prompt_tokens: Tokens of the prompt.
        answer_tokens: Tokens of the longest answer.
        context: Tokens that the model has room for; None: any number.
        max_prompt_tokens: Limit of the prompt alone; None: no limit.

    Raises:
        PromptError: The prompt is empty.
        TooLongError: The prompt is over its limit, or both together over the context.
    """
    if not prompt_tokens:
        raise PromptError("the prompt has no tokens")
    if max_prompt_tokens is not None and prompt_tokens > max_prompt_tokens:
        raise TooLongError(f"the prompt's {prompt_tokens} tokens exceed max_prompt_tokens ({max_prompt_tokens})")
    if context is not None and prompt_tokens + answer_tokens > context:
        answer = f" and max_tokens ({answer_tokens})" if answer_tokens else ""
        raise TooLongError(
            f"the prompt's {prompt_tokens} tokens{answer} exceed the model's context of {context} tokens"
        )
