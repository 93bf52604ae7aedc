"""Engines: implementations of one protocol that run LLMs, each in a module with its own heavy import.

An engine answers one prompt per call and is called many times at once: batching, queueing and bounds on what
is in flight are the engine's own business, so bulk and online use it alike, and one prompt's failure is one
exception.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from llm_blender_ray.actors.records import FinishReason, Message, TokenLogprob
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.reasoning import AUTO
from llm_blender_ray.configs.schema import LocalLLM, ModelSettings, Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One LLM's answer to one prompt. Token counts are None where an endpoint doesn't report them.

    Attributes:
        completion_tokens: Tokens of reasoning and answer.
        candidates_read: Of a fuser's answer: how many of the candidates fitted its input, the best ones; None: all.
        reasoning: What the LLM has reasoned before the answer; None for nothing.
        reasoning_tokens: Those of the completion's tokens that are reasoning.
        logprobs: One for each completion token, reasoning and the end token included; None: not asked for.
        cached_prompt_tokens: Those of the prompt's tokens that came from a prefix cache; None: not reported.
        discarded: Calls before this one whose answers were thrown away.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    candidates_read: int | None = None
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_prompt_tokens: int | None = field(default=None, compare=False)
    discarded: TokenUsage = field(default=TokenUsage(), compare=False)

    @property
    def usage(self) -> TokenUsage:
        """Usage of the call and of those before it."""
        own = (self.prompt_tokens, self.completion_tokens, self.cached_prompt_tokens, self.reasoning_tokens)
        return self.discarded + TokenUsage.of_call(*own)

    def after(self, discarded: TokenUsage) -> "Completion":
        """The same answer after more calls whose answers were thrown away."""
        return replace(self, discarded=discarded + self.discarded)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A streamed piece of what an LLM reasons before its answer."""

    text: str


Piece = str | ReasoningDelta | Completion  # of a stream; a text is the answer's


class Engine(Protocol):
    """One LLM, loaded and ready. It belongs to the event loop of its first call."""

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """Answer one chat. Cancelling the call stops the work on it.

        The text may begin with marked reasoning. A mark that the chat template writes (`<think>`) is part of it.

        Raises:
            GenerationError: This prompt gets no answer; others are not affected.
            PromptError: It never will.
        """
        ...

    def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """The same answer as it is made: pieces of text, none empty, then the Completion whose text they are.

        Reasoning that the engine itself separates comes in pieces of its own.

        Text that may yet become part of a stop string is held back. Raises as `generate` does, also in the
        middle. Closing the iterator, or cancelling its reader, stops the work.
        """
        ...

    async def check_health(self) -> None:
        """Raise BlendError when the engine can't answer any more, so that its actor has to be replaced."""
        ...

    async def close(self) -> None:
        """Free what the engine holds (processes, threads, connections). Calls still open fail."""
        ...


class AdaptingEngine(Engine, Protocol):
    """An engine of one model and of its adapters, each of which answers as another LLM."""

    async def generate(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """Answer with one of the adapters that the settings name; None: without any."""
        ...

    def stream(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Stream the same answer."""
        ...


def load_shared_engine(model: ModelSettings) -> Engine | None:
    """Load the engine that the members of a model of a config share; None where there is one member.

    Raises:
        ModelLoadError: The model or one of its adapters can't be used.
    """
    return None if len(model.members) == 1 else model.load()


def load_engine(model: ModelSettings, shared: Engine | None = None) -> Engine:
    """Load the engine of a base LLM: seconds to minutes.

    Args:
        model: The settings of the LLM.
        shared: Engine that the LLM shares with others, as their settings loaded it; None: it gets its own.

    Returns:
        The engine. It separates reasoning from its answers, unless the settings keep it in them.

    Raises:
        ModelLoadError: The LLM cannot be used.
    """
    from llm_blender_ray.actors.engines.adapted_engine import AdaptedEngine
    from llm_blender_ray.actors.engines.fitting_engine import FittingEngine
    from llm_blender_ray.actors.engines.reasoning import AnswersOnly

    loaded: Any = shared or model.load()
    if isinstance(model, LocalLLM) and model.adapter is not None:
        loaded = AdaptedEngine(loaded, model.adapter)
    engine = FittingEngine(loaded, model.sampling.max_tokens)
    if model.keep_reasoning:
        return engine
    named = model.reasoning_parser != AUTO
    return AnswersOnly(engine, model.reasoning_parser, implied=named and not isinstance(model, LocalLLM))
