"""Time of one request: the seconds until its deadline, and those of each part."""

from llm_blender_ray.pipelines.online.circuits import FUSER, RANKER
from llm_blender_ray.pipelines.online.clock import least_limit, now
from llm_blender_ray.pipelines.online.protocols import BlendRequest, Timeouts


class RequestTime:
    """Clock of one request, which starts when it is made.

    Attributes:
        deadline_s: Seconds from the start to the request's deadline; None: it has none.
    """

    def __init__(self, timeouts: Timeouts, request: BlendRequest) -> None:
        self._timeouts = timeouts
        self._began = now()
        deadline = request.deadline_s if request.deadline_s is not None else timeouts.deadline_s
        self.deadline_s = None if deadline is None else max(deadline - request.waited_s, 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return now() - self._began

    def left(self, share: float = 1.0) -> float | None:
        """Seconds until a share of the deadline has passed; None: no deadline."""
        return None if self.deadline_s is None else max(share * self.deadline_s - self.elapsed, 0.0)

    def part_left(self, name: str, share: float = 1.0) -> float | None:
        """Seconds that a part may take from now on, at most until a share of the deadline has passed."""
        return least_limit(self._timeouts.timeouts_s.get(name), self.left(share))

    def part_total(self, name: str) -> float | None:
        """Seconds that the service's settings give a part, whatever this request leaves of it."""
        given = self._timeouts
        rest = 1 - given.generation_share - given.ranking_share
        share = {RANKER: given.ranking_share, FUSER: rest}.get(name, given.generation_share)
        whole = None if given.deadline_s is None else share * given.deadline_s
        return least_limit(given.timeouts_s.get(name), whole)
