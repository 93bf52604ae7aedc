"""Separates the reasoning that an LLM writes before its answer from the answer, streamed or whole.

Formats are data (`reasoning_formats`). A begin mark that the chat template writes is part of an engine's text. An
endpoint's template is unknown: its server has to separate the two, as in OpenAI's API (for vLLM:
--reasoning-parser), or send the begin mark; or its settings name the family.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from enum import Enum, auto

from llm_blender_ray.actors.engines import Completion, Engine, Piece, ReasoningDelta
from llm_blender_ray.actors.engines.reasoning_formats import REASONING_FORMATS, ReasoningFormat, formats_of
from llm_blender_ray.actors.engines.wrapper import EngineWrapper
from llm_blender_ray.actors.errors import RejectedError
from llm_blender_ray.actors.records import Message, is_blank
from llm_blender_ray.configs.reasoning import AUTO
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

    def __init__(self, formats: Sequence[ReasoningFormat] = REASONING_FORMATS, *, implied: bool = False) -> None:
        """Start before the first piece.

        Args:
            formats: Formats in which the text may mark reasoning.
            implied: The text begins within reasoning of the first format, whose begin mark it may lack. Without an
                end mark it is an answer all the same.
        """
        self._formats = formats
        self._implied = replace(formats[0], tentative=True) if implied else None
        self._begins = tuple(begin for format in formats for begin in format.begins)
        self._place = _Place.START
        self._format: ReasoningFormat | None = None  # of the last reasoning
        self._reasoned = False
        self._held = ""  # may yet be, or end, reasoning
        self._thoughts = ""  # reasoning that has not been taken
        self._thought = False  # whether there has been any

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._place in (_Place.REASONING, _Place.HEADER)

    @property
    def past_reasoning(self) -> bool:
        """Whether the text so far has reasoning that has ended."""
        return self._reasoned and not self.reasoning

    @property
    def starting(self) -> bool:
        """Whether the text so far may yet become reasoning or an answer."""
        return self._place is _Place.START and not self._reasoned

    @property
    def forced_end(self) -> str:
        """Mark that would end the reasoning in which the text ends; "" where it doesn't end within any."""
        return self._format.forced_end if self._format and self._place is _Place.REASONING else ""

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
            if self._place is _Place.REASONING:
                self._think(held)
            return ""
        if self._place is _Place.ANSWER:
            self._held = held
            return held[: self._closing_at(whole=True)]
        return held.lstrip() if self._reasoned else held

    def take_reasoning(self) -> str:
        """The reasoning that has come since the last call, without the blanks around all of it."""
        taken = self._thoughts.rstrip()
        self._thoughts = self._thoughts[len(taken) :]
        return taken

    def _step(self) -> bool:
        """Pass the next mark. False when there is none, or it needs more text."""
        match self._place:
            case _Place.START:
                return self._begin()
            case _Place.REASONING:
                return self._reason()
            case _Place.HEADER:
                assert self._format
                return self._pass((self._format.header,), _Place.LEAD) is not None
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
        for format in self._formats:
            if text.startswith(format.begins):
                self._format, self._place = format, _Place.REASONING
                self._break()
                if not format.tentative and not format.inner:  # an inner mark may be one to end with
                    self._held = self._without_begin(text)
                return True
        if any(mark.startswith(text) for mark in (*self._begins, opening)):
            return False
        if self._implied and not self._reasoned:
            self._format, self._place = self._implied, _Place.REASONING
        else:
            self._place = _Place.LEAD if self._reasoned else _Place.ANSWER
        return True

    def _reason(self) -> bool:
        """Pass an end mark, or a mark within the reasoning."""
        assert self._format
        format = self._format
        inner = () if format.tentative else format.inner
        if (mark := self._pass((*format.ends, *inner), _Place.REASONING)) is None:
            if not format.tentative:
                at = _begun_at(self._held, (*format.ends, *inner))
                self._think(self._held[:at])
                self._held = self._held[at:]
            return False
        if mark in inner:
            self._break()
        else:
            self._reasoned = True
            self._place = _Place.HEADER if format.header else _Place.START
        return True

    def _pass(self, marks: tuple[str, ...], place: _Place) -> str | None:
        """Pass the text up to and with the first of these marks, which is returned."""
        found = min(((at, mark) for mark in marks if (at := self._held.find(mark)) >= 0), default=None)
        if found is None:
            return None
        at, mark = found
        if self._place is _Place.REASONING:
            self._think(self._held[:at])
        self._held, self._place = self._held[at + len(mark) :], place
        return mark

    def _without_begin(self, text: str) -> str:
        assert self._format
        text = text.lstrip()
        begin = next((mark for mark in self._format.begins if text.startswith(mark)), "")
        return text.removeprefix(begin)

    def _think(self, text: str) -> None:
        if self._format and self._format.tentative:
            text = self._without_begin(text)
        self._thoughts += text if self._thought else text.lstrip()
        self._thought = bool(self._thought or self._thoughts)

    def _break(self) -> None:
        """End a part of the reasoning: another one begins a new line."""
        if self._thought:
            self._thoughts = self._thoughts.rstrip() + "\n"

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
        return len(self._held) if whole else _begun_at(self._held, marks)


