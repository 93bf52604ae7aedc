"""Meter of an endpoint's calls: reserves and settles what they cost in a budget.

Apart from the HTTP client that it is for: OpenAI's package takes half a second to import, and every actor of a run
or a service has this module, most of them without an endpoint.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llm_blender_ray.actors.budget import Budget, BudgetError, BudgetReservation
from llm_blender_ray.actors.errors import UNPAID
from llm_blender_ray.actors.prices import NANO, TokenPrice, nano_usd
from llm_blender_ray.actors.usage import TokenUsage

TEMPLATE_TOKENS = 512  # upper bound of what a service's chat template adds to a prompt, its system prompt included


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


def current_meter() -> CallMeter | None:
    """Return the meter of an engine that is made now, if any."""
    return _meter.get()


def token_bounds(request: dict[str, Any]) -> tuple[int, int]:
    """Upper bounds of a request's tokens: of its prompt and of its completion.

    A token is at least one byte of UTF-8 in every tokenizer, so the bytes of the messages with their roles, and
    what a template adds, bound the prompt's tokens.
    """
    messages = json.dumps(request["messages"], ensure_ascii=False).encode("utf-8", "surrogatepass")
    completion = max(request.get(name) or 0 for name in ("max_tokens", "max_completion_tokens"))
    return len(messages) + TEMPLATE_TOKENS, completion
