"""The endpoint engine against a real HTTP server that misbehaves: what is retried, what isn't, what leaks."""

import asyncio
import contextlib
import gzip
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import yaml
from endings import followed
from endpoint_server import (
    EndpointServer,
    Fault,
    chunk,
    comment,
    completion,
    cut,
    drip,
    hang,
    leave,
    respond,
    stream,
    usage_chunk,
)
from pydantic import ValidationError

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.engines.endpoint_engine import EndpointEngine
from llm_blender_ray.actors.errors import (
    GenerationError,
    ModelLoadError,
    PermanentError,
    PromptError,
    RejectedError,
    TooLongError,
    UnavailableError,
)
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import EndpointModel, Sampling

KEY_ENV, KEY = "TEST_ENDPOINT_KEY", "sk-very-secret-0123456789"
CHAT = [Message(role="user", content="hi")]
HELLO = Completion("hello", "stop", prompt_tokens=3, completion_tokens=2)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # 0.5 s without Retry-After


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


def follow(
    *faults: Fault, sampling: Sampling | None = None, **settings: Any
) -> tuple[list[str], Completion | GenerationError, EndpointServer]:
    """The same as a stream: its pieces, how it ended, and the server."""

    async def main() -> tuple[list[str], Completion | GenerationError, EndpointServer]:
        pieces: list[str] = []
        async with EndpointServer(faults) as server:
            engine = make_engine(server.url, **settings)
            try:
                async for piece in engine.stream(CHAT, sampling or Sampling()):
                    if isinstance(piece, Completion):
                        return pieces, piece, server
                    pieces.append(piece)
                raise AssertionError("no completion")
            except GenerationError as error:
                return pieces, error, server
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
        pytest.param(respond(200, {"error": "no GPU left"}), "no GPU left", id="error as 200"),
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


def test_request_for_a_stream() -> None:
    pieces, answer, server = follow()
    assert (pieces, answer) == (["hel", "lo"], HELLO)
    (request,) = server.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "m",
        "messages": CHAT,
        "temperature": 0.0,
        "max_tokens": 512,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_token_counts_of_a_stream_need_not_be_asked_for() -> None:
    pieces, answer, server = follow(stream_usage=False)
    assert (pieces, answer) == (["hel", "lo"], Completion("hello", "stop"))
    assert "stream_options" not in server.requests[0].body


def test_pieces_come_as_they_are_sent() -> None:
    """The server sends the second piece after the first has arrived."""

    async def main() -> list[str | Completion]:
        arrived = asyncio.Event()

        async def chunks(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            yield chunk("hel")
            await arrived.wait()
            yield chunk("lo", "stop")

        pieces: list[str | Completion] = []
        async with EndpointServer(chunks=chunks) as server:
            engine = make_engine(server.url)
            async for piece in engine.stream(CHAT, Sampling()):
                pieces.append(piece)
                arrived.set()
            await engine.close()
        return pieces

    assert asyncio.run(main()) == ["hel", "lo", Completion("hello", "stop")]


@pytest.mark.parametrize(
    ("events", "answer"),
    [
        pytest.param([chunk("hi", "length")], Completion("hi", "length"), id="no [DONE]"),
        pytest.param([chunk("hi"), chunk("", "eos"), "[DONE]"], Completion("hi", "stop"), id="odd reason"),
        pytest.param([chunk(""), chunk(finish_reason="stop"), "[DONE]"], Completion("", "stop"), id="empty"),
        pytest.param(
            [chunk("a", usage=None), chunk("b", "stop", usage={"prompt_tokens": 4, "completion_tokens": 2})],
            Completion("ab", "stop", 4, 2),
            id="counts in the last chunk",
        ),
        pytest.param([usage_chunk(1, 0), chunk("a", "stop")], Completion("a", "stop", 1, 0), id="counts first"),
    ],
)
def test_streams_of_other_servers(events: list[object], answer: Completion) -> None:
    pieces, read, _ = follow(stream(*events))
    assert read == answer
    assert "".join(pieces) == answer.text and all(pieces)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(respond(429, {"error": {"message": "slow down"}}, retry_after="0.02"), id="429"),
        pytest.param(respond(503, {}, retry_after_ms="20"), id="503"),
        pytest.param(hang, id="hang"),
    ],
)
def test_fault_before_a_stream_is_retried(fault: Fault) -> None:
    pieces, answer, server = follow(fault, timeout_s=1 if fault is hang else 30)
    assert (pieces, answer) == (["hel", "lo"], HELLO)
    assert len(server.requests) == 2


