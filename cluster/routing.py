"""Routing of Ray Serve's calls to the least loaded replica.

Ray Serve's own router takes the better of two replicas drawn at random, so that of four equal calls at once two
often go to one replica while another is idle. A request that is split into a share for each replica would wait for
the slower one.
"""

from collections.abc import Sequence
from weakref import WeakValueDictionary

from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

# the routers of this process by application and deployment
ROUTERS: "WeakValueDictionary[tuple[str, str], LeastLoadedRouter]" = WeakValueDictionary()


class LeastLoadedRouter(FIFOMixin, RequestRouter):
    """Router that takes a replica with the fewest calls, as far as this process knows; equal ones in turns."""

    def initialize_state(self, deployment: str) -> None:
        """Called by Ray Serve with the arguments that `least_loaded` names."""
        from llm_blender_ray.cluster.routing import ROUTERS  # Ray Serve copies this class with the module's globals

        self._turn = 0
        ROUTERS[self.app_name, deployment] = self

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas: the one with the fewest calls, then, should it take no more, all others."""
        if not candidate_replicas:
            return []
        calls = [self.replica_queue_len_cache.get(replica.replica_id) or 0 for replica in candidate_replicas]
        first = least_loaded_index(calls, self._turn)
        self._turn = first + 1  # several calls are routed before the first of them counts
        others = [replica for at, replica in enumerate(candidate_replicas) if at != first]
        return [[candidate_replicas[first]], *([others] if others else [])]


def least_loaded_index(calls: Sequence[int], turn: int) -> int:
    """Index of the smallest number of calls, the first of equal ones from `turn` on, cyclically."""
    count = len(calls)
    return min(range(count), key=lambda at: (calls[at], (at - turn) % count))


def least_loaded(deployment: str) -> RequestRouterConfig:
    """The routing of a deployment of that name."""
    return RequestRouterConfig(
        request_router_class=LeastLoadedRouter, request_router_kwargs={"deployment": deployment}
    )


def running_replicas(handle: DeploymentHandle) -> int:
    """Number of replicas that this process can call, of a deployment with this routing; 0 before its first call."""
    router = ROUTERS.get((handle.app_name, handle.deployment_name))
    return len(router.curr_replicas) if router is not None else 0
