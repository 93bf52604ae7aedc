"""People's votes on the service's answers: cast over HTTP, kept as rows for `blend evaluate` and `blend rank`.

Whoever votes names a request and two of its answers, so the blends that may be voted on are remembered here, and
one `Ballots` must serve all gateways. A vote is on the disk when it is acknowledged; one that fails leaves nothing
behind.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter
from pydantic import BaseModel, Field

from actors.errors import BlendError
from actors.records import RESULT_COLUMNS, Blend
from pipelines.rows import EXTRA, to_json, write_row
from pipelines.votes import FUSED, Side, Verdict

REMEMBERED = 1000  # blends that may still be voted on


class Vote(Verdict):
    """What a person says of two answers to one request. id: the request's, the answer's header `x-request-id`."""

    id: Annotated[str, Field(min_length=1, max_length=128)]


class VoteError(BlendError):
    """The vote isn't counted."""


class UnknownAnswerError(VoteError):
    """There is no such answer to vote on: an unknown id, or no text on a side (HTTP 404)."""


class VotedBeforeError(VoteError):
    """There is a vote on these two answers (HTTP 409)."""


class VoteLostError(VoteError):
    """The vote could not be written (HTTP 503)."""


class BallotBox(Protocol):
    """`Ballots`, here or elsewhere."""

    async def remember(self, request_id: str, blend: Blend) -> None:
        """From now on this blend can be voted on under its request's id, in place of an older one of that id."""
        ...

    async def cast(self, vote: Vote) -> None:
        """Keep the vote. Raises VoteError."""
        ...


@dataclass
class _Open:
    """A blend that can be voted on, and the pairs that somebody has voted on."""

    blend: Blend
    voted: set[frozenset[Side]] = field(default_factory=set)


class Ballots:
    """Votes in a JSONL file: the rows contract's rows, with the column `vote`."""

    def __init__(self, file: str, remembered: int = REMEMBERED) -> None:
        """remembered: the last so many blends can be voted on. Raises BlendError when the file can't be written."""
        self._file, self._remembered = Path(file), remembered
        self._open: OrderedDict[str, _Open] = OrderedDict()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._opened())
        except OSError as error:
            raise BlendError(f"serve.votes {file}: {error.strerror}") from error

    async def remember(self, request_id: str, blend: Blend) -> None:
        """See `BallotBox`."""
        self._open.pop(request_id, None)
        self._open[request_id] = _Open(blend)
        if len(self._open) > self._remembered:
            self._open.popitem(last=False)

    async def cast(self, vote: Vote) -> None:
        """See `BallotBox`. Raises UnknownAnswerError, VotedBeforeError, VoteLostError."""
        known = self._open.get(vote.id)
        if known is None:
            raise UnknownAnswerError(
                f"no answer to vote on under the id {vote.id!r}: only those asked for with `vote`, the last "
                f"{self._remembered}, can be voted on"
            )
        for side in vote.sides:
            _check(known.blend, side)
        pair = frozenset(vote.sides)
        if pair in known.voted:
            raise VotedBeforeError("these two answers have been voted on")
        known.voted.add(pair)
        try:
            await asyncio.to_thread(self._append, to_json(_row(known.blend, vote)).encode() + b"\n")
        except OSError as error:
            known.voted.discard(pair)
            raise VoteLostError(f"the vote could not be written: {error.strerror}") from error

    def _opened(self) -> int:
        """The file, for reading and appending; only its owner may read what people asked."""
        return os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _append(self, line: bytes) -> None:
        """All of the line, on the disk, or nothing of it (OSError)."""
        file = self._opened()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # another thread, or another service with the same file
            size = os.lseek(file, 0, os.SEEK_END)
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash has cut the last one short
            try:
                if os.write(file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)


def _check(blend: Blend, side: Side) -> None:
    """Raise UnknownAnswerError unless the blend has a text there."""
    if side == FUSED:
        if blend.fused is None:
            raise UnknownAnswerError("there is no fused answer to vote on")
    elif side >= len(blend.candidates) or blend.candidates[side].text is None:
        raise UnknownAnswerError(f"there is no text of candidate {side} to vote on")


def _row(blend: Blend, vote: Vote) -> dict[str, Any]:
    """The blend as a row of the rows contract, with its vote."""
    prompt, ranking = blend.prompt, blend.ranking
    cast = {**vote.model_dump(exclude={"id"}), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    row = {
        "id": vote.id,
        "instruction": prompt.instruction if prompt.messages is None else None,
        "input": prompt.input or None,
        "messages": prompt.messages,
        "candidates": [candidate.to_row() for candidate in blend.candidates],
        "ranking": ranking.order if ranking else None,
        "scores": ranking.scores if ranking else None,
        "comparisons": ranking.comparisons if ranking else None,
        "logits": ranking.logits if ranking else None,
        "fused": blend.fused,
        "fused_from": blend.fused_from,
        EXTRA: json.dumps({"vote": cast}),
        "error": None,
    }
    return write_row(row, tuple(RESULT_COLUMNS))


class Kept(BaseModel):
    """A vote that was counted."""

    object: Literal["vote"] = "vote"
    id: str


def router(ballots: BallotBox) -> APIRouter:
    """`POST /v1/votes`."""
    routes = APIRouter()

    @routes.post("/v1/votes", status_code=201, operation_id="cast_vote")
    async def cast_vote(vote: Vote) -> Kept:
        """Say which of two answers to a request is better."""
        await ballots.cast(vote)
        return Kept(id=vote.id)

    return routes
