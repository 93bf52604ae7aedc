"""Endpoints under a budget: what the service bills is within it, at any number of calls at once."""

import asyncio
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, completion, cut, hang, respond, stream, usage_chunk

from llm_blender_ray.actors.budget import BudgetError, BudgetLedger
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.call_meter import CallMeter, metering, token_bounds
from llm_blender_ray.actors.engines.endpoint_engine import EndpointEngine
from llm_blender_ray.actors.engines.guarded_engine import load_endpoint
from llm_blender_ray.actors.prices import NANO, Rates, TokenPrice, nano_usd
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import EndpointModel, Sampling

PRICE = TokenPrice(Rates(1.0, 0.1, 10.0))
CHAT = [Message(role="user", content="What is the capital of Iceland?")]
SAMPLING = Sampling(max_tokens=100)
BOUND = nano_usd(PRICE.most_usd(*token_bounds({"messages": CHAT, "max_tokens": 100})))
COST = nano_usd(PRICE.usd(TokenUsage(1, 0, 20, 0, 10)))  # of `answer`


async def answer(body: dict[str, Any]) -> dict[str, Any]:
    return completion("Reykjavik", usage={"prompt_tokens": 20, "completion_tokens": 10})


class Trial:
    """A server, a ledger, and an engine between them."""

    def __init__(self, limit: int, *faults: Fault, **settings: Any) -> None:
        self.server = EndpointServer(faults, answer=answer)
        self.ledger = BudgetLedger(limit, {}, lambda balances: None)
        self._settings = {"max_retries": 0, "max_in_flight": 64, "timeout_s": 20, "breaker": None} | settings

    async def __aenter__(self) -> "Trial":
        await self.server.__aenter__()
        settings = {"name": "m", "engine": "endpoint", "model": "m", "base_url": self.server.url, **self._settings}
        model = EndpointModel.model_validate(settings)
        with metering(CallMeter(self.ledger, "run", PRICE)):
            self.engine = load_endpoint(model) if model.breaker else EndpointEngine(model)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.engine.close()
        await self.server.__aexit__(*error)

    async def ask(self) -> Completion | BaseException:
        (found,) = await asyncio.gather(self.engine.generate(CHAT, SAMPLING), return_exceptions=True)
        return found

    async def spent(self) -> int:
        return (await self.ledger.balances()).get("run", 0)


def test_64_calls_at_once_spend_no_more_than_the_budget_and_no_less_than_it_allows() -> None:
    limit = 20 * COST + BOUND  # less than the bounds of 64 calls, more than the cost of 20

    async def main() -> None:
        async with Trial(limit) as trial:
            found = await asyncio.gather(*(trial.ask() for _ in range(64)))
            answered = [one for one in found if isinstance(one, Completion)]
            refused = [one for one in found if isinstance(one, BudgetError)]
            assert len(trial.server.requests) == len(answered)
            assert len(answered) + len(refused) == 64
            assert limit - BOUND < await trial.spent() == len(answered) * COST <= limit
            assert str(refused[0]) == f"budget spent: a call that may cost ${BOUND / NANO:.3g} was not made"

    asyncio.run(main())


def test_every_attempt_is_reserved_and_those_that_may_be_billed_stay() -> None:
    """A failure that the service reports costs nothing; a broken connection hides whether it is billed."""
    faults = [respond(500, {"error": {"message": "down"}}), respond(429, {"error": {"message": "slow"}}), cut]

    async def main() -> None:
        async with Trial(10 * BOUND, *faults, max_retries=3) as trial:
            assert isinstance(await trial.ask(), Completion)
            assert len(trial.server.requests) == 4
            assert await trial.spent() == BOUND + COST

    asyncio.run(main())


def test_a_call_that_waits_for_its_rate_limit_reserves_nothing() -> None:
    """It may be given up before it is sent, and then it has cost nothing."""

    async def main() -> None:
        async with Trial(10 * BOUND, requests_per_minute=1) as trial:
            assert isinstance(await trial.ask(), Completion)
            waiting = asyncio.create_task(trial.ask())
            for _ in range(200):  # turns of the loop in which it could reserve or be sent
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await trial.spent() == COST and len(trial.server.requests) == 1

    asyncio.run(main())


def test_a_retry_without_room_ends_the_call() -> None:
    async def main() -> None:
        async with Trial(BOUND + BOUND // 2, cut, max_retries=3) as trial:
            assert isinstance(await trial.ask(), BudgetError)
            assert len(trial.server.requests) == 1

    asyncio.run(main())


@pytest.mark.parametrize("fault", [hang, respond(504, {"error": {"message": "gateway"}})])
def test_an_attempt_without_an_end_costs_its_bound(fault: Fault) -> None:
    async def main() -> None:
        async with Trial(10 * BOUND, fault, timeout_s=0.05 if fault is hang else 20) as trial:
            assert isinstance(await trial.ask(), Exception)
            assert await trial.spent() == BOUND

    asyncio.run(main())


def test_what_is_not_there_costs_nothing() -> None:
    async def main() -> None:
        async with Trial(10 * BOUND, base_url="http://127.0.0.1:9/v1") as trial:
            assert isinstance(await trial.ask(), Exception)
            assert await trial.spent() == 0

    asyncio.run(main())


@pytest.mark.parametrize(("usage", "spent"), [(usage_chunk(20, 10), COST), (None, BOUND)])
def test_a_stream_is_settled_at_its_end_if_it_reports_its_tokens(usage: dict[str, Any] | None, spent: int) -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"content": "Rey"}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": "kjavik"}, "finish_reason": "stop"}]}]
    events = [*chunks, *([usage] if usage else []), "[DONE]"]

    async def main() -> None:
        async with Trial(10 * BOUND, stream(*events)) as trial:
            pieces = [piece async for piece in trial.engine.stream(CHAT, SAMPLING)]
            assert isinstance(pieces[-1], Completion)
            assert await trial.spent() == spent

    asyncio.run(main())


def test_a_refused_call_leaves_the_circuit_breaker_closed() -> None:
    async def main() -> None:
        async with Trial(BOUND - 1, breaker={"failures": 1}) as trial:
            assert [type(await trial.ask()) for _ in range(4)] == [BudgetError] * 4
            assert trial.server.requests == []

    asyncio.run(main())
