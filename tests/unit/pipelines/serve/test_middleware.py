"""What every request passes, on the path as it is routed: keys, bounds and time, under a prefix and without one."""

import asyncio
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_parts import FakeMember, fake_blender
from serving import HELLO, app_of, chat, refused, served
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_blender_ray.configs.serving import Limits, Serving
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.ballots import Ballots

ANN, BOB = ({"authorization": f"Bearer {key}"} for key in ("correct-horse-battery", "staple-battery-horse"))
KEYS = Keys.load(None, {"BLEND_API_KEYS": "ann=correct-horse-battery,bob=staple-battery-horse"})
LIMITS = Limits(body_bytes=10_000)


def under(prefix: str, app: ASGIApp) -> ASGIApp:
    """The app as Ray Serve calls it with a `route_prefix`: the path has the prefix, and `root_path` names it."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"] = prefix
        await app(scope, receive, send)

    return called


@pytest.fixture(scope="module", params=["", "/llm"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A client of a service with keys; its requests have the prefix before their paths."""
    app = app_of(fake_blender(FakeMember("m", "some words")), Serving(limits=LIMITS), keys=KEYS)
    with (
        served(under(request.param, app) if request.param else app) as url,
        httpx2.Client(base_url=url + request.param, timeout=60) as made,
    ):
        yield made


def test_it_works_where_it_is(client: httpx2.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    page = client.get("/")
    assert page.status_code == 200 and "<html" in page.text
    assert client.get("/v1/models", headers=ANN).json()["object"] == "list"
    answer = client.post("/v1/chat/completions", json={"model": "m", "messages": HELLO}, headers=ANN)
    assert answer.json()["choices"][0]["message"]["content"] == "some words"
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


def test_bounds_hold_where_it_is(client: httpx2.Client) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 20_000}]}
    refused(client.post("/v1/chat/completions", json=body, headers=ANN), 413, "too_large")
    form = ANN | {"content-type": "text/plain"}
    refused(client.post("/v1/chat/completions", content="{}", headers=form), 415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/models", "/v1/models/", "/v1/models/m", "/v1/chat/completions", "/v1/chat/completions/", "/v1",
        "//v1/models", "/V1/models", "/v1//models", "/%76%31/models", "/v1%2fmodels", "/x/../v1/models",
        "/healthz/../v1/models", "/healthz/", "//healthz", "/healthz%2f..%2fv1/models", "/Healthz", "//", "/docs",
        "/unknown", "/llm/v1/models", "/llm/llm/v1/models", "/./", "/healthz;/v1/models", "/healthz%00",
    ],
)  # fmt: skip
def test_no_path_but_the_open_ones_is_answered_without_a_key(client: httpx2.Client, method: str, path: str) -> None:
    """As it is sent: clients resolve dots, an attacker's doesn't."""
    target = httpx2.URL(str(client.base_url).rstrip("/")).path.rstrip("/") + path
    response = client.request(method, "/healthz", extensions={"target": target.encode()})
    assert response.status_code == 401, (method, path)


@pytest.mark.parametrize("path", ["/../v1/models", "/%2e%2e/v1/models"])
def test_dots_do_not_lead_out_of_a_prefix(client: httpx2.Client, path: str) -> None:
    prefix = client.base_url.path.rstrip("/")
    response = client.get("/healthz", extensions={"target": (prefix + path).encode()})
    assert response.status_code == 401


def test_a_prefix_without_its_slash_leads_to_the_page() -> None:
    with served(under("/llm", app_of(fake_blender(), keys=KEYS))) as url, httpx2.Client(base_url=url) as client:
        response = client.get("/llm")
        assert (response.status_code, response.headers["location"]) == (307, "/llm/")
        refused(client.get("/v1/models"), 401, "invalid_api_key")  # a path without the prefix is no way round


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "GZIP", "gzip, identity"])
def test_compressed_bodies_are_refused_by_name(client: httpx2.Client, encoding: str) -> None:
    body = gzip.compress(json.dumps({"model": "m", "messages": HELLO}).encode())
    headers = ANN | {"content-type": "application/json", "content-encoding": encoding}
    message = refused(
        client.post("/v1/chat/completions", content=body, headers=headers), 415, "unsupported_content_encoding"
    )
    assert encoding in message
    headers["content-encoding"] = "identity"
    plain = client.post("/v1/chat/completions", content=gzip.decompress(body), headers=headers)
    assert plain.status_code == 200


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "[" * 9000, '{"a":' * 1500, '"\\ud800"', "1" * 300 + ".5"],
    ids=["digits", "huge", "low", "nan", "infinity", "lists", "objects", "surrogate", "long"],
)
def test_odd_json_is_the_clients_mistake(client: httpx2.Client, value: str) -> None:
    headers = ANN | {"content-type": "application/json"}
    for field in ("temperature", "seed", "max_tokens", "messages", "metadata"):
        content = f'{{"model": "m", "{field}": {value}, "stop": null}}'
        response = client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 400 and len(response.content) < 1000


def sent(app: ASGIApp, headers: Sequence[tuple[bytes, bytes]], first: Mapping[str, Any]) -> list[Message]:
    """What is answered under any server to a request of which nothing more than `first` comes."""
    answered: list[Message] = []
    received = [first]

    async def receive() -> Any:
        if received:
            return received.pop()
        return await asyncio.Event().wait()

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "client": ("127.0.0.1", 5000),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers], "query_string": b"",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return answered


def test_headers_are_bounded_under_any_server() -> None:
    limits = Limits(header_bytes=4096, headers=20)
    for headers in ([(b"x", b"1")] * 30, [(b"x", b"x" * 5000)]):
        answered = sent(app_of(fake_blender(), Serving(limits=limits)), headers, {})
        assert answered[0]["status"] == 431


def test_a_body_has_its_time_under_any_server() -> None:
    serving = Serving(limits=Limits(body_s=0.05))
    answered = sent(app_of(fake_blender(), serving), [], {"type": "http.request", "body": b"{", "more_body": True})
    assert answered[0]["status"] == 408
    assert (b"connection", b"close") in answered[0]["headers"]
    assert json.loads(answered[1]["body"])["error"]["code"] == "request_timeout"


def test_a_header_does_not_reach_the_log_or_the_answer(client: httpx2.Client) -> None:
    for id in ('x"}\t{"id":"y', "a b", "x" * 200, "é".encode()):
        response = client.get("/v1/models", headers=ANN | {"x-request-id": id})  # type: ignore[dict-item]
        assert len(response.headers["x-request-id"]) == 32


def test_ids_that_two_clients_choose_are_two_answers(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text("")
    file.chmod(0o644)  # as an earlier program left it
    member, other = FakeMember("m", "some words"), FakeMember("o", "other words")
    app = app_of(fake_blender(member, other), keys=KEYS, ballots=Ballots(str(file)))
    vote = {"id": "mine", "left": 0, "right": 1, "preferred": "left"}
    with served(app) as url, httpx2.Client(base_url=url) as client:
        for key in (ANN, BOB):
            client.headers.update(key | {"x-request-id": "mine"})
            assert chat(client, blend={"vote": True}).status_code == 200
        for key in (BOB, ANN):
            client.headers.update(key)
            assert client.post("/v1/votes", json=vote).json() == {"object": "vote", "id": "mine"}
            assert chat(client, blend={"vote": True}).status_code == 200
            refused(client.post("/v1/votes", json=vote), 409, "voted_before")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["bob/mine", "ann/mine"]
    assert file.stat().st_mode & 0o077 == 0
