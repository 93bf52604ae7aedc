"""HTTP client of an endpoint whose calls are reserved in a budget: each attempt by itself, retries included."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2

from llm_blender_ray.actors.budget import Budget, BudgetError, BudgetReservation
from llm_blender_ray.actors.engines.http_client import BoundedClient, usage_of_failure
from llm_blender_ray.actors.engines.rate_limits import RateLimits
from llm_blender_ray.actors.errors import UNPAID
from llm_blender_ray.actors.prices import NANO, TokenPrice, nano_usd
from llm_blender_ray.actors.usage import TokenUsage

TEMPLATE_TOKENS = (
    512  # upper bound of what a service's chat template adds to a prompt, its own system prompt included
)
MARGIN_S = 600.0  # beside an attempt's time limit; then its reservation counts as spent
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_GATEWAY_TIMEOUTS = frozenset({408, 504})  # what is behind the gateway may have answered, and be billed
_METERED = "metered"  # extension of a response: its meter and reservation


@dataclass(frozen=True, slots=True)
class CallMeter:
    """Reserves and settles the calls of one endpoint.

    Attributes:
        budget: Where they are reserved.
        account: Name of their account in it.
        price: The endpoint's.
    """

    budget: Budget
    account: str
    price: TokenPrice

    async def reserve(self, body: bytes, seconds: float) -> BudgetReservation:
        """Reserve what a request can cost at most.

        Args:
            body: Of the request.
            seconds: After which it has ended.

        Raises:
            BudgetError: The budget has no room for it.
        """
        amount = nano_usd(self.price.most_usd(*token_bounds(json.loads(body))))
        reservation = await self.budget.reserve(self.account, amount, seconds)
        if reservation is None:
            raise BudgetError(f"{UNPAID}: a call that may cost ${amount / NANO:.3g} was not made")
        return reservation

    async def settle(self, reservation: BudgetReservation, usage: TokenUsage) -> None:
        """Replace a reservation by what the call cost: its bound, unless the service reports all of its tokens."""
        cost = reservation.amount if usage.unreported_calls else nano_usd(self.price.usd(usage))
        await self.budget.settle(reservation, cost)


# Of the engines that are made now. Engines are made from settings alone, through every kind of part and wrapper.
_meter: ContextVar[CallMeter | None] = ContextVar("meter", default=None)


@contextmanager
def metering(meter: CallMeter | None) -> Iterator[None]:
    """Meter all calls of the endpoints' engines that are made in the block."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


def token_bounds(request: dict[str, Any]) -> tuple[int, int]:
    """Upper bounds of a request's tokens: of its prompt and of its completion.

    A token is at least one byte of UTF-8 in every tokenizer, so the bytes of the messages with their roles, and
    what a template adds, bound the prompt's tokens.
    """
    messages = json.dumps(request["messages"], ensure_ascii=False).encode("utf-8", "surrogatepass")
    completion = max(request.get(name) or 0 for name in ("max_tokens", "max_completion_tokens"))
    return len(messages) + TEMPLATE_TOKENS, completion


class MeteredClient(BoundedClient):
    """An HTTP client that sends a request once the budget in force where it was made has room for it."""

    def __init__(self, attempt_s: float, most_mib: int, most_requests: int, limits: RateLimits) -> None:
        """See `BoundedClient`."""
        super().__init__(attempt_s, most_mib, most_requests, limits)
        self._reserved_s = attempt_s + MARGIN_S
        self._meter = _meter.get()

    async def attempt(self, request: httpx2.Request, *, stream: bool, **options: Any) -> httpx2.Response:
        """See `BoundedClient`. An attempt without an end that is known has cost what was reserved.

        Raises:
            BudgetError: The budget has no room for the request.
        """
        if self._meter is None:
            return await super().attempt(request, stream=stream, **options)
        reservation = await self._meter.reserve(request.content, self._reserved_s)
        try:
            response = await super().attempt(request, stream=stream, **options)
        except Exception as error:  # after a cancellation, the reservation ends by time
            usage = TokenUsage() if isinstance(error, _NOT_SENT) else TokenUsage.given_up()
            await self._meter.settle(reservation, usage)
            raise
        if response.status_code == 200:
            response.extensions[_METERED] = (self._meter, reservation)
        elif response.status_code in _GATEWAY_TIMEOUTS:
            await self._meter.settle(reservation, TokenUsage.given_up())
        else:  # a refusal or a failure is billed as far as it says so
            await self._meter.settle(reservation, usage_of_failure(response.content))
        return response


async def settle_response(response: httpx2.Response, usage: TokenUsage) -> None:
    """Settle the attempt that has given an answer, if it was metered, to its own usage."""
    if metered := response.extensions.pop(_METERED, None):
        meter, reservation = metered
        await meter.settle(reservation, usage)
