"""Budgets of requests and of API keys, through the HTTP API and endpoints on a real server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from endpoint_server import EndpointServer, chunk, completion, usage_chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import HELLO, app_of

from llm_blender_ray.actors.budget import Payer
from llm_blender_ray.actors.engines.call_meter import CallMeter, metering
from llm_blender_ray.actors.errors import BlendError, RejectedError
from llm_blender_ray.actors.prices import NANO, Rates, TokenPrice
from llm_blender_ray.configs.prices import BudgetSettings
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.serve import budgets
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.budgets import (
    JointReservation,
    RequestBudget,
    ServiceLedger,
    check_budget,
    spending_file,
)

SECRETS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}
PRICE = TokenPrice(Rates(0.0, 0.0, 10.0))  # of completions alone: bounds don't depend on a prompt's length
BOUND, COST = 0.001, 0.0001  # USD of a call with `max_tokens` 100, and of one that is made
PATIENT_S = 600.0  # no call of these tests is refused because this machine is slow


async def reply(body: dict[str, Any]) -> dict[str, Any]:
    text = "[[A]]" if body["model"] == "judge" else f"{body['model']} says hello"
    return completion(text, usage={"prompt_tokens": 20, "completion_tokens": 10})


async def pieces(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for word in (body["model"], " says", " hello"):
        yield chunk(word)
    yield chunk(finish_reason="stop")
    yield usage_chunk(20, 10)


def blend(url: str, *, judge: int = 100, writer: int = 100) -> BlendConfig:
    """Two LLMs, a judge and a fuser, all of them endpoints; the last two with these `max_tokens`."""

    def llm(name: str, most: int = 100) -> dict[str, Any]:
        own = {"name": name, "engine": "endpoint", "model": name, "base_url": url, "max_in_flight": 64}
        return {**own, "max_retries": 0, "timeout_s": 60, "sampling": {"max_tokens": most}}

    settings = {
        "models": [llm("far"), llm("near")],
        "ranker": {"kind": "judge", "llm": llm("judge", judge)},
        "fuser": {"kind": "chat", "llm": llm("writer", writer)},
    }
    return BlendConfig.model_validate(settings)


class Trial:
    """A service over endpoints, and its clients."""

    def __init__(self, server: EndpointServer, ledger: ServiceLedger, **most_tokens: int) -> None:
        self.server = server
        with metering(CallMeter(RequestBudget(ledger), "", PRICE)):
            blender = Blender.local(blend(server.url, **most_tokens))
        keys = Keys.load(None, {"BLEND_API_KEYS": ",".join(f"{name}={key}" for name, key in SECRETS.items())})
        app = app_of(blender, keys=keys, budgeted=True)
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://blend", timeout=60)

    async def ask(self, model: str = "far", who: str = "alice", **fields: Any) -> httpx2.Response:
        return await self.post("/v1/chat/completions", who, model=model, messages=HELLO, **fields)

    async def post(self, path: str, who: str = "alice", **fields: Any) -> httpx2.Response:
        return await self._client.post(path, json=fields, headers={"authorization": f"Bearer {SECRETS[who]}"})

    async def get(self, path: str) -> httpx2.Response:
        return await self._client.get(path)

    def billed(self) -> float:
        return COST * len(self.server.requests)


@contextlib.asynccontextmanager
async def trial(ledger: ServiceLedger, **most_tokens: int) -> AsyncIterator[Trial]:
    async with EndpointServer(answer=reply, chunks=pieces) as server:
        yield Trial(server, ledger, **most_tokens)


def per_request(usd: float) -> ServiceLedger:
    return ServiceLedger(BudgetSettings(usd_per_request=usd), None, room_s=PATIENT_S)


def refused(response: httpx2.Response, setting: str) -> None:
    """OpenAI's refusal, which names the setting and no key."""
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert f"budget.{setting} has no room" in error["message"] and "\n" not in error["message"]
    assert not any(name in response.text or key in response.text for name, key in SECRETS.items())


def test_64_requests_at_once_spend_no_more_than_their_keys_day_also_after_a_kill(tmp_path: Path) -> None:
    file, limit = tmp_path / "spending.json", 20 * COST + BOUND
    limits = BudgetSettings(usd_per_key_per_day=limit)
    today = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)

    def ledger(now: datetime) -> ServiceLedger:
        return ServiceLedger(limits, str(file), clock=lambda: now, room_s=PATIENT_S)

    async def main() -> None:
        first = ledger(today)
        async with trial(first) as service:
            found = await asyncio.gather(*(service.ask() for _ in range(64)))
            answered = [one for one in found if one.status_code == 200]
            assert len(answered) == len(service.server.requests)
            assert limit - BOUND < service.billed() <= limit + 1e-9
            for one in found:
                if one.status_code != 200:
                    refused(one, "usd_per_key_per_day")
            assert (await service.ask(who="bob")).status_code == 200
        first.close()  # as the end of its process: nothing is written then
        written = json.loads(file.read_text())["nano_usd"]
        assert set(written) == {"2026-11-28/alice", "2026-11-28/bob"}
        second = ledger(today)
        async with trial(second) as service:
            refused(await service.ask(), "usd_per_key_per_day")
            assert not service.server.requests
        second.close()
        third = ledger(today + timedelta(minutes=1))
        async with trial(third) as service:
            assert (await service.ask()).status_code == 200
        assert set(json.loads(file.read_text())["nano_usd"]) == {"2026-11-29/alice"}
        third.close()

    asyncio.run(main())


