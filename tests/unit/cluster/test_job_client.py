"""What a cluster that wants a token makes of the client's first request."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.job_client import connect


class Refusing(BaseHTTPRequestHandler):
    """A dashboard that wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_wanted_token_is_one_line_that_tells_where_it_is(
    dashboard: str, left_behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if left_behind:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a-token-of-an-earlier-ray")
    with pytest.raises(ClusterError) as caught:
        connect(dashboard)
    message = str(caught.value)
    assert message.startswith(f"Ray at {dashboard} wants a token: set RAY_AUTH_MODE=token")
    assert "\n" not in message and "earlier-ray" not in message
    assert ("~/.ray/auth_token" in message) == left_behind
