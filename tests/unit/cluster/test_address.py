"""Where Ray is looked for; no Ray runs here."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from llm_blender_ray.cluster.address import ClusterError, check_answers


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nobody_answers_is_told_at_once(form: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = form.format(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    check_answers(address)
    server.stop(None).wait()
    with pytest.raises(
        ClusterError, match=rf"^Ray at {address}: Connection refused; start Ray there .* RAY_ADDRESS"
    ):
        check_answers(address)


def test_what_is_not_ray_is_told() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever).start()
        with pytest.raises(ClusterError, match="what answers there isn't Ray; start Ray there"):
            check_answers(f"127.0.0.1:{web.server_port}")
        web.shutdown()


def test_one_that_is_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_blender_ray.cluster.address._ANSWER_S", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ClusterError, match="no answer; start Ray there"),
    ):
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_host_that_does_not_exist_is_told() -> None:
    with pytest.raises(ClusterError, match=r"^Ray at no-such-host\.invalid:6379: "):
        check_answers("no-such-host.invalid:6379")


@pytest.mark.parametrize("address", ["auto", "ray://head", "head:port", "127.0.0.1"])
def test_an_address_without_a_port_is_left_to_ray(address: str) -> None:
    check_answers(address)