HI = [chunk(""), chunk("hi")]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(stream(*HI, then=leave), "connection broke in the midst", id="cut"),
        pytest.param(stream(*HI), "without a finish_reason", id="ended"),
        pytest.param(stream(*HI, "[DONE]"), "without a finish_reason", id="done"),
        pytest.param(stream(*HI, "[DONE]", then=comment), "without a finish_reason", id="done and goes on"),
        pytest.param(stream(*HI, {"error": {"message": "worker died"}}), "worker died", id="error"),
        pytest.param(stream(*HI, {"error": "worker died"}), "worker died", id="error as text"),
        pytest.param(stream(*HI, '{"choices": [{"del'), "isn't a chat completion", id="broken json"),
        pytest.param(stream(*HI, completion("hi")), "isn't a chat completion", id="no delta"),
        pytest.param(stream(*HI, chunk("x" * (1 << 21))), "isn't a stream of events", id="endless event"),
        pytest.param(stream(*HI, chunk("", "content_filter")), "content filter", id="content filter"),
    ],
)
def test_stream_that_breaks_off_is_an_error_and_not_retried(fault: Fault, says: str) -> None:
    pieces, error, server = follow(fault)
    assert isinstance(error, GenerationError) and not isinstance(error, PromptError)
    assert says in str(error) and "\n" not in str(error)
    assert pieces == ["hi"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("silence", [hang, comment], ids=["silent", "dripping"])
def test_stream_is_no_longer_than_an_attempt(silence: Fault) -> None:
    pieces, error, server = follow(stream(*HI, then=silence), timeout_s=0.3)
    assert isinstance(error, GenerationError)
    assert "didn't end within 0.3 s" in str(error)
    assert pieces == ["hi"] and len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(respond(200, completion("hi")), "isn't a stream of events", id="not a stream"),
        pytest.param(stream("[DONE]"), "without a finish_reason", id="nothing"),
        pytest.param(stream(chunk(finish_reason="tool_calls")), "no text", id="no text"),
        pytest.param(respond(404, {"error": {"message": "no model m"}}), "no model m", id="404"),
    ],
)
def test_no_stream_is_an_error_at_once(fault: Fault, says: str) -> None:
    pieces, error, server = follow(fault)
    assert isinstance(error, GenerationError)
    assert says in str(error) and "\n" not in str(error)
    assert not pieces and len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(respond(401, {"error": {"message": f"no such key: {KEY}"}}), id="refused"),
        pytest.param(stream(*HI, {"error": {"message": f"no quota for {KEY}"}}), id="midway"),
        pytest.param(stream(*HI, then=leave), id="cut"),
    ],
)
def test_stream_s_errors_do_not_show_the_key(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _, error, _ = follow(fault)
    assert isinstance(error, GenerationError)
    for text in (str(error), repr(error), caplog.text, str(error.__cause__), str(error.__context__)):
        assert KEY not in text
    assert error.__cause__ is None and error.__context__ is None  # they would hold the request


REFUSED = {"error": {"message": "17 tokens", "code": "context_length_exceeded"}}


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        pytest.param(respond(413, "too large", "text/plain"), True, id="413"),
        pytest.param(respond(400, REFUSED), True, id="400 with the code"),
        pytest.param(respond(400, {"error": {"message": "no temperature"}}), False, id="400"),
        pytest.param(respond(404, REFUSED), False, id="404"),
    ],
)
def test_prompt_that_will_never_be_answered_is_told_apart(fault: Fault, refused: bool) -> None:
    for error in (ask(fault)[0], follow(fault)[1]):
        assert isinstance(error, GenerationError)
        assert isinstance(error, PromptError) is isinstance(error, TooLongError) is refused


def test_prompt_that_is_refused_within_its_stream() -> None:
    assert isinstance(follow(stream(REFUSED))[1], TooLongError)


