"""The endpoint engine against a real HTTP server that misbehaves: what is retried, what isn't, what leaks."""

import asyncio
import logging
import socket
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, completion, cut, drip, hang, respond

from actors.engines import Completion
from actors.engines.endpoint_engine import EndpointEngine
from actors.errors import GenerationError, ModelLoadError
from actors.records import Message
from configs.schema import EndpointModel, Sampling

KEY_ENV, KEY = "TEST_ENDPOINT_KEY", "sk-very-secret-0123456789"
CHAT = [Message(role="user", content="hi")]
HELLO = Completion("hello", "stop", prompt_tokens=3, completion_tokens=2)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def make_engine(url: str, **settings: Any) -> EndpointEngine:
    given = {"api_key_env": KEY_ENV, "timeout_s": 30, "max_retries": 2, **settings}
    return EndpointEngine(EndpointModel(name="far", engine="endpoint", model="m", base_url=url, **given))


def ask(
    *faults: Fault, sampling: Sampling | None = None, **settings: Any
) -> tuple[Completion | GenerationError, EndpointServer]:
    """One question to a server with these faults: the answer or the error, and the server."""

    async def main() -> tuple[Completion | GenerationError, EndpointServer]:
        async with EndpointServer(faults) as server:
            engine = make_engine(server.url, **settings)
            try:
                return await engine.generate(CHAT, sampling or Sampling()), server
            except GenerationError as error:
                return error, server
            finally:
                await engine.close()

    return asyncio.run(main())


def test_request_is_openai_s_and_says_nothing_that_is_not_set() -> None:
    answer, server = ask()
    assert answer == HELLO
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {"model": "m", "messages": CHAT, "temperature": 0.0, "max_tokens": 512}


def test_request_carries_every_setting() -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, top_k=4, stop=("a", "b"), seed=3)
    _, server = ask(sampling=sampling)
    assert server.requests[0].body == {
        "model": "m",
        "messages": CHAT,
        "temperature": 0.5,
        "max_tokens": 7,
        "top_p": 0.9,
        "top_k": 4,
        "stop": ["a", "b"],
        "seed": 3,
    }


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(respond(429, {"error": {"message": "slow down"}}, retry_after="0.02"), id="429"),
        pytest.param(respond(500, "oops", "text/plain", retry_after_ms="20"), id="500"),
        pytest.param(respond(503, {}, retry_after_ms="20"), id="503"),
        pytest.param(hang, id="hang"),
        pytest.param(drip, id="drip"),
        pytest.param(cut, id="cut"),
    ],
)
def test_passing_fault_is_retried(fault: Fault) -> None:
    answer, server = ask(fault, timeout_s=1 if fault in (hang, drip) else 30)
    assert answer == HELLO
    assert len(server.requests) == 2


def test_retry_after_is_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="openai"):
        ask(respond(429, {}, retry_after="0.125"))
    waits = [record.args[0] for record in caplog.records if record.msg.startswith("Retrying request in")]  # type: ignore[index]
    assert waits == [0.125]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(respond(429, {"error": {"message": "busy"}}, retry_after_ms="5"), "429", id="429"),
        pytest.param(respond(502, "bad gateway", "text/plain", retry_after_ms="5"), "502", id="502"),
        pytest.param(hang, "no answer within 0.2 s in 2 tries", id="hang"),
        pytest.param(cut, "in 2 tries", id="cut"),
    ],
)
def test_retries_end(fault: Fault, says: str) -> None:
    error, server = ask(*[fault] * 5, max_retries=1, timeout_s=0.2 if fault is hang else 30)
    assert isinstance(error, GenerationError)
    assert says in str(error)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_is_named_but_not_shown_and_not_retried(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        error, server = ask(respond(status, {"error": {"message": f"no such key: {KEY}"}}))
    assert isinstance(error, GenerationError)
    assert KEY_ENV in str(error)
    assert len(server.requests) == 1
    for text in (str(error), repr(error), caplog.text, str(error.__cause__), str(error.__context__)):
        assert KEY not in text


def test_key_that_a_server_repeats_is_blotted_out() -> None:
    error, _ = ask(respond(400, {"error": {"message": f"bad request of {KEY}"}}))
    assert isinstance(error, GenerationError)
    assert "bad request of ***" in str(error)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(respond(200, '{"choices": [{"mess'), "isn't a chat completion", id="broken json"),
        pytest.param(respond(200, "<html>", "text/html"), "isn't a chat completion", id="html"),
        pytest.param(respond(200, "[1, 2]"), "isn't a chat completion", id="other json"),
        pytest.param(respond(200, {"choices": []}), "choices", id="no choices"),
        pytest.param(respond(200, {"error": "x"}), "choices", id="error as 200"),
        pytest.param(respond(200, completion(None, "tool_calls")), "no text", id="null content"),
        pytest.param(respond(200, completion("", "content_filter")), "content filter", id="content filter"),
        pytest.param(respond(400, {"error": {"message": "context too long"}}), "context too long", id="400"),
        pytest.param(respond(404, {"error": {"message": "no model m"}}), "no model m", id="404"),
    ],
)
def test_useless_answer_is_an_error_at_once(fault: Fault, says: str) -> None:
    error, server = ask(fault)
    assert isinstance(error, GenerationError)
    assert says in str(error)
    assert "\n" not in str(error)
    assert len(server.requests) == 1


def test_missing_usage_and_odd_finish_reason_are_accepted() -> None:
    assert ask(respond(200, completion("hi", "eos")))[0] == Completion("hi", "stop")
    assert ask(respond(200, completion("hi", "length")))[0] == Completion("hi", "length")


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.socket() as bound:  # bound and not listening: connections are refused
            bound.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
            engine = make_engine(url, max_retries=0)
            with pytest.raises(GenerationError, match=url):
                await engine.generate(CHAT, Sampling())
            await engine.close()

    asyncio.run(main())


def test_requests_in_flight_are_bounded() -> None:
    async def main() -> EndpointServer:
        together = asyncio.Barrier(4)  # nobody is answered before four are there: fewer in flight would hang

        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            await together.wait()
            for _ in range(200):  # turns of the loop in which a fifth could arrive
                await asyncio.sleep(0)
            return completion("hello")

        async with EndpointServer(answer=answer) as server:
            engine = make_engine(server.url, max_in_flight=4)
            await asyncio.gather(*(engine.generate(CHAT, Sampling()) for _ in range(12)))
            await engine.close()
            return server

    server = asyncio.run(main())
    assert len(server.requests) == 12
    assert server.max_in_flight == 4


def test_cancelling_closes_the_connection() -> None:
    async def main() -> None:
        async with EndpointServer([hang]) as server:
            engine = make_engine(server.url)
            task = asyncio.create_task(engine.generate(CHAT, Sampling()))
            while not server.requests:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.disconnected.wait(), 30)
            await engine.close()

    asyncio.run(main())


def test_missing_key_is_told_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(ModelLoadError, match=KEY_ENV):
        make_engine("http://127.0.0.1:9/v1")


def test_endpoint_without_key() -> None:
    answer, server = ask(api_key_env=None)
    assert answer == HELLO
    assert KEY not in server.requests[0].headers["authorization"]
