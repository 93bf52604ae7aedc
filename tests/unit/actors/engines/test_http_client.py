"""Connections of an endpoint's client: kept, through proxies, to servers with certificates of an own authority."""

import asyncio
import base64
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from connect_proxy import ConnectProxy
from endings import followed
from endpoint_server import EndpointServer, respond

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.endpoint_engine import EndpointEngine
from llm_blender_ray.actors.engines.http_client import CA_VARIABLES
from llm_blender_ray.actors.errors import GenerationError, ModelLoadError, PermanentError, UnavailableError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import EndpointModel, Sampling

CHAT = [Message(role="user", content="hi")]
HELLO = Completion("hello", "stop", prompt_tokens=3, completion_tokens=2)
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CA_VARIABLES, *PROXY_VARIABLES, *map(str.lower, PROXY_VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # 0.5 s without Retry-After


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def make_engine(url: str, **settings: Any) -> EndpointEngine:
    given = {"timeout_s": 30, "max_retries": 2, **settings}
    return EndpointEngine(EndpointModel(name="far", engine="endpoint", model="m", base_url=url, **given))


async def ask(url: str, **settings: Any) -> Completion | GenerationError:
    """One question: the answer or the error."""
    engine = make_engine(url, **settings)
    try:
        return await engine.generate(CHAT, Sampling())
    except GenerationError as error:
        return error
    finally:
        await engine.close()


async def one_after_another(engine: EndpointEngine) -> None:
    for _ in range(3):
        assert await engine.generate(CHAT, Sampling()) == HELLO
        assert (await followed(engine.stream(CHAT, Sampling())))[1] == HELLO


async def sixteen_at_a_time(engine: EndpointEngine) -> None:
    for _ in range(3):
        await asyncio.gather(*(engine.generate(CHAT, Sampling()) for _ in range(16)))


@pytest.mark.parametrize(
    ("asking", "settings", "most"),
    [(one_after_another, {}, 1), (one_after_another, {"stream": True}, 1), (sixteen_at_a_time, {}, 16)],
)
def test_connections_are_used_again(
    asking: Callable[[EndpointEngine], Awaitable[None]], settings: dict[str, Any], most: int
) -> None:
    async def main() -> EndpointServer:
        async with EndpointServer(keep_alive=True) as server:
            engine = make_engine(server.url, **settings)
            await asking(engine)
            await engine.close()
            return server

    server = asyncio.run(main())
    assert len(server.requests) in (6, 48) and server.connections <= most


def test_connection_is_used_again_by_retries() -> None:
    async def main() -> EndpointServer:
        busy = {"error": {"message": "busy", "code": 503}}
        faults = [
            respond(429, {}, retry_after_ms="5", connection="keep-alive"),
            respond(200, busy, connection="keep-alive"),
        ]
        async with EndpointServer(faults, keep_alive=True) as server:
            assert await ask(server.url, max_retries=2) == HELLO
            return server

    server = asyncio.run(main())
    assert (len(server.requests), server.connections) == (3, 1)


def test_unused_connection_is_kept_for_longer_than_a_retry_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's client waits up to 8 s for a retry; by default a connection would be dropped after 5 s."""

    async def main() -> int:
        async with EndpointServer(keep_alive=True) as server:
            engine = make_engine(server.url)
            await engine.generate(CHAT, Sampling())
            monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 50)
            await engine.generate(CHAT, Sampling())
            monkeypatch.undo()
            await engine.close()
            return server.connections

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_own_authority(
    variable: str,
    tls: ssl.SSLContext,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with EndpointServer(tls=tls) as server:
            with caplog.at_level("INFO"):
                distrusted = await ask(server.url)
            assert type(distrusted) is PermanentError and not server.requests
            assert "its certificate isn't trusted: " in str(distrusted)
            assert "set SSL_CERT_FILE to its authority's certificates" in str(distrusted)
            assert "Retrying" not in caplog.text  # it would be distrusted the next time, too
            monkeypatch.setenv(variable, str(bundle))
            assert await ask(server.url) == HELLO

    asyncio.run(main())


def test_first_variable_with_authorities_counts(
    tls: ssl.SSLContext, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        async with EndpointServer(tls=tls) as server:
            assert await ask(server.url) == HELLO

    asyncio.run(main())


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_told_at_load(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authority.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with pytest.raises(ModelLoadError, match=f"REQUESTS_CA_BUNDLE: {path}: no certificates can be read: "):
        make_engine("https://127.0.0.1:9/v1")


def test_proxy_of_the_environment(tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes through the tunnel, and the proxy never sees it."""

    async def main() -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        async with EndpointServer(tls=tls, keep_alive=True) as server, ConnectProxy() as proxy:
            host = server.url.removeprefix("https://").removesuffix("/v1")
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            engine = make_engine(server.url)
            for _ in range(2):
                assert await engine.generate(CHAT, Sampling()) == HELLO
            await engine.close()
            assert (proxy.targets, server.connections) == ([host], 1)
            monkeypatch.setenv("NO_PROXY", "example.com,127.0.0.1")
            assert await ask(server.url) == HELLO
            assert proxy.targets == [host]

    asyncio.run(main())


def test_user_of_a_proxy(
    tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        credentials = f"Basic {base64.b64encode(b'me:very-secret').decode()}"
        async with EndpointServer(tls=tls) as server, ConnectProxy(credentials) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:very-secret@"))
            assert await ask(server.url) == HELLO
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:other-secret@"))
            with caplog.at_level("DEBUG"):
                error = await ask(server.url, max_retries=0)
            assert type(error) is UnavailableError and "407 Proxy Authentication Required" in str(error)
            assert "other-secret" not in str(error) + caplog.text

    asyncio.run(main())


@pytest.mark.parametrize("url", ["ftp://proxy:3128", "socks5://proxy:1080", "http://proxy:port"])
def test_proxy_that_cannot_be_used_is_told_at_load(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(ModelLoadError, match="HTTPS_PROXY"):
        make_engine("https://127.0.0.1:9/v1")