def test_closing_a_stream_closes_its_connection() -> None:
    async def main() -> None:
        async with EndpointServer([stream(*HI, then=hang)]) as server:
            engine = make_engine(server.url, max_in_flight=1)
            pieces = engine.stream(CHAT, Sampling())
            assert await anext(pieces) == "hi"
            await pieces.aclose()
            await asyncio.wait_for(server.disconnected.wait(), 30)
            assert await engine.generate(CHAT, Sampling()) == HELLO  # its place in flight is free
            await engine.close()

    asyncio.run(main())


def test_connection_of_a_stream_is_used_again() -> None:
    """The server, which keeps connections open, sends the body's end after its last event."""

    async def main() -> int:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                await stream(chunk("hi", "stop"), "[DONE]", connection="keep-alive")(writer)

        async def tolerant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
            writer.close()

        async with await asyncio.start_server(tolerant, "127.0.0.1", 0) as server:
            engine = make_engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            for _ in range(3):
                pieces = [piece async for piece in engine.stream(CHAT, Sampling())]
                assert pieces == ["hi", Completion("hi", "stop")]
            await engine.close()
        return connections

    assert asyncio.run(main()) == 1


RATE_LIMITED = {"error": {"message": "Provider returned error: rate limited upstream", "code": 429}}
BROKEN_OFF = completion("The capital of Fra", "error")
BROKEN_OFF["choices"][0]["error"] = {"code": 502, "message": "the worker died"}


@pytest.mark.parametrize(
    "body", [RATE_LIMITED, BROKEN_OFF, {"error": {"message": "x", "type": "overloaded_error"}}]
)
def test_passing_failure_in_a_200_is_retried(body: dict[str, Any]) -> None:
    answer, server = ask(respond(200, body, retry_after="0.02"))
    assert answer == HELLO and len(server.requests) == 2


def test_failure_in_a_200_is_told_with_its_status_when_retries_end() -> None:
    error, server = ask(*[respond(200, RATE_LIMITED, retry_after_ms="5")] * 3)
    assert isinstance(error, GenerationError) and not isinstance(error, RejectedError | PermanentError)
    assert str(error).endswith("/v1: 429: Provider returned error: rate limited upstream")
    assert len(server.requests) == 3
    error, server = ask(respond(200, BROKEN_OFF), max_retries=0)
    assert str(error).endswith("/v1: 502: the worker died")


def test_retry_after_is_obeyed_of_a_200(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="openai"):
        ask(respond(200, RATE_LIMITED, retry_after="0.125"))
    waits = [record.args[0] for record in caplog.records if record.msg.startswith("Retrying request in")]  # type: ignore[index]
    assert waits == [0.125]


@pytest.mark.parametrize(
    "before", [[], [chunk("")], [chunk(""), "", usage_chunk(1, 0)]], ids=["first", "role", "more"]
)
@pytest.mark.parametrize("event", [RATE_LIMITED, {**chunk("", "error"), "error": {"code": 503, "message": "x"}}])
def test_failure_of_a_stream_without_text_is_retried(before: list[object], event: dict[str, Any]) -> None:
    pieces, answer, server = follow(stream(*before, event))
    assert (pieces, answer) == (["hel", "lo"], HELLO)
    assert len(server.requests) == 2


def test_break_of_a_stream_without_text_is_retried() -> None:
    pieces, answer, server = follow(stream(chunk(""), then=leave))
    assert (pieces, answer) == (["hel", "lo"], HELLO)
    assert len(server.requests) == 2


def test_failure_of_a_stream_with_text_is_told() -> None:
    pieces, error, server = follow(stream(*HI, RATE_LIMITED))
    assert pieces == ["hi"] and len(server.requests) == 1
    assert "it broke the answer off: 429: Provider returned error: rate limited" in str(error)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (RATE_LIMITED, "429: Provider returned error: rate limited upstream"),
        ({"error": "no GPU left"}, "no GPU left"),
    ],
)
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_failure_in_place_of_a_stream_is_told(body: dict[str, Any], says: str, content_type: str) -> None:
    pieces, error, _ = follow(respond(200, body, content_type), max_retries=0)
    assert not pieces and str(error).endswith(f"/v1: {says}")


def test_event_called_error_is_a_failure_in_any_form() -> None:
    async def error(writer: asyncio.StreamWriter) -> None:
        event = b"event: error\ndata: upstream died\n\n"
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n0\r\n\r\n")
        await writer.drain()

    for before in ([], HI):
        _, failed, _ = follow(stream(*before, then=error), max_retries=0)
        assert isinstance(failed, GenerationError) and "upstream died" in str(failed)


