"""What a local Ray is started with; no Ray runs here."""

import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.session import _keeping_signals, private_ray, session
from llm_blender_ray.configs.schema import RayCluster

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def test_a_local_ray_has_a_token_that_no_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    with private_ray():
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert not set(AUTH) & set(os.environ)
    with private_ray():
        assert os.environ["RAY_AUTH_TOKEN"] == token  # Ray's core has read it once


@pytest.mark.parametrize("name", AUTH)
def test_what_a_user_set_of_tokens_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in AUTH:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "theirs")
    with private_ray():
        assert {one: os.environ.get(one) for one in AUTH} == dict.fromkeys(AUTH) | {name: "theirs"}


def test_ray_does_not_keep_the_signal_that_it_takes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with _keeping_signals():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_refused_connection_is_told_with_the_token_that_may_be_missing(
    left_behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")  # all that Ray raises

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("llm_blender_ray.cluster.session.check_answers", lambda address: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    if left_behind:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a-token-of-an-earlier-ray")
    with pytest.raises(ClusterError) as caught, session(RayCluster(address="10.0.0.1:6379")):
        raise AssertionError("unreachable")
    message = str(caught.value)
    assert message.startswith("Ray at 10.0.0.1:6379: it answers, but refuses the connection; if it wants a token, ")
    assert "set RAY_AUTH_MODE=token" in message and ("~/.ray/auth_token" in message) == left_behind


def test_a_local_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> NoReturn:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError) as caught, session(RayCluster()):
        raise AssertionError("unreachable")
    assert str(caught.value).startswith("Ray did not start on this machine: ")
    assert "timed out during startup" in str(caught.value)
