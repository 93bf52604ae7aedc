"""API keys and rate limits.

Keys are long random strings made here (`new_key`), so one SHA-256 without salt protects them as well as a slow,
salted hash: they cannot be guessed or listed. Without keys the service answers only its own machine, and ensures
that no web page makes a browser there send requests for another site.
"""

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llm_blender_ray.actors.errors import BlendError

log = logging.getLogger(__name__)

ENVIRONMENT = "BLEND_API_KEYS"
LOCAL = "local"  # the caller's name without keys
MIN_KEY_LENGTH = 16  # characters of a key from elsewhere

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-fA-F]{{64}})")
_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")
_FORWARDING = ("forwarded", "x-forwarded-for", "x-real-ip", "via")  # the client is a proxy


class AccessError(BlendError):
    """The request is not answered. The message is meant for its sender."""


class NoKeyError(AccessError):
    """No key, or an unknown one (HTTP 401)."""


class NotLocalError(AccessError):
    """There are no keys, and the request is not from this machine (HTTP 403)."""


class RateError(AccessError):
    """Too many requests of one caller (HTTP 429).

    Attributes:
        retry_after_s: Seconds until the next one is answered.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


def new_key(name: str) -> tuple[str, str]:
    """Make a key for a caller of that name.

    Returns:
        The key, and its line for the keys file.

    Raises:
        BlendError: The name is malformed.
    """
    if not _NAME.fullmatch(name):
        raise BlendError("a key's name has 1 to 64 letters, digits, dots, dashes or underscores")
    key = f"blend-{secrets.token_urlsafe(32)}"
    return key, f"{name} sha256:{_digest(key).hex()}"


class Keys:
    """Digests of all keys with their names; a name may have several, for rotation."""

    def __init__(self, names: Mapping[bytes, str]) -> None:
        """Use names by SHA-256 digest (32 bytes)."""
        self._names = dict(names)

    @staticmethod
    def load(file: str | None, environment: Mapping[str, str]) -> "Keys | None":
        """Read the keys of the file, and of `BLEND_API_KEYS` in the environment.

        The file is read again whenever it has changed (`WatchedKeys`). It has lines `name sha256:<64 hex digits>`,
        blank ones, and comments (#). The variable holds the keys themselves: `name=key,other=key`, or a single key,
        whose name is `default`.

        Returns:
            The keys; None where neither is set.

        Raises:
            BlendError: One is malformed; the message shows no content of either.
        """
        if file is not None:
            return WatchedKeys(file, environment)
        names = _joined(_from_environment(environment.get(ENVIRONMENT, "")))
        return Keys(names) if names else None

    def __len__(self) -> int:
        return len(self._names)

    @property
    def owners(self) -> frozenset[str]:
        """Names of all keys."""
        return frozenset(self._names.values())

    def owner(self, key: str) -> str | None:
        """Name of a key; None: unknown. Takes constant time."""
        digest, found = _digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


class WatchedKeys(Keys):
    """Keys of a file that is read again when it has changed: a key whose line is removed stops working at once.

    If the file cannot be read completely, the last keys stay in force, and the failure is logged once; a file
    without keys leaves those of the environment.
    """

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        """Read the file.

        Raises:
            BlendError: The file is malformed, or has no key.
        """
        self._file = file
        self._others = list(_from_environment(environment.get(ENVIRONMENT, "")))
        self._version = _version(file)
        super().__init__(_joined([*_from_file(file), *self._others]))

    def owner(self, key: str) -> str | None:
        """See `Keys.owner`."""
        version = _version(self._file)
        if version != self._version:
            self._version = version
            try:
                self._names = _joined([*_from_file(self._file, empty=True), *self._others])
                log.info("serve.keys_file has changed: %d keys", len(self._names))
            except BlendError as error:
                log.error("%s; the keys of before still count", error)
        return super().owner(key)


class Access:
    """Identifies the caller of each request, or rejects it. It belongs to one event loop."""

    def __init__(
        self,
        keys: Keys | None,
        requests_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        origins: Sequence[str] = (),
    ) -> None:
        """Make one.

        Args:
            keys: None: only this machine is answered.
            requests_per_minute: Of each caller, on average; so many may also come at once.
            clock: Seconds, never going back.
            origins: Sites whose pages may send requests without keys too, in lower case (`serve.allowed_origins`).
                `*` requires keys.
        """
        self._keys, self._per_minute, self._clock = keys, requests_per_minute, clock
        self._origins = frozenset(origins) - {"*"}
        self._buckets: dict[str, tuple[float, float]] = {}  # by caller: requests left, at what time

    def check(self, headers: Mapping[str, str], client_host: str | None) -> str:
        """Identify the caller of a request, and count the request.

        Args:
            headers: By lower-case name, like Starlette's `Headers`.
            client_host: The client's address.

        Returns:
            The key's name, or `local` without keys.

        Raises:
            NoKeyError: The key is missing or unknown.
            NotLocalError: There are no keys, and the request is not from this machine.
            RateError: The caller's rate is exceeded.
        """
        caller = self._caller(headers, client_host)
        if self._per_minute is not None:
            self._count(caller, self._per_minute)
        return caller

    def knows(self, headers: Mapping[str, str], client_host: str | None) -> bool:
        """Whether `check` would accept the request, whatever its rate. It is not counted."""
        try:
            self._caller(headers, client_host)
        except AccessError:
            return False
        return True

    def _caller(self, headers: Mapping[str, str], client_host: str | None) -> str:
        if self._keys is not None:
            return self._owner(self._keys, headers.get("authorization"))
        _refuse_strangers(headers, client_host, self._origins)
        return LOCAL

    @staticmethod
    def _owner(keys: Keys, authorization: str | None) -> str:
        given = _BEARER.fullmatch(authorization or "")
        if not given:
            raise NoKeyError("no API key: send one as `Authorization: Bearer KEY`")
        if (name := keys.owner(given[1])) is None:
            raise NoKeyError("unknown API key")
        return name

    def _count(self, caller: str, per_minute: int) -> None:
        """Take a token from the caller's bucket, which `per_minute` tokens fill and refill within a minute."""
        now = self._clock()
        left, then = self._buckets.get(caller, (float(per_minute), now))
        left = min(left + (now - then) * per_minute / 60, float(per_minute))
        if left < 1:
            wait_s = (1 - left) * 60 / per_minute
            raise RateError(f"more than {per_minute} requests a minute; the next one in {wait_s:.1f} s", wait_s)
        self._buckets[caller] = left - 1, now


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _joined(entries: Iterable[tuple[str, str, bytes]]) -> dict[bytes, str]:
    """Names by digest.

    Raises:
        BlendError: Two names have one key.
    """
    names: dict[bytes, str] = {}
    for where, name, digest in entries:
        if names.setdefault(digest, name) != name:
            raise BlendError(f"{where}: the key is also {names[digest]}'s; give everyone a key of their own")
    return names


def _version(file: str) -> tuple[int, ...] | None:
    """A value that changes with the file; None: it cannot be inspected."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _from_file(file: str, *, empty: bool = False) -> Iterator[tuple[str, str, bytes]]:
    """The file's keys.

    Raises:
        BlendError: It is malformed, or has none and `empty` is false.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise BlendError(f"serve.keys_file {file}: {why}") from None
    known = [
        (at, line.strip()) for at, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")
    ]
    if not known and not empty:
        raise BlendError(f"serve.keys_file {file} holds no key; `blend key NAME` makes one")
    for at, line in known:
        where = f"serve.keys_file {file}, line {at}"
        if not (match := _LINE.fullmatch(line)):
            raise BlendError(f"{where}: expected `name sha256:<64 hex digits>`, as `blend key NAME` makes it")
        yield where, match[1], bytes.fromhex(match[2])


def _from_environment(value: str) -> Iterator[tuple[str, str, bytes]]:
    entries: Iterable[str] = value.split(",") if value.strip() else ()
    for at, entry in enumerate(entries, 1):
        where = f"{ENVIRONMENT}, key {at}"
        name, named, key = entry.strip().partition("=")
        if not named:
            name, key = "default", name
        if not _NAME.fullmatch(name) or len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()):
            raise BlendError(
                f"{where}: expected name=key (with a name if the key holds a =), the key of {MIN_KEY_LENGTH} or "
                "more visible ASCII characters; `blend key NAME` makes one"
            )
        yield where, name, _digest(key)


