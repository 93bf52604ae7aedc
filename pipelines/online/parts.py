"""Shared state of a process's blends: their parts, local or remote."""

from collections.abc import Sequence

from llm_blender_ray.actors.fusers import FuserPart
from llm_blender_ray.actors.leaderboard import Leaderboard
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.pipelines.online.circuits import FUSER, RANKER, Circuits
from llm_blender_ray.pipelines.online.protocols import Member, RankerPart, Timeouts

NO_TIMEOUTS = Timeouts()


class Parts:
    """Members, a ranker and a fuser, with the members' rankings so far and a circuit breaker for each."""

    def __init__(
        self,
        members: Sequence[Member],
        ranker: RankerPart,
        fuser: FuserPart | None,
        *,
        top_k: int = 1,
        timeouts: Timeouts = NO_TIMEOUTS,
        breaker: BreakerSettings = BreakerSettings(),  # noqa: B008 (frozen)
    ) -> None:
        """Combine the parts.

        Args:
            members: The base LLMs.
            ranker: Ranks their answers.
            fuser: Writes the answer; None: the best candidate is the answer.
            top_k: How many of the best the fuser reads.
            timeouts: Time limits.
            breaker: When a failing part is left out.
        """
        self.members = {member.name: member for member in members}
        self.ranker, self.fuser, self.top_k = ranker, fuser, top_k
        self.timeouts = timeouts
        self.leaderboard = Leaderboard(list(self.members))
        self.circuits = Circuits([*self.members, RANKER, *([FUSER] if fuser else [])], breaker)
