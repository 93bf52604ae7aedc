"""Fusers: implementations of one protocol that write one answer from the best candidates.

A fuser writes for one prompt per call and is called many times at once: batching is its own business, so bulk and
online use it alike.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from llm_blender_ray.actors.engines import Completion, Piece
from llm_blender_ray.actors.errors import BLANK, RejectedError
from llm_blender_ray.actors.records import Prompt, is_blank
from llm_blender_ray.configs.schema import FuserSettings, SamplingOverrides


class FuserPart(Protocol):
    """The part of a fuser that a blend needs: a fuser in this process, or a handle of replicas."""

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        """Write one answer. Cancelling the call stops the work on it.

        Args:
            prompt: The prompt.
            candidates: Texts, best first.
            change: Changes of the sampling settings. A fused answer follows `max_tokens` and `stop`, and `seed` if
                the fuser samples.

        Raises:
            GenerationError: There is no answer; other prompts are not affected.
        """
        ...

    def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Stream the same answer: non-empty pieces of text, then the Completion that consists of them.

        The answer of a beam search comes in one piece. Closing the iterator stops the work.

        Raises:
            GenerationError: See `fuse`.
        """
        ...


class Fuser(FuserPart, Protocol):
    """One model, loaded and ready. It belongs to the event loop of its first call."""

    async def check_health(self) -> None:
        """Check that the model can still write.

        Raises:
            BlendError: It cannot, so that its actor has to be replaced.
        """
        ...

    async def close(self) -> None:
        """Free the model. Open calls fail."""
        ...


def require_text(reply: Completion) -> Completion:
    """The reply.

    Raises:
        RejectedError: It is blank, so the best candidate is a better answer.
    """
    if is_blank(reply.text):
        raise RejectedError(BLANK).with_usage(reply.usage)
    return reply


async def skip_leading_blanks(stream: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The stream, with blank pieces of text held back until there is something to see.

    Raises:
        RejectedError: All of the answer is blank; none of its text has been let through then.
    """
    held: str | None = ""
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            if isinstance(piece, Completion):
                yield require_text(piece)
            elif held is None or not isinstance(piece, str):
                yield piece
            elif not is_blank(held := held + piece):
                yield held
                held = None


def load_fuser(settings: FuserSettings) -> Fuser:
    """Load a fuser: seconds to minutes.

    Args:
        settings: The settings of the fuser.

    Returns:
        The fuser.

    Raises:
        ModelLoadError: The fuser cannot be used.
    """
    fuser: Fuser = settings.load()
    return fuser
