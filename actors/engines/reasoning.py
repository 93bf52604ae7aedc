"""Strips the reasoning that an LLM writes before its answer, streamed or whole.

Formats are data (`reasoning_formats`). Where a chat template writes the begin mark itself, the LLM's text begins
within its reasoning. An endpoint's template is unknown: its server has to separate the two, as in OpenAI's API (for
vLLM: --reasoning-parser), or send the begin mark.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from enum import Enum, auto

from llm_blender_ray.actors.engines import Completion, Engine
from llm_blender_ray.actors.engines.reasoning_formats import REASONING_FORMATS, ReasoningFormat
from llm_blender_ray.actors.engines.wrapper import EngineWrapper
from llm_blender_ray.actors.errors import RejectedError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling

THINK_BEGIN, THINK_END = "<think>", "</think>"


class _Place(Enum):
    """State of the filter: its place in the text."""

    START = auto()  # reasoning or answer may follow
    REASONING = auto()
    HEADER = auto()  # within a long end mark
    LEAD = auto()  # blanks before the answer
    ANSWER = auto()


class AnswerFilter:
    """Filter of a text in pieces: passes on the answer, without the reasoning before it and the blanks between.

    How the text is cut makes no difference.
    """

    def __init__(self, opened: str = "") -> None:
        """Start before the first piece.

        Args:
            opened: Begin mark that the text lacks, because the prompt has it.
        """
        self._place = _Place.START
        self._format: ReasoningFormat | None = None  # of the last reasoning
        self._reasoned = False
        self._held = ""  # may yet be, or end, reasoning
        self.add(opened)

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._place in (_Place.REASONING, _Place.HEADER)

    def add(self, piece: str) -> str:
        """Take the next piece.

        Returns:
            What is the answer's for sure, now that it is here.
        """
        self._held += piece
        while self._step():
            pass
        if self._place is not _Place.ANSWER:
            return ""
        held = self._closing_at(whole=False)
        certain, self._held = self._held[:held], self._held[held:]
        return certain

    def rest(self, *, cut: bool = False) -> str:
        """End the text.

        Args:
            cut: Whether it ended before the LLM did, at its longest.

        Returns:
            What was held back and is the answer's after all.
        """
        if self._place is _Place.REASONING and self._format and self._format.tentative and not cut:
            self._place = _Place.LEAD
        held, self._held = self._held, ""
        if self.reasoning:
            return ""
        if self._place is _Place.ANSWER:
            self._held = held
            return held[: self._closing_at(whole=True)]
        return held.lstrip() if self._reasoned else held

    def _step(self) -> bool:
        """Pass the next mark. False when there is none, or it needs more text."""
        match self._place:
            case _Place.START:
                return self._begin()
            case _Place.REASONING:
                return self._end()
            case _Place.HEADER:
                assert self._format
                return self._pass((self._format.header,), _Place.LEAD)
            case _Place.LEAD:
                self._held = self._held.lstrip()
                if self._held:
                    self._place = _Place.ANSWER
        return False

    def _begin(self) -> bool:
        text = self._held.lstrip()
        opening = self._format.opening if self._format else ""
        if opening and text.startswith(opening):
            self._held, self._place = text.removeprefix(opening), _Place.LEAD
            return True
        for format in REASONING_FORMATS:
            if text.startswith(format.begins):
                self._format, self._place = format, _Place.REASONING
                return True
        if not any(mark.startswith(text) for mark in (*_BEGINS, opening)):
            self._place = _Place.LEAD if self._reasoned else _Place.ANSWER
            return True
        return False

    def _end(self) -> bool:
        assert self._format
        format = self._format
        if self._pass(format.ends, _Place.HEADER if format.header else _Place.START):
            self._reasoned = True
            return True
        if not format.tentative:
            self._held = self._held[1 - max(map(len, format.ends)) :]
        return False

    def _pass(self, marks: tuple[str, ...], place: _Place) -> bool:
        """Drop the text up to and with the first of these marks."""
        found = min(((at, mark) for mark in marks if (at := self._held.find(mark)) >= 0), default=None)
        if found is None:
            return False
        at, mark = found
        self._held, self._place = self._held[at + len(mark) :], place
        return True

    def _closing_at(self, *, whole: bool) -> int:
        """Find where the held text ends in a closing mark.

        Args:
            whole: Whether nothing follows; otherwise the beginning of a mark counts, too.

        Returns:
            An index; the text's length when there is none.
        """
        marks = self._format.closing if self._format else ()
        text = self._held.rstrip()
        if ends := [mark for mark in marks if text.endswith(mark)]:
            return len(text) - len(ends[0])
        if whole:
            return len(self._held)
        begun = (n for mark in marks for n in range(1, len(mark)) if self._held.endswith(mark[:n]))
        return len(self._held) - max(begun, default=0)


_BEGINS = tuple(begin for format in REASONING_FORMATS for begin in format.begins)


class AnswersOnly(EngineWrapper):
    """An engine without its reasoning. Tokens of the reasoning count, and stop strings end it, too.

    See `actors.engines.Engine`. While the LLM reasons there are no pieces.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        super().__init__(engine)
        self.opens_reasoning = ""

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`.

        Raises:
            GenerationError: The answer ends within its reasoning.
        """
        completion = await self._engine.generate(messages, sampling)
        answer = AnswerFilter(self._engine.opens_reasoning)
        text = answer.add(completion.text) + answer.rest(cut=completion.finish_reason == "length")
        return _checked(completion, text, answer)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See `actors.engines.Engine`. Raises as `generate` does."""
        answer = AnswerFilter(self._engine.opens_reasoning)
        text = ""
        async with aclosing(self._engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                new = (
                    answer.add(piece)
                    if isinstance(piece, str)
                    else answer.rest(cut=piece.finish_reason == "length")
                )
                text += new
                if new:
                    yield new
                if isinstance(piece, Completion):
                    yield _checked(piece, text, answer)


def _checked(completion: Completion, text: str, answer: AnswerFilter) -> Completion:
    if answer.reasoning:
        cure = "; raise sampling.max_tokens" if completion.finish_reason == "length" else ""
        raise RejectedError(f"the answer ends within its reasoning{cure}")
    return replace(completion, text=text)