def _refuse_strangers(headers: Mapping[str, str], client_host: str | None, origins: Collection[str]) -> None:
    """Reject a request unless it comes from this machine, is addressed to it, and is meant for it.

    A page of another site can make a browser here send requests: then `Origin` names that site. Or the site's name
    is made to resolve to 127.0.0.1 (DNS rebinding), and the browser sees no other site: `Host` still names it.

    Raises:
        NotLocalError: It does not.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not (client_host and _is_loopback(client_host)):
        why = "it comes from another machine"
    elif any(name in headers for name in _FORWARDING):
        why = "it came through a proxy"
    elif not (authority := _AUTHORITY.fullmatch(host)) or not _is_loopback(authority[1] or authority[2]):
        why = "its Host header does not name this machine as localhost"
    elif origin is not None and origin.partition("://")[2].lower() != host.lower():
        if origin.lower() in origins:
            return
        raise NotLocalError(
            "a page of another site made it; name its origin in serve.allowed_origins "
            '("*" needs API keys, too: `blend key NAME`, serve.keys_file)'
        )
    else:
        return
    raise NotLocalError(
        f"without API keys only requests of this machine are answered, and {why}; "
        f"add keys (`blend key NAME`) to serve.keys_file or {ENVIRONMENT}"
    )


def _is_loopback(host: str) -> bool:
    """Whether it is a name (RFC 6761) or an address of this machine."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
