"""Ray Serve application of the service: a gateway, and a deployment of each part, each with its own autoscaling."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.prices import PriceList, token_price
from llm_blender_ray.cluster.placement import Capacity, Placement
from llm_blender_ray.cluster.plan import GATEWAY, place_together, replaceable
from llm_blender_ray.cluster.routing import least_loaded
from llm_blender_ray.cluster.versions import versioned
from llm_blender_ray.configs.schema import BlendConfig, Resources
from llm_blender_ray.configs.serving import Scaling
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.protocols import Timeouts
from llm_blender_ray.pipelines.serve.access import Access, Keys
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.app import create_app
from llm_blender_ray.pipelines.serve.ballots import Ballots
from llm_blender_ray.pipelines.serve.budgets import Bill, ServiceLedger, check_budget, spending_file
from llm_blender_ray.pipelines.serve.config_file import ConfigFile
from llm_blender_ray.pipelines.serve.connections import server_config
from llm_blender_ray.pipelines.serve.handles import RemoteBallots, RemoteFuser, RemoteMember
from llm_blender_ray.pipelines.serve.metrics_page import MetricsPage
from llm_blender_ray.pipelines.serve.remote_ranker import RemoteRanker
from llm_blender_ray.pipelines.serve.replicas import FuserReplica, MemberReplica, ScorerReplica
from llm_blender_ray.pipelines.serve.service import Service
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

LOAD_ATTEMPTS = 2  # attempts to load a model before the service fails to start
STARTUP_POLL_S = 0.5  # wait of /healthz for parts that are not up yet, and between two looks at an update
HEALTH_S = 2.0  # between two health checks of a replica: bounds the time to replace a dead one
NO_LIMIT = 10_000  # requests that Serve accepts; the gateway's own queue is the limit
ONE_MORE_PERCENT = 1  # of a deployment's replicas, rounded up by Ray Serve
STOP_S = 10.0  # for a gateway that listens itself to end


class _Gateway:
    """Runs each request's blend over the handles of the parts."""

    def __init__(
        self,
        config: BlendConfig,
        members: list[DeploymentHandle],
        ranker: DeploymentHandle,
        fuser: DeploymentHandle | None,
        ballots: DeploymentHandle | None,
        file: ConfigFile | None = None,
    ) -> None:
        """Read the keys, and connect the parts.

        Args:
            config: The config.
            members: Handles of the base LLMs, in the config's order.
            ranker: Handle of the scorer.
            fuser: Handle of the fuser, if there is one.
            ballots: Handle of the votes, if they are stored.
            file: The config's file, if it was deployed by its path.

        Raises:
            BlendError: The keys can't be read or the cache of comparisons can't be used.
        """
        serving = config.serve
        self._serving, self._file = serving, file
        self._budgeted = config.budget.bounds_requests
        self._models = {member.name: member for member in config.members}
        self._prices = PriceList.of(config.parts, config.prices)
        keys = Keys.load(serving.keys_file, os.environ)
        self._access = Access(keys, serving.requests_per_minute, origins=serving.allowed_origins)
        handles = {model.name: handle for model, handle in zip(config.models, members, strict=True)}
        self._blender = Blender(
            [
                RemoteMember(one.name, one.samples, handles[model.name], shared=len(model.members) > 1)
                for model in config.models
                for one in model.members
            ],
            RemoteRanker(config.placing_ranker, ranker),
            RemoteFuser(fuser) if fuser else None,
            top_k=config.fuser.top_k if config.fuser else 1,
            timeouts=Timeouts(
                serving.deadline_s,
                serving.generation_share,
                serving.ranking_share,
                serving.quorum,
                serving.quorum_grace,
                serving.timeouts_s,
            ),
            breaker=serving.breaker,
        )
        self._ballots = RemoteBallots(ballots) if ballots else None
        parts = [
            *((model.name, model, handles[model.name]) for model in config.models),
            ("ranker", config.placing_ranker, ranker),
            *([("fuser", config.fuser, fuser)] if config.fuser and fuser else []),
        ]
        # others are loaded for their first request: there may be no room for all of them at once
        awake = {name: handle for name, settings, handle in parts if settings.model_settings.replicas.min}
        self._starting = StartupCheck(awake)

    def _app(self, **options: Any) -> FastAPI:
        """The application; to be called in the replica's event loop."""
        gateway = self._serving.gateway
        service = Service(
            self._blender,
            self._serving,
            self._access,
            Admission(gateway.max_in_flight, gateway.max_queued),
            Telemetry.of(self._serving),
            self._ballots,
            self._starting,
            MetricsPage(),
            models=self._models,
            prices=self._prices,
            budgeted=self._budgeted,
        )
        return create_app(service, **options)


