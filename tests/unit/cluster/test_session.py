"""What a local Ray is started with; no Ray runs here."""

import os
import signal

import pytest

from llm_blender_ray.cluster.session import _keeping_signals, private_ray

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