def test_reasoning_is_streamed_as_it_comes() -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hmm "}}]}

    async def break_off(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    pieces, answer, _ = follow(stream(*[thought] * 2, chunk("hi"), chunk("", "stop")))
    hmm = ReasoningDelta("hmm ")
    assert (pieces, answer) == ([hmm, hmm, "hi"], Completion("hi", "stop", reasoning="hmm hmm "))
    pieces, error, server = follow(stream(thought, then=break_off), max_retries=3)
    assert pieces == [hmm] and isinstance(error, GenerationError) and len(server.requests) == 1  # some of it is out


def test_a_whole_answer_may_come_as_a_stream() -> None:
    answer, server = ask(stream=True)
    assert answer == HELLO
    assert server.requests[0].body == {
        "model": "m",
        "messages": CHAT,
        "temperature": 0.0,
        "max_tokens": 512,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    thought = {"choices": [{"delta": {"reasoning_content": "hmm "}}]}
    answer, _ = ask(stream(thought, chunk("hi"), chunk("", "stop"), "[DONE]", then=comment), stream=True)
    assert answer == Completion("hi", "stop", reasoning="hmm ")


def test_a_server_may_send_a_stream_or_a_whole_answer_whatever_it_was_asked_for() -> None:
    assert ask(stream(chunk("hi", "length"), "[DONE]"))[0] == Completion("hi", "length")
    assert ask(respond(200, completion("hi")), stream=True)[0] == Completion("hi", "stop")


def test_token_counts_that_a_server_refuses_are_not_asked_for_again() -> None:
    answer, server = ask(USAGE, stream=True)
    assert answer == Completion("hello", "stop")
    assert ["stream_options" in request.body for request in server.requests] == [True, False]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(stream(*HI, then=leave), id="cut"),
        pytest.param(stream(*HI), id="ended"),
        pytest.param(stream(*HI, "[DONE]"), id="done"),
        pytest.param(stream("[DONE]"), id="nothing"),
        pytest.param(stream(*HI, {"error": {"message": "worker died"}}), id="error"),
        pytest.param(stream(*HI, {"error": {"message": "busy", "code": 503}}), id="503"),
        pytest.param(stream({"error": {"message": "busy", "code": 429}}), id="429 at once"),
        pytest.param(stream(*HI, '{"choices": [{"del'), id="broken json"),
        pytest.param(stream(*HI, then=hang), id="hang"),
        pytest.param(stream(*HI, then=comment), id="drip"),
    ],
)
def test_stream_of_a_whole_answer_is_retried_where_it_breaks_off(fault: Fault) -> None:
    """The parts of two attempts are never one answer."""
    answer, server = ask(fault, stream=True, timeout_s=1 if fault.__name__ == "hang" else 5)
    assert answer == HELLO
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (stream(*HI, then=leave), UnavailableError, "no connection, or it broke in 2 tries"),
        (stream(*HI), UnavailableError, "it broke the answer off in 2 tries: the answer broke off: its stream"),
        (
            stream(*HI, {"error": "worker died"}),
            UnavailableError,
            "it broke the answer off in 2 tries: worker died",
        ),
        (stream(*HI, {"error": {"message": "busy", "code": 503}}), UnavailableError, "503: busy"),
        (stream(*HI, {"error": {"message": "slow down", "code": 429}}), GenerationError, "429: slow down"),
    ],
)
def test_stream_of_a_whole_answer_that_never_ends_well(fault: Fault, kind: type[Exception], says: str) -> None:
    error, server = ask(*[fault] * 3, stream=True, max_retries=1)
    assert type(error) is kind and says in str(error)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (stream(*HI, chunk("", "content_filter")), RejectedError, "content filter"),
        (stream(chunk(finish_reason="length")), GenerationError, "no text (finish_reason length)"),
        (stream({"error": {"message": "odd"}}), GenerationError, "odd"),
        (stream(*HI, {"error": {"message": "bad", "code": 400}}), RejectedError, "400: bad"),
        (stream(REFUSED), TooLongError, "17 tokens"),
        (stream(*HI, chunk("x" * (1 << 21))), GenerationError, "isn't a stream of events"),
        (
            respond(200, '{"error": {"message": "no key", "code": 401}}', "text/event-stream"),
            PermanentError,
            "401: ",
        ),
    ],
)
def test_stream_of_a_whole_answer_that_another_attempt_would_not_mend(
    fault: Fault, kind: type[Exception], says: str
) -> None:
    error, server = ask(fault, stream=True)
    assert type(error) is kind and says in str(error) and "\n" not in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 429, 503])
