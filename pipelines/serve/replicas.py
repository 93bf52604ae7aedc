"""Replicas of the parts of a blend: the bulk path's plain classes as Ray Serve runs them."""

from collections.abc import Callable, Sequence
from typing import Any

from llm_blender_ray.actors.engines.call_meter import CallMeter, metering
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.fusers import load_fuser
from llm_blender_ray.actors.generator import Generator
from llm_blender_ray.actors.prices import TokenPrice
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.cluster.placement_groups import own_gpus
from llm_blender_ray.cluster.replicas import ScorerActor
from llm_blender_ray.cluster.versions import version_of
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import RankerSettings
from llm_blender_ray.pipelines.serve.budgets import RequestBudget
from llm_blender_ray.pipelines.serve.handles import RemoteServiceLedger


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


class MemberReplica(PartReplica):
    """One base LLM; see `pipelines.online.protocols.Member`."""

    _load = Generator


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
