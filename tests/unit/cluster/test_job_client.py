"""What a cluster that wants a token makes of the client's first request."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest


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


CONNECT = """
import sys
from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.job_client import connect
try:
    connect(sys.argv[1])
except ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_wanted_token_is_one_line_with_its_place(dashboard: str, left_behind: bool, tmp_path: Path) -> None:
    if left_behind:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a-token-of-an-earlier-ray")
    # in a process of its own: Ray reads these variables once a process, and a neighbouring test may have set them
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", CONNECT, dashboard],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    message = ended.stdout.removesuffix("\n")
    assert message.startswith(f"Ray at {dashboard} wants a token: set RAY_AUTH_MODE=token")
    assert "\n" not in message and "earlier-ray" not in ended.stdout + ended.stderr
    assert ("~/.ray/auth_token" in message) == left_behind