@serve.ingress()
class Gateway(_Gateway):
    """Gateway behind Ray Serve's proxies, which put the request's id into every response."""

    async def __init__(self, config: BlendConfig, *parts: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Wait for an update of the parts, then see `_Gateway`."""
        await _parts_updated(config)
        super().__init__(config, *parts)

    async def check_health(self) -> None:
        """Called by Ray Serve every `HEALTH_S`."""
        if self._file:
            self._file.warn_of_edit()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app(tells_id=False)


class ListeningGateway(_Gateway):
    """Gateway of one machine, which listens itself to save every request a hop; all share the port."""

    def __init__(self, host: str, port: int, *parts: Any) -> None:
        """Listen.

        Args:
            host: Address to bind.
            port: Port to bind.
            *parts: Arguments of `_Gateway`.

        Raises:
            OSError: The address can't be bound.
        """
        super().__init__(*parts)
        # asyncio disables Nagle's algorithm on such sockets only
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind((host, port))
        self._listener.listen(2048)
        app, limits = self._app(), self._serving.limits
        self._server = _Server(server_config(app, limits, log_config=None, timeout_graceful_shutdown=5))
        self._task = asyncio.get_running_loop().create_task(self._server.serve([self._listener]))

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if self._task.done():
            raise BlendError("the gateway doesn't listen any more")

    async def __del__(self) -> None:
        """Called by Ray Serve to end the replica."""
        self._server.should_exit = True
        await self._task


class _Server(uvicorn.Server):
    """Server that leaves signals to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See base class."""
        yield


class StartupCheck:
    """Names the parts that have not been up yet."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        self._handles = dict(handles)
        self._checks: dict[str, asyncio.Task[None]] = {}

    async def __call__(self) -> list[str]:
        """Names of these parts; waits up to `STARTUP_POLL_S` for one to come up."""
        for name, handle in self._handles.items():
            if name not in self._checks or self._checks[name].done():
                self._checks[name] = asyncio.get_running_loop().create_task(_up(handle))
        if self._handles:
            done, _ = await asyncio.wait([self._checks[name] for name in self._handles], timeout=STARTUP_POLL_S)
            up = {check for check in done if not check.cancelled() and check.exception() is None}
            self._handles = {name: one for name, one in self._handles.items() if self._checks[name] not in up}
        return list(self._handles)


async def _up(handle: DeploymentHandle) -> None:
    """Return once a replica is up: until then Ray Serve holds the call."""
    await handle.check_health.remote()


async def _parts_updated(config: BlendConfig) -> None:
    """Return when no part is being updated: until then gateways of the earlier config answer.

    Returns at once if there are none, or if no base LLM of this config is up: the earlier ones' are gone then.
    """
    application, members = serve.get_replica_context().app_name, [model.name for model in config.models]
    parts = [*members, "ranker", *(["fuser"] if config.fuser else [])]
    while True:
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[application].deployments
        up = {name for name, one in deployments.items() if one.replica_states.get("RUNNING")}
        updating = [name for name in parts if name in deployments and deployments[name].status == "UPDATING"]
        if not updating or GATEWAY not in up or up.isdisjoint(members):
            return
        await asyncio.sleep(STARTUP_POLL_S)


def build(
    config: BlendConfig,
    capacity: Capacity,
    listen: tuple[str, int] | None = None,
    *,
    file: ConfigFile | None = None,
) -> serve.Application:
    """Build the application of a config.

    In an update replicas restart only of deployments whose settings have changed, one after the other. Where there
    is room, the new one is up before the old one stops, which first finishes its requests.

    Args:
        config: The config.
        capacity: The cluster's.
        listen: Host and port where its gateways listen themselves; None: Ray Serve's proxies do.
        file: The config's file, where the Serve config names its path.

    Raises:
        PlanError: The cluster cannot hold all parts at once.
    """
    placements = place_together(config, capacity)
    by_name = {placement.name: placement for placement in placements}
    rolling = _Rolling(replaceable(config, placements, capacity), config.serve.deadline_s)
    serving = config.serve
    bill = _bills(config, local=listen is not None)
    members = [
        _part(MemberReplica, by_name[model.name], serving.scaling, rolling, bill=bill(model.members[0].name))
        for model in config.models
    ]
    # a gateway has one call at a time for each replica: the average number of calls is the share of time at work
    router = least_loaded("ranker")
    ranker = _part(
        ScorerReplica, by_name["ranker"], serving.scaling, rolling, at_once=1, router=router, bill=bill("ranker")
    )
    fuser = None
    if config.fuser:
        fuser = _part(FuserReplica, by_name["fuser"], serving.scaling, rolling, bill=bill("fuser"))
    ballots = None
    if serving.votes:  # one replica for all gateways: it holds the blends open to votes
        holder = serve.deployment(Ballots).options(
            name="ballots", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=NO_LIMIT
        )
        remembered = serving.limits.vote_bytes
        ballots = versioned(holder, serving.votes, str(remembered)).bind(serving.votes, remembered_bytes=remembered)
    gateway = serve.deployment(ListeningGateway if listen else Gateway).options(
        name=GATEWAY,
        num_replicas=serving.gateway.replicas,
        max_ongoing_requests=NO_LIMIT,
        ray_actor_options={"num_cpus": serving.gateway.num_cpus},
        health_check_period_s=HEALTH_S,
        **rolling.options(GATEWAY) | ({"graceful_shutdown_timeout_s": STOP_S} if listen else {}),
    )
    arguments = (*(listen or ()), config, members, ranker, fuser, ballots, file)
    return versioned(gateway, config, str(listen), *([file.digest] if file else [])).bind(*arguments)


def _bills(config: BlendConfig, *, local: bool) -> Callable[[str], Bill | None]:
    """How the calls of each part are charged, by its name: to one ledger.

    Raises:
        BlendError: A price is unknown, or there is no place for what was spent.
    """
    budget = config.budget
    if not budget.bounds_requests:
        return lambda name: None
    check_budget(config)
    file = spending_file(config, local=local)
    holder = serve.deployment(ServiceLedger).options(
        name="budget",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=NO_LIMIT,
        max_surge_percent=0,  # in an update the earlier ledger ends first
        health_check_period_s=HEALTH_S,
    )
    limits = str(budget.usd_per_request), str(budget.usd_per_key_per_day)
    ledger = versioned(holder, *limits, str(file)).bind(budget, file)
    parts = config.parts

    def bill(name: str) -> Bill | None:
        price = token_price(name, parts[name], config.prices)
        return None if price is None else Bill(ledger, price)

    return bill


@dataclass(frozen=True, slots=True)
class _Rolling:
    """Replacement of replicas in an update.

    Attributes:
        replaceable: Deployments with room for one more replica.
        drain_s: Time for a replica to finish its requests.
    """

    replaceable: Collection[str]
    drain_s: float

    def options(self, name: str) -> dict[str, Any]:
        """Options of a deployment."""
        surge = ONE_MORE_PERCENT if name in self.replaceable else 0
        return {"max_surge_percent": surge, "graceful_shutdown_timeout_s": self.drain_s}


def _part(
    replica: type,
    placement: Placement,
    scaling: Scaling,
    rolling: _Rolling,
    *,
    at_once: int | None = None,
    router: RequestRouterConfig | None = None,
    bill: Bill | None = None,
) -> Any:
    """The deployment of a part, bound to its settings.

    Args:
        replica: Class of its replicas.
        placement: Where they are placed.
        scaling: When there are more or fewer.
        rolling: How they are replaced.
        at_once: Calls that make full use of a replica; None: the model's width.
        router: Which replica a call goes to; None: Ray Serve's choice.
        bill: How its calls are charged; None: they are not.
    """
    width = placement.model.width
    deployment = serve.deployment(replica).options(
        name=placement.name,
        ray_actor_options=placement.ray_options(),
        placement_group_bundles=placement.bundles() or None,  # packed, by Ray Serve's own choice
        max_ongoing_requests=2 * width,  # the next call already waits in the replica
        max_constructor_retry_count=LOAD_ATTEMPTS,
        health_check_period_s=HEALTH_S,
        **rolling.options(placement.name),
        **({"request_router_config": router} if router else {}),
        **_replicas(placement.model, at_once or width, scaling),
    )
    if bill is None:
        return versioned(deployment, placement.settings).bind(placement.settings)
    made = versioned(deployment, placement.settings, repr(bill.price))
    return made.bind(placement.settings, bill.ledger, bill.price)


def _replicas(resources: Resources, at_once: int, scaling: Scaling) -> dict[str, Any]:
    if resources.replicas.min == resources.replicas.max:
        return {"num_replicas": resources.replicas.min}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=resources.replicas.min,
            max_replicas=resources.replicas.max,
            target_ongoing_requests=scaling.load * at_once,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            look_back_period_s=max(3.0, scaling.upscale_delay_s),
            metrics_interval_s=1.0,
        )
    }
