"""S3 over an unreliable network: s3fs with one layer of retries, where no failure passes for a result.

botocore's standard mode retries a request after a 5xx, throttling, a reset or a timeout. s3fs would repeat all of
that five times, and a range of a file five times more: hours with a store that stays down. So s3fs's own retries
are off, and what botocore cannot retry is retried here: reading a body that breaks off.

Endpoint, credentials, retry mode and attempts are the operator's, by AWS's variables and profiles; only what they
leave open is set here. There is no AWS variable for timeouts, but one of fsspec:
FSSPEC_S3='{"config_kwargs": {"read_timeout": 60}}'.
"""

import errno
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import botocore.session
import tenacity
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from llm_blender_ray.configs.extras import missing_method

ATTEMPTS = 7  # of a request: six waits, 25 s together on average and 51 s at most, and 15 s for each timeout
MAX_WAIT_S = 20  # between two of them; botocore's default
S3_FILE_ERRORS = (BotoCoreError, ResponseParserError)  # in addition to the exceptions of any file system
S3_PERMISSION_ERRORS = (NoCredentialsError,)
# Raised by a body that breaks off or stalls; hardly by requests, which have been retried by then.
BODY_ERRORS = (aiohttp.ClientPayloadError, IncompleteReadError, ResponseStreamingError, TimeoutError)

_HOOKS = (
    "_call_s3",
    "_cat_file",
    "_info",
    "_isfile",
    "_open",
    "_walk",
    "set_session",
)  # methods of s3fs, overridden or called


class S3(S3FileSystem):
    """File system of s3fs (with its arguments), made in each process from that process's environment."""

    retries = 1  # botocore retries below it

    def __init__(self, *, config_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if missing := missing_method(S3FileSystem, _HOOKS):
            raise ImportError(f"this s3fs has no {missing}; install a tested s3fs (constraints.txt)")
        kwargs.setdefault("use_listings_cache", False)  # other processes write there too
        kwargs.setdefault("max_concurrency", 1)  # an object is one GET, without a HEAD before it
        retries = retry_settings(kwargs.get("profile"))
        super().__init__(config_kwargs={"retries": retries, **(config_kwargs or {})}, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        if mode == "rb":
            file.cache.fetcher = functools.partial(sync, self.loop, self._range, file)
        return file

    async def _range(self, file: Any, start: int, end: int) -> bytes:
        """Bytes of a file in its version at opening. s3fs's own gives up on a timeout, with an IndexError."""
        if start >= end:
            return b""
        version = {"VersionId": file.version_id} if file.version_id else {}

        async def read() -> bytes:
            at = {"Bucket": file.bucket, "Key": file.key, "Range": f"bytes={start}-{end - 1}"}
            try:
                response = await self._call_s3("get_object", file.read_kw, **at, **version)
            except OSError as error:
                cause = error.__cause__
                if isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "PreconditionFailed":
                    raise OSError(errno.EBUSY, "another file took its place while it was read") from error
                raise
            async with response["Body"] as body:
                return await body.read()

        return await self._repeated(read)()

    async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
        await self.set_session()
        return await self._repeated(super()._cat_file)(path, **kwargs)

    def _repeated(self, read: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
        """Result of `read`, repeated up to `ATTEMPTS` times until a body arrives whole."""
        attempts = self.s3.meta.config.retries.get("total_max_attempts", ATTEMPTS)
        return tenacity.retry(
            retry=tenacity.retry_if_exception_type(BODY_ERRORS),
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_random_exponential(max=MAX_WAIT_S),
            reraise=True,
        )(read)

    async def _isfile(self, path: str) -> bool:
        """Raise errors, which fsspec takes for a no."""
        try:
            return (await self._info(path))["type"] == "file"
        except FileNotFoundError:
            return False

    async def _walk(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Raise errors: fsspec leaves out a folder that cannot be listed, and so does its glob."""
        kwargs["on_error"] = _unless_missing
        async for found in super()._walk(path, maxdepth=maxdepth, **kwargs):
            yield found


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def retry_settings(profile: str | None = None) -> dict[str, Any]:
    """Settings of botocore's `retries` that neither the environment nor the AWS profile has.

    Raises:
        ProfileNotFound: botocore's, of the profile.
    """
    session = botocore.session.Session(profile=profile)
    settings: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ and "retry_mode" not in session.get_scoped_config():
        settings["mode"] = "standard"
    if session.get_config_variable("max_attempts") is None:
        settings["total_max_attempts"] = ATTEMPTS
    return settings
