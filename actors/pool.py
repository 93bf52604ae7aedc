"""Many replicas of a scorer that look like one: a request's matchups go to all, and requests share batches.

Matchups of all requests wait in one queue. Whenever replicas are free, what waits is cut into as many even shares
as there are replicas, and each free one takes a share: a request alone is spread over all, many at once are scored
together. A replica that fails gives its share back and is left alone until it is ready again, so its death costs a
retry, not a request. Asyncio only: how a replica is reached is not known here.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers import Score, Traits

SHARE_CHARACTERS = 200_000  # about 200 pairs: enough for a GPU's batch, and a later request doesn't wait for long
RETRIES = 3
ALONE_AFTER = 2  # failures; what kills a replica by itself must not take others' matchups with it


class PoolError(BlendError):
    """No replica could score a matchup."""


class Replica(Protocol):
    """One scorer, wherever it runs."""

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """As `Scorer.score`; raises whatever it likes when the replica or the way to it is broken."""
        ...

    async def ready(self) -> None:
        """Return once the replica can score again; raise when it never will."""
        ...


@dataclass(eq=False, slots=True)
class _Waiting:
    matchup: Matchup
    size: int
    score: asyncio.Future[Score]
    failures: int = 0


class Pool:
    """Replicas of one scorer, as one `Scorer`. It belongs to the event loop of its first call."""

    def __init__(
        self, replicas: Sequence[Replica], traits: Traits, *, share_characters: int = SHARE_CHARACTERS
    ) -> None:
        """share_characters: of prompt and answers, in one call of a replica at most (or one matchup)."""
        if not replicas:
            raise ValueError("a pool needs at least one replica")
        self.traits = traits
        self._share = share_characters
        self._idle: deque[Replica] = deque(replicas)
        self._alive = len(replicas)
        self._waiting: deque[_Waiting] = deque()
        self._dispatching = False
        self._tasks: dict[asyncio.Task[None], list[_Waiting]] = {}  # by what works on it
        self._lost = ""

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """As `Scorer.score`. Cancelling the call takes what still waits off the queue. Raises PoolError."""
        loop = asyncio.get_running_loop()
        mine = [_Waiting(matchup, _size(matchup), loop.create_future()) for matchup in matchups]
        self._waiting.extend(mine)
        self._dispatch_soon()
        try:
            return list(await asyncio.gather(*(waiting.score for waiting in mine)))
        finally:  # whatever ended it: nobody waits for these any more
            for waiting in mine:
                waiting.score.cancel()

    async def check_health(self) -> None:
        """Raise PoolError when all replicas are lost."""
        if not self._alive:
            raise PoolError(f"all replicas are lost: {self._lost}")

    async def close(self) -> None:
        """Calls still open fail, and so do later ones. The replicas belong to others and are left as they are."""
        self._idle.clear()
        self._alive, self._lost = 0, "the pool is closed"
        self._fail(self._waiting, self._lost)
        for task, share in self._tasks.items():
            task.cancel()
            self._fail(share, self._lost)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _dispatch_soon(self) -> None:
        """Dispatch after what the loop has to do now, so that requests of one moment are dispatched together."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.score.done())  # cancelled
        if not self._alive:
            self._fail(self._waiting, f"all replicas are lost: {self._lost}")
            self._waiting.clear()
        while self._idle and self._waiting and self._waiting[0].failures >= ALONE_AFTER:
            self._start([self._waiting.popleft()])
        if not self._idle or not self._waiting:
            return
        head = list(islice(self._waiting, _fitting(self._waiting, self._share * self._alive)))
        shares = even_shares([waiting.size for waiting in head], self._alive)
        taken: set[int] = set()
        for share in shares[: len(self._idle)]:
            self._start([head[i] for i in share])
            taken.update(share)
        rest = [waiting for i, waiting in enumerate(head) if i not in taken]
        self._waiting = deque([*rest, *islice(self._waiting, len(head), None)])

    def _start(self, share: list[_Waiting]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(self._idle.popleft(), share))
        self._tasks[task] = share
        task.add_done_callback(self._tasks.pop)

    async def _run(self, replica: Replica, share: list[_Waiting]) -> None:
        try:
            scores = await replica.score([waiting.matchup for waiting in share])
            for waiting, score in zip(share, scores, strict=True):
                if not waiting.score.done():
                    waiting.score.set_result(score)
        except Exception as error:  # whatever a replica, or the way to it, raises
            self._give_back(share, error)
            try:
                await replica.ready()
            except Exception as lost:
                self._alive -= 1
                self._lost = one_line(lost)
                self._dispatch_soon()
                return
        self._idle.append(replica)
        self._dispatch_soon()

    def _give_back(self, share: list[_Waiting], error: Exception) -> None:
        for waiting in share:
            waiting.failures += 1
        self._fail([waiting for waiting in share if waiting.failures > RETRIES], one_line(error))
        self._waiting.extendleft(waiting for waiting in reversed(share) if waiting.failures <= RETRIES)
        self._dispatch_soon()

    def _fail(self, waiting: Iterable[_Waiting], reason: str) -> None:
        for each in waiting:
            if not each.score.done():
                each.score.set_exception(PoolError(f"the ranker failed: {reason}"))


def _size(matchup: Matchup) -> int:
    """Characters, near enough to tokens to share work evenly, and the markers between the texts."""
    return sum(map(len, matchup.prompt.texts())) + len(matchup.left) + len(matchup.right) + 16


def _fitting(waiting: Iterable[_Waiting], characters: int) -> int:
    """How many from the front have at most that size together; at least one."""
    count = 0
    for each in waiting:
        characters -= each.size
        if characters < 0 and count:
            break
        count += 1
    return count


def even_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indexes of `sizes` in at most `count` shares of about equal sums, none empty, the largest sum first.

    Longest processing time first (Graham 1969): at most a third above the best possible.
    """
    shares: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(min(count, len(sizes)))]
    heapq.heapify(shares)
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        total, number, share = shares[0]
        share.append(i)
        heapq.heapreplace(shares, (total + sizes[i], number, share))
    return [share for _, _, share in sorted(shares, reverse=True)]
