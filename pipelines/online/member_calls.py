"""Call of one member for one candidate, within its time: it always ends in a candidate."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from llm_blender_ray.actors.circuit_breaker import Call
from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.errors import one_line, usage_of_error
from llm_blender_ray.actors.records import Candidate
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.online.circuits import ending_call
from llm_blender_ray.pipelines.online.clock import in_time
from llm_blender_ray.pipelines.online.protocols import BlendRequest, Member


async def member_pieces(
    ask: BlendRequest,
    call: Call,
    member: Member,
    sample: int,
    follow: bool,
    limit: float | None,
    whole_s: float | None,
) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
    """Call a member.

    Args:
        ask: The request.
        call: Of its circuit breaker; it is ended.
        member: The member.
        sample: Which of its answers, from 0.
        follow: Whether to yield pieces of the answer.
        limit: Seconds that the member has.
        whole_s: See `circuits.ending_call`.

    Yields:
        Pieces of the answer if they are followed, then the candidate, whatever happens.
    """
    candidate: Candidate
    try:
        with ending_call(call, whole_s) as heard:
            if follow:
                stream = member.stream(ask.prompt, sample, ask.change)
                async with contextlib.aclosing(in_time(stream, limit)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Candidate):
                            candidate = piece
                        else:
                            heard.set()
                            yield piece
            else:
                async with asyncio.timeout(limit):
                    candidate = await member.answer(ask.prompt, sample, ask.change)
            call.ended(candidate)
    except TimeoutError as error:
        told = one_line(error) if limit is None else f"no answer within {limit:g} s"
        candidate = Candidate(member.name, error=told, usage=TokenUsage.given_up())
    except Exception as error:  # whatever a replica raises
        candidate = Candidate(member.name, error=one_line(error), usage=usage_of_error(error))
    yield candidate
