"""Parts of a blend as handles of their Ray Serve deployments.

A replica's death during a call costs a second call, not the answer: calls have no effect but their result. A stream
that breaks off is restarted, and the text that was sent already is skipped, if it is the same.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RaySystemError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from llm_blender_ray.actors.budget import Payer
from llm_blender_ray.actors.engines import Completion, Piece, ReasoningDelta
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend, Candidate, Prompt
from llm_blender_ray.cluster.ray_internals import is_removed
from llm_blender_ray.configs.schema import SamplingOverrides
from llm_blender_ray.pipelines.serve.ballots import Vote
from llm_blender_ray.pipelines.serve.budgets import JointReservation

_T = TypeVar("_T")

MAX_ATTEMPTS = 3
BUSY = "it has more to do than it can, or is not up"
REMOVED = "it is no part of the service any more"
REMOVED_POLL_S = 0.5
REPLICA_LOST = (RayActorError, RaySystemError)  # the replica, or the connection to it


class PartError(BlendError):
    """A part of the service is unavailable."""


class RemoteMember:
    """See `pipelines.online.protocols.Member`."""

    def __init__(self, name: str, samples: int, handle: DeploymentHandle, *, shared: bool = False) -> None:
        """Call a base LLM.

        Args:
            name: Its name.
            samples: Number of its answers to each prompt.
            handle: Its deployment.
            shared: Whether other members are in the same deployment, which then needs the name.
        """
        self.name, self.samples = name, samples
        self._handle, self._named = handle, (name,) if shared else ()

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        """See `pipelines.online.protocols.Member`."""
        candidate: Candidate = await call(self._handle.answer, prompt, sample, change, *self._named)
        return candidate

    def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        """See `pipelines.online.protocols.Member`."""
        return _text_stream(self._handle, prompt, sample, change, *self._named)


class RemoteFuser:
    """See `actors.fusers.FuserPart`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        """See `actors.fusers.FuserPart`."""
        completion: Completion = await call(self._handle.fuse, prompt, candidates, change)
        return completion

    def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See `actors.fusers.FuserPart`."""
        return _text_stream(self._handle, prompt, candidates, change)


class RemoteBallots:
    """See `pipelines.serve.ballots.BallotBox`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def remember(self, request_id: str, blend: Blend) -> None:
        """See `pipelines.serve.ballots.BallotBox`."""
        await call(self._handle.remember, request_id, blend)

    async def cast(self, vote: Vote) -> None:
        """See `pipelines.serve.ballots.BallotBox`."""
        await call(self._handle.cast, vote)


class RemoteServiceLedger:
    """See `pipelines.serve.budgets.SharedLedger`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def reserve(self, payer: Payer, amount: int, seconds: float) -> JointReservation | str:
        """See `pipelines.serve.budgets.ServiceLedger`. What a ledger that died had reserved counts as spent."""
        found: JointReservation | str = await call(self._handle.reserve, payer, amount, seconds)
        return found

    async def settle(self, reservation: JointReservation, amount: int) -> None:
        """See `pipelines.serve.budgets.ServiceLedger`."""
        await call_once(self._handle.settle, reservation, amount)


@contextlib.contextmanager
def original_errors() -> Iterator[None]:
    """Raise what a replica raised with its own message, in place of Ray's traceback."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise


async def call(method: Any, *arguments: Any) -> Any:
    """Call a replica; one that dies costs another attempt.

    Raises:
        PartError: No replica can be called.
        Exception: What the replica raised.
    """
    for left in reversed(range(MAX_ATTEMPTS)):
        try:
            return await call_once(method, *arguments)
        except REPLICA_LOST as error:
            if not left:
                raise PartError("its replicas died") from error
    raise AssertionError("unreachable")


async def call_once(method: Any, *arguments: Any) -> Any:
    """Call a replica. Cancelling the call cancels the replica's work.

    Raises:
        PartError: No replica can be called.
        RayError: One of `REPLICA_LOST`: the replica died.
        Exception: What the replica raised.
    """
    response = method.remote(*arguments)
    try:
        with original_errors(), _until_removed(method, response):
            return await response
    except asyncio.CancelledError:
        response.cancel()  # otherwise the replica would finish it
        raise
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise PartError(BUSY) from error


@contextlib.contextmanager
def _until_removed(handle: DeploymentHandle, call: Any) -> Iterator[None]:
    """Cancel a call within the block when an update removes the deployment.

    Its replicas finish the calls that they have. One that came after, before the deployment was gone, is held by
    Ray Serve without limit.

    Raises:
        PartError: The deployment was removed.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    removed = False

    def look() -> None:
        nonlocal removed, timer
        removed = is_removed(handle)
        if removed:
            call.cancel()
        else:
            timer = loop.call_later(REMOVED_POLL_S, look)

    look()
    try:
        yield
    except (asyncio.CancelledError, RequestCancelledError) as error:
        task = asyncio.current_task()
        if not removed or (task is not None and task.cancelling()):
            raise
        raise PartError(REMOVED) from error
    finally:
        if timer:
            timer.cancel()


async def _stream(method: Any, *arguments: Any) -> AsyncGenerator[Any, None]:
    """Stream of a replica; closing it cancels the work."""
    items = method.options(stream=True).remote(*arguments)
    done = False
    try:
        with original_errors(), _until_removed(method, items):
            async for item in items:
                yield item
        done = True
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise PartError(BUSY) from error
    finally:
        if not done:
            items.cancel()


async def _text_stream(handle: DeploymentHandle, *arguments: Any) -> AsyncGenerator[Any, None]:
    """Pieces of reasoning and text and the final item, across deaths of replicas."""
    said = {str: "", ReasoningDelta: ""}
    for left in reversed(range(MAX_ATTEMPTS)):
        at = {str: 0, ReasoningDelta: 0}  # characters that this attempt has repeated
        try:
            async with contextlib.aclosing(_stream(handle.stream, *arguments)) as pieces:
                async for piece in pieces:
                    kind = type(piece)
                    if kind not in said:
                        yield piece
                        return
                    text = piece.text if isinstance(piece, ReasoningDelta) else piece
                    known = said[kind][at[kind] : at[kind] + len(text)]
                    if not text.startswith(known):
                        raise PartError("its replica died, and another one began another answer")
                    at[kind] += len(text)
                    if new := text[len(known) :]:
                        said[kind] += new
                        yield kind(new)
        except REPLICA_LOST as error:
            if not left:
                raise PartError("its replicas died") from error
