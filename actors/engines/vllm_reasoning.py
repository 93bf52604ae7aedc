"""Reasoning told apart by vLLM's own parsers, for models whose settings name one (`reasoning_parser`)."""

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.engines.reasoning_formats import ReasoningFormat
from llm_blender_ray.actors.errors import ModelLoadError

if TYPE_CHECKING:
    from vllm.config.reasoning import ReasoningConfig


def reasoning_config(format: ReasoningFormat | None) -> "ReasoningConfig | None":
    """Make the setting by which vLLM ends reasoning whose budget is used up; None where there is no format."""
    from vllm.config.reasoning import ReasoningConfig

    if format is None:
        return None
    return ReasoningConfig(reasoning_start_str=format.begins[0], reasoning_end_str=format.forced_end)


class VLLMReasoning:
    """One of vLLM's reasoning parsers."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the parser.

        Args:
            name: Its name in vLLM's registry.
            tokenizer: Of the model.

        Raises:
            ModelLoadError: vLLM has none of that name, or it doesn't fit the tokenizer.
        """
        from vllm.reasoning import ReasoningParserManager

        known = ReasoningParserManager.list_registered()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f", expected one of {', '.join(known)}"
            raise ModelLoadError(f"reasoning_parser: the installed vLLM has no parser {name!r}{hint}")
        self._name, self._tokenizer = name, tokenizer
        self._class = ReasoningParserManager.get_reasoning_parser(name)
        try:
            self._class(tokenizer)
        except Exception as error:  # a token that the parser looks for is missing
            raise ModelLoadError(f"reasoning_parser: {name} doesn't fit the model's tokenizer: {error}") from error

    def answer(self, prompt_ids: Sequence[int]) -> "ParsedAnswer":
        """Begin to parse the answer to a prompt."""
        return ParsedAnswer(self._class(self._tokenizer), prompt_ids)


class ParsedAnswer:
    """One answer, as vLLM's parser reads it: whole, or in pieces."""

    def __init__(self, parser: Any, prompt_ids: Sequence[int]) -> None:
        self._parser = parser
        self._ended = parser.is_reasoning_end(list(prompt_ids))  # the chat template has left no reasoning open
        if not self._ended:
            parser.adjust_initial_state_from_prompt(list(prompt_ids))
        self._text, self._ids = "", list[int]()
        self._answering = False

    def split(self, text: str, ids: Sequence[int]) -> tuple[str | None, str, int | None]:
        """Reasoning, answer and tokens of reasoning of a whole text; None for none."""
        if self._ended:
            return None, text, None
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        reasoning, content = self._parser.extract_reasoning(text, ChatCompletionRequest(messages=[]))
        return reasoning or None, (content or "").lstrip(), self.tokens(ids)

    def pieces(self, text: str, ids: Sequence[int]) -> Iterator[str | ReasoningDelta]:
        """Pieces of what is new, none empty."""
        if self._ended:
            if text:
                yield text
            return
        before, ids_before = self._text, self._ids
        self._text, self._ids = before + text, [*ids_before, *ids]
        delta = self._parser.extract_reasoning_streaming(before, self._text, text, ids_before, self._ids, list(ids))
        yield from self._pieces(delta)

    def rest(self) -> Iterator[str | ReasoningDelta]:
        """What the parser has held back, at the text's end."""
        if not self._ended and hasattr(self._parser, "finish_streaming"):
            yield from self._pieces(self._parser.finish_streaming())

    def tokens(self, ids: Sequence[int]) -> int | None:
        """Tokens of reasoning, where the parser counts them."""
        return self._parser.count_reasoning_tokens(list(ids)) or None

    def _pieces(self, delta: Any) -> Iterator[str | ReasoningDelta]:
        """What vLLM has found, without the blanks in front of the answer."""
        if delta is not None and delta.reasoning:
            yield ReasoningDelta(delta.reasoning)
        if delta is not None and delta.content:
            content = delta.content if self._answering else delta.content.lstrip()
            self._answering |= bool(content)
            if content:
                yield content
