"""A base LLM as the pipelines use it: every prompt gets a candidate.

What fails for one prompt is that candidate's `error`; only a model that doesn't load raises.
"""

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llm_blender_ray.actors.budget import BudgetError, charge_to
from llm_blender_ray.actors.engines import Completion, Engine, ReasoningDelta, load_engine, load_shared_engine
from llm_blender_ray.actors.errors import (
    BLANK,
    GenerationError,
    PermanentError,
    PromptError,
    RejectedError,
    TooLongError,
    one_line,
    usage_of_error,
)
from llm_blender_ray.actors.records import Candidate, Message, Prompt, Refusal, is_blank
from llm_blender_ray.configs.schema import ModelSettings, Sampling, SamplingOverrides

_log = logging.getLogger(__name__)


class Generator:
    """A base LLM with its own system prompt and sampling settings."""

    def __init__(self, model: ModelSettings, shared: Engine | None = None) -> None:
        """Load the model: seconds to minutes.

        Args:
            model: Settings of the LLM.
            shared: See `engines.load_engine`.

        Raises:
            ModelLoadError: The model can't be used.
        """
        self.name = model.name
        self.samples = model.samples
        self._system_prompt = model.system_prompt
        self._sampling = model.sampling
        self._include_reasoning = model.include_reasoning
        self._engine = load_engine(model, shared)

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        """Answer a prompt. Concurrent calls are batched by the engine.

        Args:
            prompt: The prompt.
            sample: Which of several answers to the prompt, from 0; with a seed in the settings each is
                reproducible.
            change: Changes of the sampling settings for this answer.

        Returns:
            The candidate, with `error` in place of `text` if there is none.
        """
        charge_to(prompt.payer)
        try:
            completion = await self._engine.generate(*self._asked(prompt, sample, change))
        except Exception as error:  # a row's failure must not end the run; CancelledError passes
            return self._failed(prompt, error)
        return self._candidate(completion)

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        """Stream the same answer: pieces of its reasoning and its text, then the candidate.

        If the answer breaks off, the candidate has the error and no text. Closing the iterator stops the work.
        """
        candidate: Candidate
        charge_to(prompt.payer)
        try:
            async with aclosing(self._engine.stream(*self._asked(prompt, sample, change))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Completion):
                        candidate = self._candidate(piece)
                    else:
                        yield piece
        except Exception as error:  # as above; GeneratorExit passes too
            candidate = self._failed(prompt, error)
        yield candidate

    def _asked(
        self, prompt: Prompt, sample: int, change: SamplingOverrides | None
    ) -> tuple[list[Message], Sampling]:
        sampling = change.of(self._sampling) if change else self._sampling
        return prompt.chat(self._system_prompt), sampling.nth(sample)

    def _candidate(self, completion: Completion) -> Candidate:
        """The answer as a candidate; a blank one is an error."""
        if is_blank(completion.text):
            cut = completion.finish_reason == "length"
            why = f"{BLANK}, cut at sampling.max_tokens" if cut else BLANK
            return Candidate(model=self.name, error=why, rejected=True, usage=completion.usage)
        return Candidate(
            model=self.name,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            extra=_on_demand(completion, include_reasoning=self._include_reasoning),
            reasoning=completion.reasoning,
            reasoning_tokens=completion.reasoning_tokens,
            logprobs=completion.logprobs,
            usage=completion.usage,
        )

    def _failed(self, prompt: Prompt, error: Exception) -> Candidate:
        if not isinstance(error, GenerationError):
            _log.error("%s failed on prompt %s", self.name, prompt.id, exc_info=error)
        refused: Refusal | None = "other" if isinstance(error, PromptError) else None
        if isinstance(error, TooLongError):
            refused = "too long"
        return Candidate(
            model=self.name,
            error=one_line(error),
            refused=refused,
            permanent=isinstance(error, PermanentError),
            rejected=isinstance(error, RejectedError),
            unpaid=isinstance(error, BudgetError),
            usage=usage_of_error(error),
        )

    async def check_health(self) -> None:
        """Check that the model can still answer.

        Raises:
            BlendError: It cannot, so that its actor has to be replaced.
        """
        await self._engine.check_health()

    async def close(self) -> None:
        """Free the model."""
        await self._engine.close()


def load_generators(model: ModelSettings) -> dict[str, Generator]:
    """Load a model of a config, and with it all base LLMs that share its engine.

    Returns:
        Each LLM by its name.

    Raises:
        ModelLoadError: The model or one of its adapters can't be used.
    """
    shared = load_shared_engine(model)
    return {member.name: Generator(member, shared) for member in model.members}


def _on_demand(completion: Completion, *, include_reasoning: bool) -> str | None:
    """Fields of `records.ON_DEMAND_TYPES` as a candidate's `extra`; None for none."""
    fields: dict[str, Any] = {}
    if include_reasoning and completion.reasoning is not None:
        fields["reasoning_content"] = completion.reasoning
        fields["reasoning_tokens"] = completion.reasoning_tokens
    if completion.logprobs is not None:
        fields["logprobs"] = [token.to_row() for token in completion.logprobs]
    return json.dumps(fields) if fields else None