def test_status_of_a_failure_amid_a_stream_is_told(status: int) -> None:
    _, error, _ = follow(stream(*HI, {"error": {"message": "sorry", "code": status}}))
    assert f"it broke the answer off: {status}: sorry" in str(error)


@pytest.mark.parametrize("length", ["content-length", "chunked", "gzip"])
@pytest.mark.parametrize("status", [200, 400, 503])
def test_too_large_a_response_is_an_error_at_once(length: str, status: int) -> None:
    """The server would send 400 MiB; it is left long before."""
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        size = 400 << 20
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        if length == "gzip":
            bomb = gzip.compress(b" " * (64 << 20))
            writer.write(f"{head}content-encoding: gzip\r\ncontent-length: {len(bomb)}\r\n\r\n".encode() + bomb)
            await writer.drain()
            return
        framing = f"content-length: {size}" if length == "content-length" else "transfer-encoding: chunked"
        writer.write(f"{head}{framing}\r\n\r\n".encode())
        block = b" " * (1 << 16)
        while sent < size:
            writer.write(block if length == "content-length" else b"10000\r\n" + block + b"\r\n")
            sent += len(block)
            await writer.drain()

    error, server = ask(flood, max_answer_mib=2)
    assert isinstance(error, GenerationError) and "exceeds 2 MiB; max_answer_mib" in str(error)
    assert sent < 40 << 20 and len(server.requests) == 1


