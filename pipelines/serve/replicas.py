"""Replicas of the parts of a blend: the bulk path's plain classes as Ray Serve runs them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.engines.call_meter import CallMeter, metering
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.fusers import load_fuser
from llm_blender_ray.actors.generator import Generator, load_generators
from llm_blender_ray.actors.prices import TokenPrice
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.cluster.placement_groups import own_gpus
from llm_blender_ray.cluster.replicas import ScorerActor
from llm_blender_ray.cluster.versions import version_of
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import ModelSettings, RankerSettings, SamplingOverrides
from llm_blender_ray.pipelines.serve.budgets import RequestBudget
from llm_blender_ray.pipelines.serve.handles import REMOVED, RemoteServiceLedger


def _meter(ledger: Any, price: TokenPrice | None) -> CallMeter | None:
    """Meter of a part's calls; None: they are not charged."""
    if ledger is None or price is None:
        return None
    return CallMeter(RequestBudget(RemoteServiceLedger(ledger)), "", price)


class PartReplica:
    """A part of a blend whose methods Ray Serve calls, `check_health` among them."""

    _load: Callable[[Any], Any]

    def __init__(self, settings: PartSettings, ledger: Any = None, price: TokenPrice | None = None) -> None:
        """Load the part: seconds to minutes.

        Args:
            settings: The part's.
            ledger: Handle of the ledger that its calls are charged to; None: they are not.
            price: Of its tokens.

        Raises:
            ModelLoadError: The part cannot be used.
        """
        with own_gpus(), metering(_meter(ledger, price)):
            self._part = type(self)._load(settings)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Ray Serve checks for optional methods
            raise AttributeError(name)
        return getattr(self._part, name)


class Generators:
    """Base LLMs that share an engine, or one; see `pipelines.online.protocols.Member`."""

    def __init__(self, model: ModelSettings) -> None:
        """Load the model: seconds to minutes.

        Raises:
            ModelLoadError: The model or one of its adapters can't be used.
        """
        self._by_name = load_generators(model)

    async def answer(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None, name: str | None = None
    ) -> Candidate:
        """Answer as one of the LLMs; it needs no name where there is one."""
        return await self._named(name).answer(prompt, sample, change)

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None, name: str | None = None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        """Stream the same answer."""
        async with aclosing(self._named(name).stream(prompt, sample, change)) as pieces:
            async for piece in pieces:
                yield piece

    def _named(self, name: str | None) -> Generator:
        if name is None:
            (found,) = self._by_name.values()
            return found
        if name not in self._by_name:  # asked by a gateway with another config, in an update
            raise BlendError(REMOVED)
        return self._by_name[name]

    async def check_health(self) -> None:
        """Raise BlendError when the engine can't answer any more."""
        await next(iter(self._by_name.values())).check_health()  # their engine is one


class MemberReplica(PartReplica):
    """The base LLMs of one engine."""

    _load = Generators


class FuserReplica(PartReplica):
    """A fuser; see `actors.fusers.Fuser`."""

    _load = staticmethod(load_fuser)


class OtherScorerError(BlendError):
    """A gateway of one config has reached the scorer of another, in the middle of an update."""


class ScorerReplica(ScorerActor):
    """The scorer of the ranker; the tournaments run in the gateways."""

    def __init__(self, settings: RankerSettings, ledger: Any = None, price: TokenPrice | None = None) -> None:
        """Load the scorer, so that Ray Serve knows when the replica is up.

        Args:
            settings: The ranker's.
            ledger: See `PartReplica`.
            price: See `PartReplica`.

        Raises:
            ModelLoadError: The scorer cannot be used.
        """
        super().__init__(settings)
        with metering(_meter(ledger, price)):
            self.load()
        self._version = version_of(settings)

    async def traits(self, version: str = "") -> Traits:
        """See `ScorerActor`.

        Args:
            version: Of the gateway's settings.

        Raises:
            OtherScorerError: They are not those of this scorer.
        """
        self._check(version)
        return await super().traits()

    async def score(self, matchups: Sequence[Matchup], version: str = "") -> list[Score]:
        """See `actors.scorers.Scorer`.

        Args:
            matchups: The matchups.
            version: Of the gateway's settings.

        Raises:
            OtherScorerError: They are not those of this scorer.
        """
        self._check(version)
        return await super().score(matchups)

    def _check(self, version: str) -> None:
        if version != self._version:
            raise OtherScorerError("the service is being updated to another ranker")
