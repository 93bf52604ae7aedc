"""Where a config's Ray is: on this machine, or at an address. Needs no Ray, whose import takes a second."""

import errno
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.configs.schema import RayCluster

LOCAL_ADDRESS = "local"
_ANSWER_S = 5.0
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of HTTP/2: length, type, flags, stream


class ClusterError(BlendError):
    """Ray can't be started or reached."""


def address_of(settings: RayCluster) -> str:
    """Ray address of the settings, or else of the environment."""
    return settings.address or os.environ.get("RAY_ADDRESS") or LOCAL_ADDRESS


def check_answers(address: str) -> None:
    """Check that Ray listens at an address; Ray itself reports a failure after a minute.

    Args:
        address: In Ray's syntax; one without a port is left to Ray.
    """
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = place.hostname, place.port
    except ValueError:  # a port that is no number
        return
    if host is None or port is None:
        return
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise OSError(errno.EPROTO, "what answers there isn't Ray")
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or one_line(error)
        raise ClusterError(
            f"Ray at {address}: {why}; start Ray there (`ray start --head`), or give another address "
            "(`ray.address`, RAY_ADDRESS; without both Ray is started on this machine)"
        ) from error


def token_cure() -> str:
    """What to set where a cluster has refused a token, or the lack of one."""
    if os.environ.get("RAY_AUTH_MODE") != "token" and (Path.home() / ".ray" / "auth_token").is_file():
        return (
            "set RAY_AUTH_MODE=token; a cluster of this machine takes its token from ~/.ray/auth_token, which an "
            "earlier Ray has left (without that file at its start it wants none); for another set RAY_AUTH_TOKEN"
        )
    return "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other end sends a SETTINGS frame, like gRPC servers."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
    head = b""
    while len(head) < len(_SETTINGS) and (more := connection.recv(len(_SETTINGS) - len(head))):
        head += more
    return head[3:4] == _SETTINGS[3:4]


def bracketed(host: str) -> str:
    """A host as part of a URL: IPv6 addresses are in brackets."""
    return f"[{host}]" if ":" in host else host
