"""Shared state of the endpoints, and the description of an endpoint."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel

from llm_blender_ray.actors.budget import Payer
from llm_blender_ray.actors.prices import PriceList
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs.schema import BaseLLM
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.serve.access import LOCAL, Access
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.ballots import BallotBox
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

HEARTBEAT_S = 10.0  # of silence in a stream, after which a comment is sent
PendingParts = Callable[[], Awaitable[Sequence[str]]]  # names of the parts that are not up yet


@dataclass(frozen=True, slots=True)
class Service:
    """State that all requests of a gateway share.

    Attributes:
        blender: Members, ranker and fuser.
        serving: Settings of the service.
        access: API keys and rate limits.
        admission: Queue before the models.
        telemetry: Metrics and log.
        ballots: Keeps answers that may be voted on; None: no votes are kept.
        starting: Names the parts that aren't up yet; None: all are.
        metrics: Makes the page for Prometheus; None: there is none.
        heartbeat_s: Seconds without a line in a stream until a comment is sent.
        models: Settings of the base LLMs by name: what they can't do is refused at once; else they refuse it.
        prices: Of the tokens of members, ranker and fuser.
        budgeted: Whether requests have a budget.
    """

    blender: Blender
    serving: Serving
    access: Access
    admission: Admission
    telemetry: Telemetry
    ballots: BallotBox | None = None
    starting: PendingParts | None = None
    metrics: Callable[[], Awaitable[bytes]] | None = None
    heartbeat_s: float = HEARTBEAT_S
    models: Mapping[str, BaseLLM] = field(default_factory=dict)
    prices: PriceList = field(default_factory=PriceList)
    budgeted: bool = False

    def charged(self, prompt: Prompt, caller: str | None) -> Prompt:
        """The prompt of a request with whom its calls are charged to.

        Args:
            prompt: The prompt.
            caller: Name of the request's API key.
        """
        if not self.budgeted:
            return prompt
        return replace(prompt, payer=Payer(uuid.uuid4().hex, caller or LOCAL, datetime.now(UTC)))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of the service, with what is decided about a request before its route is called.

    Attributes:
        name: Label in metrics and in the log.
        path: Path of its requests; with `/*` at its end all paths that begin so, and the path before it.
        routes: Makes its routes.
        open: Whether it needs no key, and is neither counted nor logged.
        counted: Whether its requests are counted and logged, unless it is open.
        reads_json: Whether its POST requests have a body of JSON.
        uses_models: Whether models work for it, so that it is refused while the queue is full.
    """

    name: str
    path: str
    routes: Callable[[Service], APIRouter]
    open: bool = False
    counted: bool = True
    reads_json: bool = False
    uses_models: bool = False

    def matches(self, path: str) -> bool:
        """Whether requests of this path are the endpoint's."""
        if self.path.endswith("/*"):
            return path.startswith(self.path.removesuffix("/*"))
        return path == self.path


def json_response(answer: BaseModel) -> Response:
    """Response of a model that is valid already: FastAPI would validate it again."""
    return Response(answer.model_dump_json(), media_type="application/json")
