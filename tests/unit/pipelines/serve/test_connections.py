"""Connections of clients that don't behave: raw sockets against the server that gateways run."""

import contextlib
import http.client
import json
import queue
import re
import select
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fake_parts import FakeMember, fake_blender
from serving import HELLO, app_of, served

from llm_blender_ray.configs.serving import GatewaySettings, Limits, Serving
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.service_metrics import IN_FLIGHT, ServiceMetric

HURRIED = Limits(header_s=0.3, body_s=0.3, send_s=0.3, keep_alive_s=0.3, header_bytes=4096, headers=20)
KEYS = Keys.load(None, {"BLEND_API_KEYS": "ann=correct-horse-battery"})
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection whose own buffer is small."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        host, _, port = url.removeprefix("http://").partition(":")
        client.connect((host, int(port)))
        yield client


def post(body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(content) + content


def rest_of(client: socket.socket) -> bytes:
    """What comes until the server closes or cuts the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


def cut(client: socket.socket) -> bool:
    """Whether the server has cut the connection within a minute; nothing is read."""
    poll = select.poll()
    poll.register(client, 0)  # errors and hangups only
    return bool(poll.poll(10_000))


def dripped(client: socket.socket, first: bytes, drop: bytes) -> bytes:
    """Send a drop at a time until the server answers or closes; returns what it says until it closes."""
    client.sendall(first)
    with contextlib.suppress(ConnectionError):
        while not select.select([client], [], [], 0.01)[0]:
            client.sendall(drop)
    return rest_of(client)


def answered(client: socket.socket) -> int:
    """The status of the next answer, which is read to its end."""
    response = http.client.HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert match, answer[:200]
    return int(match[1])


# Heads


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"GET /", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: ", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"x-many: 1\r\n" * 10),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-many: 1\r\n" * 30 + b"\r\n", b""),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"x" * 5000 + b"\r\n\r\n", b""),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", b""),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2 + b"GET / HTTP/1.1\r\nx: ", b"x" * 1000),
    ],
    ids=["path", "value", "name", "number", "many at once", "value at once", "path at once", "after others"],
)
def test_heads_are_bounded_before_any_work(first: bytes, drop: bytes) -> None:
    limits = HURRIED.model_copy(update={"header_s": 60.0})
    with served(app_of(fake_blender(), keys=KEYS), limits) as url, connected(url) as client:
        if b"healthz" in first:
            client.sendall(first[: first.index(b"\r\n\r\n") + 4])
            assert answered(client) == 200
            first = first[first.rindex(b"GET") :]
        answer = dripped(client, first, drop)
    assert status(answer) == 431
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    ("sent", "drop", "expected"),
    [
        (b"", b"", None),
        (b"", b"\r\n", 408),
        (b"POST", b"", 408),
        (b"POST /v1/ch", b"x", 408),
        (HEAD + b"x-slow: ", b"x", 408),
        (HEAD, b"x: 1\r\n", 408),
        (HEAD + b"content-length: 1000\r\n\r\n{", b"", 408),
        (HEAD + b"content-length: 1000\r\n\r\n{", b" ", 408),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n", 408),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"x", 408),
    ],
    ids=["silent", "newlines", "word", "path", "value", "headers", "stuck", "drip", "chunks", "chunk extension"],
)
def test_requests_that_do_not_come_are_not_waited_for(sent: bytes, drop: bytes, expected: int | None) -> None:
    # a second for the first bytes: a client that sends nothing gets no answer, and this machine may be busy
    slower = {"header_s": 1.0, "body_s": 1.0, "header_bytes": 1 << 20, "headers": 10_000}
    limits = HURRIED.model_copy(update=slower)
    with served(app_of(fake_blender(), Serving(limits=limits)), limits) as url, connected(url) as client:
        answer = dripped(client, sent, drop) if drop else (client.sendall(sent), rest_of(client))[1]
    assert (status(answer) if answer else None) == expected


@pytest.mark.parametrize("body", [b"1\r\n{\r\n0\r\nx-trailer: ", b"1;extension="], ids=["trailer", "extension"])
def test_what_stands_around_a_body_is_bounded(body: bytes) -> None:
    limits = Limits(header_bytes=4096)
    with served(app_of(fake_blender()), limits) as url, connected(url) as client:
        answer = dripped(client, HEAD + b"transfer-encoding: chunked\r\n\r\n" + body, b"x" * 1000)
    assert not answer or status(answer) in (400, 431)


def test_a_body_that_nobody_reads_is_not_taken_for_ever() -> None:
    with served(app_of(fake_blender(), keys=KEYS), HURRIED) as url, connected(url) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        assert answered(client) == 401
        with contextlib.suppress(ConnectionError):
            while not select.select([client], [], [], 0.001)[0]:
                client.sendall(b"5\r\nxxxxx\r\n")
        assert rest_of(client) == b""


def test_an_idle_connection_is_closed() -> None:
    with served(app_of(fake_blender()), HURRIED) as url, connected(url) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert status(rest_of(client)) == 200


def test_what_is_not_http_is_refused_as_an_error() -> None:
    with served(app_of(fake_blender())) as url:
        for sent in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", HEAD + b"content-length: -1\r\n\r\n"):
            with connected(url) as client:
                client.sendall(sent)
                answer = rest_of(client)
            assert status(answer) == 400
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_requests_sent_together_are_answered_in_turn_and_only_so_many() -> None:
    asked = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with served(app_of(fake_blender())) as url:
        with connected(url) as client:
            client.sendall(asked * 5 + asked.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            assert rest_of(client).count(b"HTTP/1.1 200 OK") == 6
        with connected(url) as client:
            client.sendall(asked * 1000)
            assert rest_of(client).count(b"HTTP/1.1 200 OK") < 100


def test_more_connections_than_allowed_are_refused() -> None:
    limits = Limits(connections=2)
    asked = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with served(app_of(fake_blender()), limits) as url, connected(url) as first, connected(url) as second:
        for client in (first, second):
            client.sendall(asked)
            assert answered(client) == 200
        with connected(url) as third:
            assert status(rest_of(third)) == 503
        first.sendall(asked.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        assert status(rest_of(first)) == 200
        with connected(url) as fourth:
            fourth.sendall(asked)
            assert answered(fourth) == 200


def test_there_are_no_websockets() -> None:
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with served(app_of(fake_blender(), keys=KEYS)) as url, connected(url) as client:
        client.sendall(
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nsec-websocket-version: 13\r\n" + upgrade + b"\r\n"
        )
        assert answered(client) == 401


# Answers that nobody reads


def test_streams_that_nobody_reads_leave_their_places_at_the_deadline() -> None:
    load: queue.Queue[float] = queue.Queue()

    def meter(metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        if metric == IN_FLIGHT:
            load.put(value)

    def wait_for(value: float) -> None:
        while load.get(timeout=10) != value:
            pass

    serving = Serving(deadline_s=0.2, gateway=GatewaySettings(max_in_flight=4, max_queued=0))
    app = app_of(fake_blender(FakeMember("m", "x" * 3_000_000)), serving, meter=meter)
    with served(app) as url, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(url)) for _ in range(4)]
        for client in clients:
            client.sendall(post({"model": "m", "messages": HELLO, "stream": True, "n": 3}))
        wait_for(4)
        wait_for(0)  # nobody has read a byte, and `send_s` is far away
        assert all(cut(client) for client in clients)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_stops_reading_is_cut_off(stream: bool) -> None:
    app = app_of(fake_blender(FakeMember("m", "x" * 9_000_000)))
    with served(app, HURRIED) as url, connected(url) as client:
        client.sendall(post({"model": "m", "messages": HELLO, "stream": stream}))
        assert cut(client)


def test_pages_that_nobody_reads_are_cut_off() -> None:
    with served(app_of(fake_blender()), HURRIED) as url, connected(url) as client:
        client.setblocking(False)
        with contextlib.suppress(ConnectionError):
            for _ in range(500):
                with contextlib.suppress(BlockingIOError):
                    client.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                if select.select([], [], [client], 0)[2]:
                    break
        assert cut(client)