def _begun_at(text: str, marks: Iterable[str]) -> int:
    """Index at which one of the marks may begin that the end of the text cuts off; the text's length for none."""
    begun = (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
    return len(text) - max(begun, default=0)


class AnswersOnly(EngineWrapper):
    """An engine that separates its reasoning from its answers. Stop strings end the reasoning, too.

    See `actors.engines.Engine`.
    """

    def __init__(self, engine: Engine, parser: str = AUTO, *, implied: bool = False) -> None:
        """Wrap an engine.

        Args:
            engine: The engine.
            parser: A `reasoning_parser` setting.
            implied: Whether answers of a named family may lack its begin mark: a server's chat template has it.
        """
        super().__init__(engine)
        self._formats = formats_of(parser)
        self._implied = implied and not (self._formats[0].tentative or self._formats[0].inner)

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`.

        Raises:
            GenerationError: The answer ends within its reasoning.
        """
        completion = await self._engine.generate(messages, sampling)
        answer = self._filter()
        text = answer.add(completion.text) + answer.rest(cut=_is_cut(completion))
        return _checked(completion, text, answer.take_reasoning(), unfinished=answer.reasoning)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`. Raises as `generate` does."""
        answer = self._filter()
        text = reasoning = ""
        async with aclosing(self._engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ReasoningDelta):
                    yield piece
                    continue
                last = piece if isinstance(piece, Completion) else None
                new = answer.add(piece) if isinstance(piece, str) else answer.rest(cut=_is_cut(piece))
                if thought := answer.take_reasoning():
                    reasoning += thought
                    yield ReasoningDelta(thought)
                text += new
                if new:
                    yield new
                if last:
                    yield _checked(last, text, reasoning, unfinished=answer.reasoning)

    def _filter(self) -> AnswerFilter:
        return AnswerFilter(self._formats, implied=self._implied)


def _is_cut(completion: Completion) -> bool:
    return completion.finish_reason == "length"


def _checked(completion: Completion, text: str, reasoning: str, *, unfinished: bool) -> Completion:
    """The answer, with the reasoning that was found in it, or that the engine itself has separated."""
    cut = _is_cut(completion)
    if unfinished or (cut and completion.reasoning and is_blank(text)):
        cure = "; raise sampling.max_tokens" if cut else ""
        raise RejectedError(f"the answer ends within its reasoning{cure}").with_usage(completion.usage)
    parts = [part for part in (completion.reasoning, reasoning) if part]
    return replace(completion, text=text, reasoning="\n".join(parts) or None)