def test_too_large_a_stream_is_an_error() -> None:
    pieces, error, _ = follow(stream(*[chunk("x" * 100_000)] * 40), max_answer_mib=1)
    assert isinstance(error, GenerationError) and "exceeds 1 MiB" in str(error)
    assert 5 < len(pieces) < 12


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (respond(401, {}), PermanentError, "401: it refused the key"),
        (respond(402, {"error": {"message": "Insufficient Balance"}}), PermanentError, "402: Insufficient Balance"),
        (respond(403, {"error": "no"}), PermanentError, "403: "),
        (respond(404, "<html><title>404\n Not Found</title>", "text/html"), PermanentError,
         "404: a web page '404 Not Found' (text/html); check base_url"),
        (respond(400, {"error": {"message": "x is not a valid model ID", "code": 400}}), PermanentError, "400: "),
        (respond(200, {"error": {"message": "no such key", "code": 401}}), PermanentError, "401: "),
        (respond(403, {"error": {"message": "flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}),
         RejectedError, "403: flagged"),
        (respond(400, {"error": {"message": "odd"}}), RejectedError, "400: odd"),
        (respond(422, {"detail": [{"loc": ["body", "x"], "msg": "bad"}]}), RejectedError, "422: body.x: bad"),
        (respond(200, completion("x", "content_filter")), RejectedError, "content filter"),
        (respond(307, "", location="https://elsewhere/v1?key=secret"), PermanentError,
         "307: it redirects to https://elsewhere/v1; set base_url to where it is"),
        (respond(302, "", location="/login"), PermanentError, "302: it redirects to /login"),
        (respond(200, "<html><title>Log in</title>", "text/html"), GenerationError,
         "isn't a chat completion: a web page 'Log in' (text/html); check base_url"),
        (respond(200, "oops", "text/plain"), GenerationError, "isn't a chat completion: 'oops' (text/plain)"),
        (respond(204, ""), GenerationError, "isn't a chat completion: an empty body"),
        (respond(500, {"error": "the input length exceeds the context length"}), TooLongError, "400: "),
        (respond(422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 20"}), TooLongError, "422: "),
    ],
)  # fmt: skip
def test_what_a_failure_means_for_other_prompts(fault: Fault, kind: type[Exception], says: str) -> None:
    for error, server in (ask(fault), follow(fault)[1:]):
        assert type(error) is kind
        assert says in str(error).replace("stream of events", "chat completion")
        assert "\n" not in str(error) and len(server.requests) == 1


MAX_TOKENS = respond(
    400,
    {
        "error": {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
    },
)
TEMPERATURE = respond(
    400,
    {
        "error": {
            "message": "Unsupported value: 'temperature' does not support 0 with this model.",
            "param": "temperature",
            "code": "unsupported_value",
        }
    },
)
USAGE = respond(400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}})
SEED = respond(
    422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
)


def ask_twice(
    *faults: Fault, sampling: Sampling | None = None, **settings: Any
) -> tuple[list[Completion | GenerationError], list[dict[str, Any]]]:
    """Two streams from one engine, and the parameters of its requests."""

    async def main() -> tuple[list[Completion | GenerationError], list[dict[str, Any]]]:
        async with EndpointServer(faults) as server:
            engine = make_engine(server.url, **settings)
            ends = [(await followed(engine.stream(CHAT, sampling or Sampling())))[1] for _ in range(2)]
            await engine.close()
        return ends, [{n: v for n, v in r.body.items() if n not in ("model", "messages")} for r in server.requests]

    return asyncio.run(main())


def test_parameters_that_are_refused_are_left_out_and_not_sent_again() -> None:
    ends, requests = ask_twice(MAX_TOKENS, TEMPERATURE, USAGE)
    assert ends == [Completion("hello", "stop")] * 2
    assert requests[3:] == [{"max_completion_tokens": 512, "stream": True}] * 2


def test_a_parameter_that_is_set_is_left_out_only_where_the_config_allows() -> None:
    sampling = Sampling(temperature=0.7, seed=3)
    (error, answer), requests = ask_twice(SEED, sampling=sampling)
    assert isinstance(error, RejectedError) and "422: body.seed" in str(error)
    assert answer == HELLO and len(requests) == 2
    ends, requests = ask_twice(SEED, TEMPERATURE, sampling=sampling, drop_params=True)
    assert ends == [HELLO] * 2
    assert [{*request} & {"seed", "temperature"} for request in requests] == [
        {"seed", "temperature"},
        {"temperature"},
        set(),
        set(),
    ]


def test_a_parameter_that_is_set_later_is_sent_again() -> None:
    """A request's own temperature isn't the default that the endpoint has refused."""

    async def main() -> list[Any]:
        async with EndpointServer([TEMPERATURE]) as server:
            engine = make_engine(server.url)
            await engine.generate(CHAT, Sampling())
            await engine.generate(CHAT, Sampling(temperature=1.0))
            await engine.generate(CHAT, Sampling())
            await engine.close()
        return [request.body.get("temperature") for request in server.requests]

    assert asyncio.run(main()) == [0.0, None, 1.0, None]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_name_of_the_length_can_be_set(field: str) -> None:
    error, server = ask(MAX_TOKENS, max_tokens_field=field)
    assert isinstance(error, RejectedError) and len(server.requests) == 1
    assert server.requests[0].body[field] == 512


def test_null_sends_no_temperature() -> None:
    _, server = ask(sampling=Sampling(temperature=None))
    assert "temperature" not in server.requests[0].body


def test_further_fields_and_headers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("GATEWAY", "gw-secret-77")
    settings = {
        "extra_body": {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        "headers": {"x-title": "mine"},
        "headers_env": {"api-key": "GATEWAY"},
    }
    with caplog.at_level(logging.DEBUG):
        error, server = ask(
            respond(400, {"error": {"message": "no gw-secret-77"}}), sampling=Sampling(top_k=4), **settings
        )
    (request,) = server.requests
    assert (request.body["reasoning_effort"], request.body["top_k"]) == ("low", 4)
    assert request.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (request.headers["x-title"], request.headers["api-key"]) == ("mine", "gw-secret-77")
    assert str(error).endswith("400: no ***") and "gw-secret-77" not in caplog.text


DEPLOYMENT = "/openai/deployments/m/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("url", "path", "key"),
    [
        ("", DEPLOYMENT, {"api-key": KEY}),
        ("/", DEPLOYMENT, {"api-key": KEY}),
        ("/openai", DEPLOYMENT, {"api-key": KEY}),
        ("/gateway/openai/", f"/gateway{DEPLOYMENT}", {"api-key": KEY}),
        ("/openai/deployments/other", DEPLOYMENT.replace("/m/", "/other/"), {"api-key": KEY}),
        ("/openai/v1/", "/openai/v1/chat/completions?api-version=2024-10-21", {"authorization": f"Bearer {KEY}"}),
        ("/models", "/models/chat/completions?api-version=2024-10-21", {"authorization": f"Bearer {KEY}"}),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_api_version_is_azure_s(url: str, path: str, key: dict[str, str], streams: bool) -> None:
    async def main() -> EndpointServer:
        async with EndpointServer() as server:
            engine = make_engine(server.url.removesuffix("/v1") + url, api_version="2024-10-21", stream=streams)
            assert await engine.generate(CHAT, Sampling()) == HELLO
            assert (await followed(engine.stream(CHAT, Sampling())))[1] == HELLO
            await engine.close()
        return server

    for request in asyncio.run(main()).requests:
        assert request.path == path and request.body["messages"] == CHAT
        assert {
            name: request.headers[name] for name in ("api-key", "authorization") if name in request.headers
        } == key


def test_api_version_may_be_a_date_of_yaml() -> None:
    given = yaml.safe_load("{name: a, engine: endpoint, model: m, base_url: 'https://a', api_version: 2024-10-21}")
    assert EndpointModel(**given).api_version == "2024-10-21"


def test_token_takes_the_place_of_azure_s_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "Bearer entra")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "somebody else's")

    async def main() -> EndpointServer:
        async with EndpointServer() as server:
            given = {"api_key_env": None, "headers_env": {"authorization": "TOKEN"}, "api_version": "2024-10-21"}
            engine = make_engine(server.url.removesuffix("/v1"), **given)
            assert await engine.generate(CHAT, Sampling()) == HELLO
            await engine.close()
        return server

    (request,) = asyncio.run(main()).requests
    assert request.headers["authorization"] == "Bearer entra" and "api-key" not in request.headers


@pytest.mark.parametrize("api_version", [None, "2024-10-21"])
def test_openai_s_variables_are_not_sent_to_other_services(
    api_version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-ours")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway-Token: ours\nAuthorization: Bearer ours")

    async def main() -> EndpointServer:
        async with EndpointServer() as server:
            headers = {"OpenAI-Organization": "org-theirs"}
            engine = make_engine(server.url, api_version=api_version, headers=headers)
            assert await engine.generate(CHAT, Sampling()) == HELLO
            await engine.close()
        return server

    (request,) = asyncio.run(main()).requests
    assert request.headers["openai-organization"] == "org-theirs"
    assert not any("ours" in value for value in request.headers.values()), request.headers


@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "https://eu.api.openai.com/v1"])
@pytest.mark.parametrize("headers", [{}, {"openai-organization": "org-set"}])
def test_openai_itself_gets_its_variables(
    url: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-variable")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-variable")
    client = make_engine(url, headers=headers)._client
    sent = httpx2.Headers({name: text for name, text in client.default_headers.items() if isinstance(text, str)})
    assert sent["openai-organization"] == headers.get("openai-organization", "org-variable")
    assert sent["openai-project"] == "proj-variable"


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        (None, {"thinking_token_budget": 64, "reasoning": {"effort": "low"}}),
        ("reasoning.max_tokens", {"reasoning": {"effort": "low", "max_tokens": 64}}),
        ("thinking.budget", {"thinking": {"budget": 64}, "reasoning": {"effort": "low"}}),
    ],
)
def test_the_budget_of_reasoning_has_a_field_of_its_own(field: str | None, sent: dict[str, Any]) -> None:
    settings = {"extra_body": {"reasoning": {"effort": "low"}}} | (
        {"thinking_budget_field": field} if field else {}
    )
    _, server = ask(sampling=Sampling(thinking_token_budget=64), **settings)
    assert sent.items() <= server.requests[0].body.items()