def test_a_request_has_one_budget_for_all_its_models() -> None:
    async def main() -> None:
        async with trial(per_request(3 * BOUND)) as service:
            whole = await asyncio.gather(*(service.ask("blend", n=2) for _ in range(4)))
            assert all(one.status_code == 200 for one in whole)
            called = {request.body["model"] for request in service.server.requests}
            assert called == {"far", "near", "judge", "writer"}
        async with trial(per_request(BOUND / 2)) as service:
            for model in ("far", "blend", "blend-best"):
                refused(await service.ask(model), "usd_per_request")
                refused(await service.ask(model, stream=True), "usd_per_request")
            assert not service.server.requests

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_without_room_for_the_fuser_the_best_candidate_is_the_answer(stream: bool) -> None:
    async def main() -> None:
        async with trial(per_request(3 * BOUND), writer=1000) as service:
            answer = await service.ask("blend", stream=stream)
            assert answer.status_code == 200
            assert "fuser: budget spent: budget.usd_per_request has no room" in answer.text
            assert "the best candidate instead" in answer.text and "says" in answer.text
            assert {request.body["model"] for request in service.server.requests} == {"far", "near", "judge"}

    asyncio.run(main())


def test_without_room_for_the_judge_no_breaker_opens_for_others() -> None:
    async def main() -> None:
        async with trial(per_request(3 * BOUND), judge=1000) as service:
            texts = ["one", "two"]
            for _ in range(20):
                refused(await service.post("/v1/rerank", query="hello", documents=texts), "usd_per_request")
                refused(await service.post("/v1/compare", prompt="hello", candidates=texts), "usd_per_request")
            answer = (await service.ask("blend")).json()
            assert any(one.startswith("ranker: judge judge: budget spent") for one in answer["blend"]["degraded"])
            assert "parts" not in (await service.get("/healthz")).json()

    asyncio.run(main())


def test_a_stream_that_has_begun_ends_with_the_error() -> None:
    async def main() -> None:
        async with trial(per_request(BOUND / 2)) as service:
            answer = await service.ask("blend", stream=True, blend={"events": True})
            assert answer.status_code == 200
            last = json.loads(answer.text.strip().split("\n")[-1].removeprefix("data: "))
            assert last["error"]["code"] == last["error"]["type"] == "insufficient_quota"

    asyncio.run(main())


calls = st.tuples(st.sampled_from("ab"), st.sampled_from(["alice", "bob"]), st.integers(1, 40), st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(made=st.lists(calls, max_size=40), request=st.integers(1, 120), day=st.integers(1, 120))
def test_a_call_is_reserved_in_both_accounts_or_in_none(
    made: list[tuple[str, str, int, float]], request: int, day: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    limits = BudgetSettings(usd_per_request=request / NANO, usd_per_key_per_day=day / NANO)
    ledger = ServiceLedger(limits, str(tmp_path_factory.mktemp("day") / "spending.json"), room_s=PATIENT_S)
    spent: dict[str, int] = {}
    began = datetime.now(UTC)

    async def call(id: str, key: str, bound: int, share: float) -> None:
        found = await ledger.reserve(Payer(id, key, began), bound, 1000.0)
        if isinstance(found, JointReservation):
            cost = round(share * bound)
            for account in (id, key):
                spent[account] = spent.get(account, 0) + cost
            await ledger.settle(found, cost)
        else:
            assert found in ("usd_per_request", "usd_per_key_per_day")

    async def main() -> None:
        await asyncio.gather(*(call(*one) for one in made))
        balances = await ledger.balances()
        today = began.date().isoformat()
        assert {name: balances.get(f"{today}/{name}", 0) for name in SECRETS} == {
            name: spent.get(name, 0) for name in SECRETS
        }
        ledger.close()

    asyncio.run(main())
    assert all(amount <= (request if name in "ab" else day) for name, amount in spent.items())


def test_a_request_that_is_older_than_the_ledger_gets_nothing() -> None:
    """What it had spent is unknown after a kill."""

    async def main() -> None:
        began = datetime.now(UTC) - timedelta(seconds=1)
        ledger = per_request(1)
        with pytest.raises(RejectedError, match="restarted"):
            await ledger.reserve(Payer("a", "alice", began), 1, 1000.0)

    asyncio.run(main())


def test_what_keys_have_spent_is_never_forgotten_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "LOCK_S", 0.0)
    limits, file = BudgetSettings(usd_per_key_per_day=1), tmp_path / "spending.json"
    one = ServiceLedger(limits, str(file))
    with pytest.raises(BlendError, match="another service uses it"):
        ServiceLedger(limits, str(file))
    one.close()
    file.write_text("{")
    with pytest.raises(BlendError, match="damaged, so what was spent today is unknown"):
        ServiceLedger(limits, str(file))


def test_the_file_is_a_setting_or_beside_the_votes_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def of(serve: dict[str, Any], *, local: bool = True) -> str | None:
        echo = {"name": "a", "engine": "echo", "model": "echo"}
        settings = {"models": [echo], "ranker": {"kind": "echo"}, "budget": {"usd_per_key_per_day": 1}}
        return spending_file(BlendConfig.model_validate({**settings, "serve": serve}), local=local)

    assert of({}) == str(tmp_path / "blend-spending.json")
    assert of({"votes": "kept/votes.jsonl"}) == str(tmp_path / "kept" / "blend-spending.json")
    assert of({"spending": "kept/here.json"}, local=False) == str(tmp_path / "kept" / "here.json")
    with pytest.raises(BlendError, match=r"on a cluster, set serve\.spending"):
        of({}, local=False)


@pytest.mark.parametrize("limit", ["usd_per_request", "usd_per_key_per_day"])
def test_an_unknown_price_is_refused(limit: str) -> None:
    config = blend("http://127.0.0.1:9/v1")
    check_budget(config)
    with pytest.raises(BlendError, match="the price of far is unknown"):
        check_budget(config.model_copy(update={"budget": BudgetSettings.model_validate({limit: 1})}))
