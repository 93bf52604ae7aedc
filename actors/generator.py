"""One base LLM as the pipelines see it: a prompt goes in, a candidate comes out, always.

What fails for one prompt is that candidate's `error`; only a model that doesn't load raises.
"""

import logging

from actors.engines import load_engine
from actors.errors import GenerationError, one_line
from actors.records import Candidate, Prompt
from configs.schema import Model

log = logging.getLogger(__name__)


class Generator:
    """A base LLM with its own system prompt and sampling settings."""

    def __init__(self, model: Model) -> None:
        """Load the model: seconds to minutes. Raises ModelLoadError."""
        self.name = model.name
        self._system_prompt = model.system_prompt
        self._sampling = model.sampling
        self._engine = load_engine(model)

    async def answer(self, prompt: Prompt, sample: int = 0) -> Candidate:
        """The model's candidate for the prompt, with `error` in place of `text` where it has none.

        sample: which of several answers to the prompt, from 0; with a seed in the settings each is reproducible.
        To be called many times at once: the engine batches what is waiting.
        """
        try:
            sampling = self._sampling.nth(sample)
            completion = await self._engine.generate(prompt.chat(self._system_prompt), sampling)
        except GenerationError as error:
            return Candidate(model=self.name, error=one_line(error))
        except Exception as error:  # a row's failure must not end the run; CancelledError passes
            log.exception("%s failed on prompt %s", self.name, prompt.id)
            return Candidate(model=self.name, error=one_line(error))
        return Candidate(
            model=self.name,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )

    async def check_health(self) -> None:
        """Raise BlendError when the model can't answer any more, so that its actor has to be replaced."""
        await self._engine.check_health()

    async def close(self) -> None:
        """Free what the model holds."""
        await self._engine.close()
