"""Pool of replicas of a scorer: a request's matchups are spread over all, and requests share batches.

Matchups of all requests wait in one queue. Whenever replicas are free, the queue is cut into as many even shares as
there are replicas, and each free one takes a share: a single request is spread over all, concurrent ones are scored
together. A replica that fails returns its share and is not used until it is ready again, so its death costs a
retry, not a request. A share whose requests have ended is cancelled. Asyncio only: the pool does not know how a
replica is reached.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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


class NoReplicaError(BlendError):
    """No replica can be reached, so that trying again is of no use."""


class Replica(Protocol):
    """One scorer, wherever it runs."""

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """As `Scorer.score`.

        Raises:
            NoReplicaError: No replica can be reached; the share fails at once.
            Exception: The replica or the way to it is broken; the share is tried again.
        """
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
        """Make a pool of one replica at least.

        Args:
            replicas: The replicas of the scorer; see `use`.
            traits: Traits of the scorer.
            share_characters: Upper limit of the characters of prompts and answers in one call of a replica (or it
                has one matchup).
        """
        self.traits = traits
        self._share = share_characters
        self._replicas: set[Replica] = set()
        self._idle: deque[Replica] = deque()
        self._busy: set[Replica] = set()
        self._waiting: deque[_Waiting] = deque()
        self._dispatching = False
        self._tasks: dict[asyncio.Task[None], list[_Waiting]] = {}  # by what works on it
        self._lost = ""
        self.use(replicas)

    def use(self, replicas: Sequence[Replica]) -> None:
        """Use these replicas from the next dispatch on; a busy one that is not among them finishes its share.

        Raises:
            ValueError: There are none.
        """
        if not replicas:
            raise ValueError("a pool needs at least one replica")
        if self._replicas == (wanted := set(replicas)):
            return
        kept = [replica for replica in self._idle if replica in wanted]
        new = [each for each in replicas if each not in self._replicas and each not in self._busy]
        self._replicas, self._idle = wanted, deque([*kept, *new])
        if self._waiting:
            self._dispatch_soon()

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """As `Scorer.score`. Cancelling the call removes its waiting matchups from the queue.

        Raises:
            PoolError: No replica could score a matchup.
        """
        loop = asyncio.get_running_loop()
        mine = [_Waiting(matchup, _size(matchup), loop.create_future()) for matchup in matchups]
        self._waiting.extend(mine)
        self._dispatch_soon()
        try:
            return list(await asyncio.gather(*(waiting.score for waiting in mine)))
        finally:  # however it ended: its matchups are no longer needed
            for waiting in mine:
                waiting.score.cancel()
            for task, share in self._tasks.items():
                if share and all(waiting.score.done() for waiting in share):
                    task.cancel()

    async def check_health(self) -> None:
        """Raise PoolError when all replicas are lost."""
        if not self._replicas:
            raise PoolError(f"all replicas are lost: {self._lost}")

    async def close(self) -> None:
        """Calls still open fail, and so do later ones. The replicas belong to others and are left as they are."""
        self._idle.clear()
        self._replicas.clear()
        self._lost = "the pool is closed"
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
        if not self._replicas:
            self._fail(self._waiting, f"all replicas are lost: {self._lost}")
            self._waiting.clear()
        while self._idle and self._waiting and self._waiting[0].failures >= ALONE_AFTER:
            self._start([self._waiting.popleft()])
        if not self._idle or not self._waiting:
            return
        head = list(islice(self._waiting, _fitting(self._waiting, self._share * len(self._replicas))))
        shares = even_shares([waiting.size for waiting in head], len(self._replicas))
        taken: set[int] = set()
        for share in sorted(shares, key=min)[: len(self._idle)]:  # by the oldest matchup, so that none starves
            self._start([head[i] for i in share])
            taken.update(share)
        rest = [waiting for i, waiting in enumerate(head) if i not in taken]
        self._waiting = deque([*rest, *islice(self._waiting, len(head), None)])

    def _start(self, share: list[_Waiting]) -> None:
        replica = self._idle.popleft()
        self._busy.add(replica)
        task = asyncio.get_running_loop().create_task(self._score(replica, share))
        self._tasks[task] = share
        task.add_done_callback(partial(self._release, replica))  # also of a task cancelled before its first step

    def _release(self, replica: Replica, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._busy.discard(replica)
        if replica in self._replicas:
            self._idle.append(replica)
        self._dispatch_soon()

    async def _score(self, replica: Replica, share: list[_Waiting]) -> None:
        try:
            scores = await replica.score([waiting.matchup for waiting in share])
            for waiting, score in zip(share, scores, strict=True):
                if not waiting.score.done():
                    waiting.score.set_result(score)
        except NoReplicaError as error:
            self._fail(share, one_line(error))
        except Exception as error:  # whatever a replica or its transport raises
            self._give_back(share, error)
            share.clear()  # it is the queue's again
            try:
                await replica.ready()
            except Exception as lost:
                self._replicas.discard(replica)
                self._lost = one_line(lost)

    def _give_back(self, share: list[_Waiting], error: Exception) -> None:
        for waiting in share:
            waiting.failures += 1
        self._fail([waiting for waiting in share if waiting.failures > RETRIES], one_line(error))
        returned = [waiting for waiting in share if waiting.failures <= RETRIES]
        # those to be scored alone first: none of them gets into a share of `_dispatch`
        self._waiting = deque(sorted([*returned, *self._waiting], key=lambda each: each.failures < ALONE_AFTER))
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
