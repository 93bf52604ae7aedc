"""Keys from file and environment, who counts as this machine, and how many requests a caller has."""

import hashlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import logged
from starlette.datastructures import Headers

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.serve.access import (
    Access,
    AccessError,
    Keys,
    NoKeyError,
    NotLocalError,
    RateError,
    new_key,
)

ALICE, BOB = "alice's-long-secret-0001", "bobs-long-secret-00000002"


def asking(**headers: str) -> Headers:
    """Headers of a request, by names with underscores."""
    given = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Headers(given)


def from_environment(value: str) -> Keys:
    keys = Keys.load(None, {"BLEND_API_KEYS": value})
    assert keys is not None
    return keys


# Keys


def test_a_new_key_opens_with_the_line_made_for_it(tmp_path: Path) -> None:
    key, line = new_key("alice")
    assert new_key("alice")[0] != key
    assert key not in line
    (tmp_path / "keys").write_text(f"# ours\n\n  {line}  \n")
    keys = Keys.load(str(tmp_path / "keys"), {})
    assert keys is not None
    assert keys.owner(key) == "alice"
    assert keys.owner(key + "x") is None
    assert Access(keys).check(asking(authorization=f"Bearer {key}"), "198.51.100.7") == "alice"


@pytest.mark.parametrize("name", ["", "two words", "a=b", "a,b", "#a", "é", "x" * 65])
def test_a_keys_name_is_one_plain_word(name: str) -> None:
    with pytest.raises(BlendError, match="name"):
        new_key(name)


def test_a_changed_keys_file_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    (first, first_line), (second, second_line) = new_key("first"), new_key("second")
    file.write_text(f"{first_line}\n{second_line}\n")
    keys = Keys.load(str(file), {"BLEND_API_KEYS": f"bob={BOB}"})
    assert keys is not None

    def owners() -> list[str | None]:
        return [keys.owner(key) for key in (first, second, BOB)]

    with logged("llm_blender_ray.pipelines.serve.access", monkeypatch) as records:
        assert owners() == ["first", "second", "bob"]
        file.write_text(f"{second_line}\n")
        assert owners() == [None, "second", "bob"]
        file.write_text("not a key at all\n")  # broken: what was known still counts
        assert owners() == owners() == [None, "second", "bob"]
        (error,) = (record.getMessage() for record in records if record.levelname == "ERROR")
        assert error.startswith(f"serve.keys_file {file}, line 1: ") and error.endswith("still count")
        file.unlink()
        assert owners() == [None, "second", "bob"]
        file.write_text("# nobody\n")
        assert owners() == [None, None, "bob"]
        replaced = tmp_path / "new"
        replaced.write_text(f"{first_line}\n")
        replaced.rename(file)
        assert owners() == ["first", None, "bob"]


def test_keys_of_file_and_environment_count_together(tmp_path: Path) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    keys = Keys.load(str(tmp_path / "keys"), {"BLEND_API_KEYS": f"bob={BOB}, alice={ALICE}"})
    assert keys is not None
    assert len(keys) == 3
    assert [keys.owner(one) for one in (key, ALICE, BOB)] == ["alice", "alice", "bob"]


def test_a_key_without_name_in_the_environment_is_the_default_one() -> None:
    assert from_environment(ALICE).owner(ALICE) == "default"


@pytest.mark.parametrize("environment", [{}, {"BLEND_API_KEYS": ""}, {"BLEND_API_KEYS": "  "}])
def test_no_keys(environment: dict[str, str]) -> None:
    assert Keys.load(None, environment) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice", "line 2"),
        (f"alice {ALICE}", "line 2"),
        (f"alice sha256:{ALICE}", "line 2"),
        (f"alice md5:{hashlib.sha256(ALICE.encode()).hexdigest()}", "line 2"),
        (f"{ALICE} sha256:{hashlib.sha256(ALICE.encode()).hexdigest()[1:]}", "line 2"),
        (f"other sha256:{hashlib.sha256(BOB.encode()).hexdigest().upper()}", "line 2: the key is also bob's"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "keys").write_text(f"bob sha256:{hashlib.sha256(BOB.encode()).hexdigest()}\n{line}\n")
    with pytest.raises(BlendError, match=told) as refused:
        Keys.load(str(tmp_path / "keys"), {})
    assert ALICE not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"", "no key"), (b"# none yet\n", "no key"), (b"\xff\xfe", "text")],
)
def test_a_file_without_keys_is_a_mistake(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BlendError, match=told):
        Keys.load(str(file), {"BLEND_API_KEYS": ALICE})