def test_a_clients_effort_is_left_out_where_it_is_refused() -> None:
    """A request is of all models, and not all of them reason."""
    told = {"message": "Unknown parameter: 'reasoning_effort'", "param": "reasoning_effort"}
    refusal = respond(400, {"error": {**told, "code": "unsupported_parameter"}})
    answer, server = ask(refusal, sampling=Sampling(reasoning_effort="low"))
    assert isinstance(answer, Completion)
    assert [request.body.get("reasoning_effort") for request in server.requests] == ["low", None]


def test_a_header_may_take_the_key_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "Basic abc")
    _, server = ask(api_key_env=None, headers_env={"authorization": "GATEWAY"})
    assert server.requests[0].headers["authorization"] == "Basic abc"


@pytest.mark.parametrize(("value", "says"), [(None, "set the environment variable"), ("a\nb", "printable")])
def test_a_header_s_missing_value_is_told_at_load(
    monkeypatch: pytest.MonkeyPatch, value: str | None, says: str
) -> None:
    monkeypatch.delenv("GATEWAY", raising=False)
    if value:
        monkeypatch.setenv("GATEWAY", value)
    with pytest.raises(ModelLoadError, match=f"{says}.*" if value is None else says) as error:
        make_engine("http://127.0.0.1:9/v1", headers_env={"x-key": "GATEWAY"})
    assert "GATEWAY" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"headers": {"Authorization": "Bearer x"}}, "Authorization is a secret"),
        ({"headers": {"x-api-key": "x"}}, "x-api-key is a secret"),
        ({"headers": {"bad name": "x"}}, "isn't the name of a header"),
        ({"headers": {"x": "a\nb"}}, "expected printable ASCII"),
        ({"extra_body": {"temperature": 1}}, r"temperature is written by sampling\.temperature"),
        ({"extra_body": {"messages": []}}, "messages is written by"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make_engine("http://127.0.0.1:9/v1", **settings)


def test_missing_key_is_told_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(ModelLoadError, match=KEY_ENV):
        make_engine("http://127.0.0.1:9/v1")


def test_endpoint_without_key() -> None:
    answer, server = ask(api_key_env=None)
    assert answer == HELLO
    assert KEY not in server.requests[0].headers["authorization"]


COUNTS = {"prompt_tokens": 30, "completion_tokens": 20}
COUNTED = TokenUsage(1, 0, 30, 0, 20, 0)
HELLO_USAGE = TokenUsage(1, 0, 3, 0, 2, 0)  # of what the server answers without faults


def usage_of(outcome: Completion | GenerationError) -> TokenUsage:
    return outcome.usage


@pytest.mark.parametrize(
    ("faults", "usage"),
    [
        pytest.param([], HELLO_USAGE, id="an answer"),
        pytest.param([respond(200, completion("hi"))], TokenUsage.given_up(), id="no counts"),
        pytest.param([respond(503, {"error": {"message": "busy"}})], HELLO_USAGE, id="a failure costs nothing"),
        pytest.param(
            [respond(200, {"error": {"code": 502, "message": "upstream"}, "usage": COUNTS})],
            COUNTED + HELLO_USAGE,
            id="a failure with counts, retried",
        ),
        pytest.param([cut], TokenUsage.given_up() + HELLO_USAGE, id="an answer that broke off, retried"),
        pytest.param(
            [respond(200, completion("hm", "content_filter", usage=COUNTS))], COUNTED, id="a filtered answer"
        ),
        pytest.param([respond(200, completion(None, usage=COUNTS))], COUNTED, id="an answer without text"),
        pytest.param([respond(401, {"error": {"message": "no"}})], TokenUsage(), id="a refusal"),
    ],
)
def test_calls_that_are_billed_are_counted_whatever_they_end_in(faults: list[Fault], usage: TokenUsage) -> None:
    assert usage_of(ask(*faults)[0]) == usage


def test_an_attempt_that_is_given_up_counts_without_tokens() -> None:
    assert usage_of(ask(hang, hang, timeout_s=0.5, max_retries=1)[0]) == TokenUsage(2, 2)


@pytest.mark.parametrize(
    ("fault", "usage"),
    [
        pytest.param(stream(chunk("hel"), chunk("lo", "stop"), usage_chunk(30, 20)), COUNTED, id="an answer"),
        pytest.param(stream(chunk("hel"), then=leave), TokenUsage.given_up(), id="cut"),
        pytest.param(
            stream(chunk("hel"), usage_chunk(30, 20), chunk(None, "content_filter")), COUNTED, id="filtered"
        ),
        pytest.param(
            stream({"error": {"code": 502, "message": "busy"}, "usage": COUNTS}),
            COUNTED + HELLO_USAGE,
            id="a failure with counts before any text",
        ),
    ],
)
def test_calls_of_streams_are_counted_alike(fault: Fault, usage: TokenUsage) -> None:
    assert usage_of(follow(fault)[1]) == usage
