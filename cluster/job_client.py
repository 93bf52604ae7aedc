"""Adapter of Ray's job client: time limits, and errors of one line."""

import os
import socket
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from llm_blender_ray.cluster.address import ClusterError, token_cure
from llm_blender_ray.cluster.ray_internals import only_errors
from llm_blender_ray.configs.extras import missing_method
from llm_blender_ray.configs.loading import ConfigError

REQUEST_S = (5.0, 30.0)  # to connect, and between two bytes of a response
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray prefers them to the address it is given
_HOOKS = ("_do_request", "_raise_error")  # private methods of Ray's client that are overridden here


class UnreachableError(ClusterError):
    """No response now; a later attempt may get one."""


class JobClient(JobSubmissionClient):
    """Ray's own client with time limits and errors of one line."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, **{"timeout": REQUEST_S, **options})
        except AuthenticationError as error:
            problem = "refuses this token" if self._headers else "wants a token"
            raise ClusterError(f"Ray at {self.get_address()} {problem}: {token_cure()}") from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"Ray at {self.get_address()}: no answer (expected the dashboard's address, http://HOST:8265)"
            ) from error

    def _raise_error(self, r: requests.Response) -> NoReturn:
        # the last line of the dashboard's traceback
        why = r.text.strip().splitlines()[-1:] or ["no reason given"]
        raise ClusterError(f"Ray at {self.get_address()}: HTTP {r.status_code}: {why[0]}")

    def runs_here(self) -> bool:
        """Whether the cluster's head is this machine, so that the job has its paths and its Python."""
        nodes = self._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
        return any(node["raylet"].get("isHeadNode") and node["hostname"] == socket.gethostname() for node in nodes)


def connect(address: str) -> JobClient:
    """Connect to the cluster whose dashboard is at `address`.

    Raises:
        ConfigError: The address is malformed.
        ClusterError: The cluster can't be reached.
    """
    if missing := missing_method(JobSubmissionClient, _HOOKS):
        raise ClusterError(f"this Ray's job client has no {missing}; install a tested Ray (constraints.txt)")
    only_errors("ray.dashboard", "ray._private.authentication", "ray._private.runtime_env")
    url = _dashboard(address)
    set_aside = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        return JobClient(url)
    except AuthenticationError as error:  # before any request
        raise ClusterError(
            "RAY_AUTH_MODE is token, but there is none: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"
        ) from error
    except (requests.RequestException, RuntimeError, ValueError, KeyError) as error:  # a response, but not Ray's
        raise ClusterError(f"{url}: what answers there isn't Ray's dashboard (http://HOST:8265)") from error
    finally:
        os.environ.update(set_aside)


def _dashboard(address: str) -> str:
    """The dashboard's URL; an address without a scheme is http, and its port, if it names none, 8265."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        usable = parts.scheme in ("http", "https") and parts.hostname is not None
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ConfigError(f"--address {address}: expected the dashboard's address, http://HOST:8265")
    return url.rstrip("/") + (":8265" if url != address and port is None else "")
