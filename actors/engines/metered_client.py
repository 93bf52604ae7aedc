"""HTTP client of an endpoint whose calls are reserved in a budget: each attempt by itself, retries included."""

from typing import Any

import httpx2

from llm_blender_ray.actors.engines.call_meter import current_meter
from llm_blender_ray.actors.engines.http_client import BoundedClient, usage_of_failure
from llm_blender_ray.actors.engines.rate_limits import RateLimits
from llm_blender_ray.actors.usage import TokenUsage

MARGIN_S = 600.0  # beside an attempt's time limit; then its reservation counts as spent
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_GATEWAY_TIMEOUTS = frozenset({408, 504})  # what is behind the gateway may have answered, and be billed
_METERED = "metered"  # extension of a response: its meter and reservation


class MeteredClient(BoundedClient):
    """An HTTP client that sends a request once the budget in force where it was made has room for it."""

    def __init__(self, attempt_s: float, most_mib: int, most_requests: int, limits: RateLimits) -> None:
        """See `BoundedClient`."""
        super().__init__(attempt_s, most_mib, most_requests, limits)
        self._reserved_s = attempt_s + MARGIN_S
        self._meter = current_meter()

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
