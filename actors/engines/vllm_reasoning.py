"""Reasoning separated by vLLM's own parsers, for models whose settings name one (`reasoning_parser`)."""

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.engines.reasoning_formats import ReasoningFormat
from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.configs.reasoning import AUTO, FAMILIES

if TYPE_CHECKING:
    from vllm.config.reasoning import ReasoningConfig


def reasoning_config(
    format: ReasoningFormat | None, tokenizer: PreTrainedTokenizerBase
) -> "ReasoningConfig | None":
    """Make the setting by which vLLM ends reasoning whose budget is used up.

    vLLM looks for the marks by their ids. Those of several tokens have other ids in other surroundings, and where
    it misses an end mark it would write one into the answer.

    Args:
        format: How the model marks reasoning; None: unknown.
        tokenizer: Of the model.

    Returns:
        The setting; None where vLLM can't bound the reasoning.
    """
    from vllm.config.reasoning import ReasoningConfig

    if format is None or format.forced:
        return None
    begin, end = format.begins[0], format.ends[0]
    if any(len(tokenizer.encode(mark, add_special_tokens=False)) != 1 for mark in (begin, end)):
        return None
    return ReasoningConfig(reasoning_start_str=begin, reasoning_end_str=end)


def load_parser(name: str, tokenizer: PreTrainedTokenizerBase) -> "VLLMReasoning | None":
    """Find vLLM's parser of a family.

    Args:
        name: A `reasoning_parser` setting.
        tokenizer: Of the model.

    Returns:
        The parser; None where vLLM has none for a family that this project knows, or none is named.

    Raises:
        ModelLoadError: The name is unknown, or the parser doesn't fit the tokenizer.
    """
    from vllm.reasoning import ReasoningParserManager

    known = ReasoningParserManager.list_registered()
    if name in known:
        return VLLMReasoning(name, tokenizer)
    if name in (AUTO, *FAMILIES):
        return None
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f", expected {AUTO} or one of {', '.join(known)}"
    raise ModelLoadError(f"reasoning_parser: the installed vLLM has no parser {name!r}{hint}")


class VLLMReasoning:
    """One of vLLM's reasoning parsers."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the parser.

        Args:
            name: Its name in vLLM's registry.
            tokenizer: Of the model.

        Raises:
            ModelLoadError: It doesn't fit the tokenizer.
        """
        from vllm.reasoning import ReasoningParserManager

        self._tokenizer = tokenizer
        self._class = ReasoningParserManager.get_reasoning_parser(name)
        try:
            self._class(tokenizer)
        except Exception as error:  # a token that the parser looks for is missing
            raise ModelLoadError(
                f"reasoning_parser: {name} doesn't fit the model's tokenizer: {one_line(error)}"
            ) from error

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

    def split(self, text: str) -> tuple[str | None, str]:
        """Reasoning and answer of a whole text; None for no reasoning."""
        if self._ended:
            return None, text
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        reasoning, content = self._parser.extract_reasoning(text, ChatCompletionRequest(messages=[]))
        return reasoning or None, (content or "").lstrip()

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

    def _pieces(self, delta: Any) -> Iterator[str | ReasoningDelta]:
        """What vLLM has found, without the blanks in front of the answer."""
        if delta is not None and delta.reasoning:
            yield ReasoningDelta(delta.reasoning)
        if delta is not None and delta.content:
            content = delta.content if self._answering else delta.content.lstrip()
            self._answering |= bool(content)
            if content:
                yield content