@pytest.mark.parametrize(
    "value",
    [
        "short",
        "alice=short",
        f"alice={ALICE},",
        f"={ALICE}",
        f"al ice={ALICE}",
        f"alice={ALICE} {BOB}é",
        "YmFzZTY0IG9mIGEgc2VjcmV0Cg==",  # taken for a name, if it were shown it would be told
        f"alice={ALICE},bob={ALICE}",
    ],
)
def test_a_bad_key_in_the_environment_is_not_shown(value: str) -> None:
    with pytest.raises(BlendError, match=r"BLEND_API_KEYS, key \d") as refused:
        from_environment(value)
    assert not any(secret in str(refused.value) for secret in ("short", ALICE, BOB, "YmFz"))


@given(st.text())
def test_nothing_but_the_key_is_the_key(other: str) -> None:
    assert from_environment(f"alice={ALICE}").owner(other) == ("alice" if other == ALICE else None)


# Who may ask


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_says_who_asks_from_anywhere(scheme: str) -> None:
    access = Access(from_environment(f"alice={ALICE},bob={BOB}"))
    headers = asking(
        authorization=f"{scheme} {BOB}", host="blend.example", origin="https://x.example", forwarded="for=x"
    )
    assert access.check(headers, "198.51.100.7") == "bob"
    assert access.check(headers, None) == "bob"


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", f"Basic {ALICE}", ALICE, f"Bearer {BOB}", f"Bearer {ALICE} x"]
)
def test_without_a_known_key_nobody_is_answered_where_there_are_keys(authorization: str | None) -> None:
    headers = asking(authorization=authorization) if authorization is not None else asking()
    with pytest.raises(NoKeyError) as refused:
        Access(from_environment(f"alice={ALICE}")).check(headers, "127.0.0.1")
    assert BOB not in str(refused.value)


@pytest.mark.parametrize(
    ("client_host", "headers"),
    [
        ("127.0.0.1", {}),
        ("127.8.8.8", {"host": "127.0.0.1:8000"}),
        ("::1", {"host": "[::1]:8000"}),
        ("::ffff:127.0.0.1", {"host": "LOCALHOST"}),
        ("127.0.0.1", {"host": "blend.localhost:80"}),
        ("127.0.0.1", {"host": "localhost.:8000"}),
        ("127.0.0.1", {"origin": "http://localhost:8000"}),
        ("127.0.0.1", {"host": "[::1]:8000", "origin": "http://[::1]:8000"}),
        ("127.0.0.1", {"authorization": "Bearer unused"}),
    ],
)
def test_without_keys_this_machine_is_answered(client_host: str, headers: dict[str, str]) -> None:
    assert Access(None).check(asking(**headers), client_host) == "local"


