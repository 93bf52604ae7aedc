"""Parts that are down, as clients of the service see them: `/healthz`, and refusals that say when to come again."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from fake_parts import FakeFuser, FakeMember, FakeRanker
from serving import app_of, chat, refused, served

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.serve.access import Keys

DOWN = "https://host/v1: 503: overloaded"
CAUSE = f"not asked: 2 failures in a row, the last: {DOWN}"
BREAKER = BreakerSettings(failures=2, wait_s=30, longest_wait_s=30)
KEY = "alices-long-secret-0001"


def blender(*members: FakeMember, ranker: FakeRanker | None = None) -> Blender:
    return Blender(members, ranker or FakeRanker(), FakeFuser(), top_k=2, breaker=BREAKER)


def up_and_down() -> Blender:
    return blender(FakeMember("up", "one"), FakeMember("far", error=DOWN))


def test_a_model_that_is_left_out_is_shown_with_cause_and_since() -> None:
    with served(app_of(up_and_down())) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        for _ in range(2):
            assert chat(client).json()["blend"] == {"degraded": [f"far: {DOWN}"]}
        answer = chat(client)
        assert answer.status_code == 200 and answer.json()["blend"] == {"degraded": [f"far: {CAUSE}"]}
        health = client.get("/healthz")
        assert health.status_code == 200
        far = health.json()["parts"].pop("far")
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(far.pop("since")) < timedelta(minutes=5)
        assert 0 < far.pop("retry_after_s") <= 30
        assert far == {"state": "open", "cause": DOWN}
        others = {"up": {"state": "ok"}, "ranker": {"state": "ok"}, "fuser": {"state": "ok"}}
        assert health.json() == {"status": "ok", "parts": {**others, "far": health.json()["parts"]["far"]}}


def test_a_model_asked_alone_is_refused_with_the_cause_and_retry_after() -> None:
    with served(app_of(up_and_down())) as url, httpx2.Client(base_url=url) as client:
        for _ in range(2):
            answer = chat(client, model="far")
            assert refused(answer, 503, "no_answer") == f"far: {DOWN}"
            assert "retry-after" not in answer.headers
        answer = chat(client, model="far", stream=True)
        assert refused(answer, 503, "no_answer") == f"far: {CAUSE}"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert chat(client, model="up").status_code == 200


def test_without_models_the_service_is_down_and_says_when_to_come_again() -> None:
    with served(app_of(blender(FakeMember("far", error=DOWN)))) as url, httpx2.Client(base_url=url) as client:
        for _ in range(2):
            chat(client)
        answer = chat(client)
        assert refused(answer, 503, "no_answer") == f"no candidate: far: {CAUSE}"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        health = client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        assert client.head("/healthz").status_code == 503


def test_a_ranker_that_is_down_is_no_reason_to_be_down() -> None:
    broken = blender(FakeMember("a", "one"), FakeMember("b", "one two"), ranker=FakeRanker(BlendError(DOWN)))
    body = {"query": "q", "documents": ["one", "two"]}
    with served(app_of(broken)) as url, httpx2.Client(base_url=url) as client:
        for _ in range(2):
            assert refused(client.post("/v1/rerank", json=body), 503, "no_ranking") == f"no ranking: {DOWN}"
        answer = client.post("/v1/rerank", json=body)
        assert refused(answer, 503, "no_ranking") == f"no ranking: {CAUSE}"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert chat(client).json()["blend"]["degraded"][0].startswith(f"ranker: {CAUSE}; ")
        health = client.get("/healthz")
        assert health.status_code == 200 and health.json()["parts"]["ranker"]["state"] == "open"


@pytest.mark.parametrize("key", [None, "another-long-secret-0001"])
def test_the_cause_is_for_those_who_may_ask(key: str | None) -> None:
    keys = Keys.load(None, {"BLEND_API_KEYS": f"alice={KEY}"})
    with served(app_of(up_and_down(), keys=keys)) as url, httpx2.Client(base_url=url) as client:
        alice = {"authorization": f"Bearer {KEY}"}
        for _ in range(2):
            messages = [{"role": "user", "content": "hello"}]
            asked = {"model": "blend", "messages": messages}
            assert client.post("/v1/chat/completions", json=asked, headers=alice).status_code == 200
        assert client.get("/healthz", headers=alice).json()["parts"]["far"]["cause"] == DOWN
        strangers = client.get("/healthz", headers={"authorization": f"Bearer {key}"} if key else {})
        assert strangers.status_code == 200
        assert strangers.json()["parts"]["far"]["state"] == "open" and "host" not in strangers.text
