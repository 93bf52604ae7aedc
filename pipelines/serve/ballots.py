"""Votes of users on answers: cast over HTTP, stored as rows for `blend evaluate` and `blend rank`.

A vote names a request and two of its answers, so recent blends are remembered here, and one `Ballots` must serve
all gateways. An acknowledged vote is on the disk; one that fails leaves nothing behind.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import sys
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, model_validator

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import RESULT_COLUMNS, Blend
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, Verdict
from llm_blender_ray.pipelines.rows.schema import EXTRA, to_json, write_row
from llm_blender_ray.pipelines.serve.access import LOCAL
from llm_blender_ray.pipelines.serve.protocol import first_unknown

REMEMBERED = 1000  # blends open to votes
REMEMBERED_BYTES = 64 << 20  # of their texts
READ_BACK_BYTES = 64 << 20  # of the file's end, whose votes are known after a restart


class Vote(Verdict):
    """A user's judgement of two answers to one request. `id` is the request's, from the header `x-request-id`."""

    id: Annotated[str, Field(min_length=1, max_length=128)]

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        return first_unknown(value, cls.model_fields)


class VoteError(BlendError):
    """The vote is not counted."""


class UnknownAnswerError(VoteError):
    """There is no such answer: an unknown id, or no text on a side (HTTP 404)."""


class VotedBeforeError(VoteError):
    """These two answers already have a vote (HTTP 409)."""


class VoteLostError(VoteError):
    """The vote could not be written (HTTP 503)."""


class BallotBox(Protocol):
    """`Ballots`, local or remote."""

    async def remember(self, request_id: str, blend: Blend) -> None:
        """Open a blend to votes under its request's id, in place of an older one of that id.

        Pairs of that id that have a vote keep it: clients may choose ids, and one id has one vote a pair.

        Raises:
            VoteError: Its texts are longer than all that may be stored.
        """
        ...

    async def cast(self, vote: Vote) -> None:
        """Store a vote.

        Raises:
            UnknownAnswerError: There is no such answer.
            VotedBeforeError: These two answers already have a vote.
            VoteLostError: It could not be written.
        """
        ...


@dataclass
class _Open:
    """A blend open to votes, and the bytes of its texts."""

    blend: Blend
    bytes: int


class Ballots:
    """Votes in a JSONL file: the rows contract's rows, with the column `vote`."""

    def __init__(
        self, file: str, remembered: int = REMEMBERED, *, remembered_bytes: int = REMEMBERED_BYTES
    ) -> None:
        """Open the file.

        Args:
            file: File of the votes.
            remembered: Most blends open to votes.
            remembered_bytes: Most bytes of their texts together.

        Raises:
            BlendError: The file can't be written.
        """
        self._file, self._remembered, self._most_bytes = Path(file), remembered, remembered_bytes
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._bytes = 0
        self._voted: dict[str, set[frozenset[Side]]] = {}
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(self._opened())
            self._read_back()
        except OSError as error:
            raise BlendError(f"serve.votes {file}: {error.strerror}") from error

    async def remember(self, request_id: str, blend: Blend) -> None:
        """See `BallotBox`. A vote is on answers, without their reasoning."""
        blend = replace(blend, candidates=tuple(replace(one, reasoning=None) for one in blend.candidates))
        size = _size(blend)
        if size > self._most_bytes:
            raise VoteError(f"its texts have {size} bytes, and serve.limits.vote_bytes is {self._most_bytes}")
        self._forget(request_id)
        self._open[request_id] = _Open(blend, size)
        self._bytes += size
        while len(self._open) > self._remembered or self._bytes > self._most_bytes:
            self._forget(next(iter(self._open)))

    async def cast(self, vote: Vote) -> None:
        """See `BallotBox`."""
        known = self._open.get(vote.id)
        if known is None:
            raise UnknownAnswerError(
                f"no answer to vote on under the id {vote.id!r}: only those asked for with `vote`, the last "
                f"{self._remembered}, can be voted on"
            )
        for side in vote.sides:
            _check(known.blend, side)
        pair, voted = frozenset(vote.sides), self._voted.setdefault(vote.id, set())
        if pair in voted:
            raise VotedBeforeError("these two answers have been voted on")
        voted.add(pair)
        try:
            await asyncio.to_thread(self._append, to_json(_row(known.blend, vote)).encode() + b"\n")
        except OSError as error:
            voted.discard(pair)
            raise VoteLostError(f"the vote could not be written: {error.strerror}") from error

    def _forget(self, request_id: str) -> None:
        if old := self._open.pop(request_id, None):
            self._bytes -= old.bytes

    def _read_back(self) -> None:
        """Read which pairs have votes from before this process started."""
        with self._file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - READ_BACK_BYTES))
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a truncated line, or another program's
                    row = json.loads(line)
                    sides = frozenset((row["vote"]["left"], row["vote"]["right"]))
                    self._voted.setdefault(row["id"], set()).add(sides)

    def _opened(self) -> int:
        """The file, for reading and appending, accessible to its owner only: it has users' prompts."""
        file = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(PermissionError):  # another user's file
            os.fchmod(file, 0o600)
        return file

    def _append(self, line: bytes) -> None:
        """Append the whole line, durably, or nothing of it (OSError)."""
        file = self._opened()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # another thread, or another service with the same file
            size = os.lseek(file, 0, os.SEEK_END)
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash has truncated the last one
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


def _size(blend: Blend) -> int:
    """Approximate bytes of the blend's texts: one, two or four bytes a character, as in Python."""
    prompt = blend.prompt
    texts = [prompt.instruction, prompt.input, blend.fused, *(turn["content"] for turn in prompt.messages or ())]
    texts += [text for one in blend.candidates for text in (one.text, one.error, one.extra)]
    return sum(sys.getsizeof(text) for text in texts if text)


def _check(blend: Blend, side: Side) -> None:
    """Check that the blend has a text on a side.

    Raises:
        UnknownAnswerError: It has none.
    """
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


def id_of(caller: str | None, request_id: str) -> str:
    """Id under which a request's answers are remembered: callers choose request ids, and two may choose the same.

    Args:
        caller: Name of the request's API key; `local` or None without keys.
        request_id: The request's `x-request-id`.

    Returns:
        `NAME/ID`, or the request's id alone without keys.
    """
    return request_id if caller in (None, LOCAL) else f"{caller}/{request_id}"