@pytest.mark.parametrize(
    ("client_host", "headers", "told"),
    [
        ("198.51.100.7", {}, "another machine"),
        ("10.0.0.1", {}, "another machine"),
        ("0.0.0.0", {}, "another machine"),
        ("::", {}, "another machine"),
        ("::ffff:10.0.0.1", {}, "another machine"),
        ("somewhere", {}, "another machine"),
        (None, {}, "another machine"),
        ("127.0.0.1", {"x_forwarded_for": "127.0.0.1"}, "proxy"),
        ("127.0.0.1", {"forwarded": "for=127.0.0.1"}, "proxy"),
        ("127.0.0.1", {"x_real_ip": "198.51.100.7"}, "proxy"),
        ("127.0.0.1", {"via": "1.1 proxy"}, "proxy"),
        ("127.0.0.1", {"host": ""}, "Host"),
        ("127.0.0.1", {"host": "evil.example"}, "Host"),
        ("127.0.0.1", {"host": "evil.example:8000"}, "Host"),
        ("127.0.0.1", {"host": "localhost.evil.example"}, "Host"),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, "Host"),
        ("127.0.0.1", {"host": "evillocalhost"}, "Host"),
        ("127.0.0.1", {"host": "evil.example@localhost"}, "Host"),
        ("127.0.0.1", {"host": "localhost:8000:8000"}, "Host"),
        ("127.0.0.1", {"host": "198.51.100.7:8000"}, "Host"),
        ("127.0.0.1", {"host": "[::1"}, "Host"),
        ("127.0.0.1", {"origin": "https://evil.example"}, "another site"),
        ("127.0.0.1", {"origin": "http://localhost:3000"}, "another site"),
        ("127.0.0.1", {"origin": "http://127.0.0.1:8000"}, "another site"),
        ("127.0.0.1", {"origin": "null"}, "another site"),
        ("127.0.0.1", {"origin": ""}, "another site"),
    ],
)
def test_without_keys_nobody_else_is_answered(client_host: str | None, headers: dict[str, str], told: str) -> None:
    with pytest.raises(NotLocalError, match=f"{told}.*blend key NAME"):
        Access(None).check(asking(**headers), client_host)


# How often


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_caller_has_so_many_requests_at_once_and_then_at_that_pace() -> None:
    clock = Clock()
    access = Access(from_environment(f"alice={ALICE},bob={BOB}"), 30, clock)
    alice, bob = asking(authorization=f"Bearer {ALICE}"), asking(authorization=f"Bearer {BOB}")
    for _ in range(30):
        access.check(alice, None)
    with pytest.raises(RateError, match="more than 30 requests a minute") as refused:
        access.check(alice, None)
    assert refused.value.retry_after_s == pytest.approx(2.0)
    assert access.check(bob, None) == "bob"  # another one's are his own
    clock.now += 1.5
    with pytest.raises(RateError) as refused:  # asking in vain costs nothing
        access.check(alice, None)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    clock.now += refused.value.retry_after_s
    access.check(alice, None)
    with pytest.raises(RateError):
        access.check(alice, None)
    clock.now += 3600
    for _ in range(30):  # and no more, however long nobody asked
        access.check(alice, None)
    with pytest.raises(RateError):
        access.check(alice, None)


def test_this_machine_has_its_pace_too() -> None:
    access = Access(None, 1, Clock())
    assert access.check(asking(), "127.0.0.1") == "local"
    with pytest.raises(RateError):
        access.check(asking(), "127.0.0.1")


def test_refused_callers_use_up_nobodys_requests() -> None:
    access = Access(from_environment(f"alice={ALICE}"), 1, Clock())
    for _ in range(3):
        with pytest.raises(NoKeyError):
            access.check(asking(authorization=f"Bearer {BOB}"), None)
    assert access.check(asking(authorization=f"Bearer {ALICE}"), None) == "alice"


@given(st.lists(st.floats(0, 60), min_size=1, max_size=60), st.integers(1, 20))
def test_never_more_than_the_bucket_and_its_refill(gaps: list[float], per_minute: int) -> None:
    clock = Clock()
    access = Access(None, per_minute, clock)
    began, passed = clock.now, 0
    for gap in gaps:
        clock.now += gap
        try:
            access.check(asking(), "127.0.0.1")
            passed += 1
        except RateError as error:
            assert 0 < error.retry_after_s <= 60 / per_minute
    assert passed <= per_minute + (clock.now - began) * per_minute / 60 + 1e-6
    assert passed >= min(len(gaps), per_minute)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RateError("too many", 2.5)))
    assert isinstance(error, AccessError)
    assert (str(error), error.retry_after_s) == ("too many", 2.5)
