"""Checksums of the objects in a work folder: an object that is not as it was written counts as damaged.

A seal is a BLAKE2b digest of an object's name and bytes. It is stored where the format has room for it, between the
pages and the footer of Parquet and as the last key of a JSON object, so that other programs can read a sealed file.
It covers the name, so that a misplaced file is detected too.
"""

import hashlib

from llm_blender_ray.actors.errors import BlendError

_SIZE = 16  # bytes of a digest
_PARQUET_SEAL = b"blend seal 1:"
_PARQUET_END = b"PAR1"
_JSON_SEAL = b',\n  "blake2b": "%s"'
_JSON_END = b"\n}\n"
_JSON_LENGTH = len(_JSON_SEAL % bytes(2 * _SIZE))
_PARQUET_LENGTH = len(_PARQUET_SEAL) + _SIZE


class DamagedError(BlendError):
    """A stored object is missing, or its bytes have changed."""


def sealed(data: bytes, name: str) -> bytes:
    """Add the seal to an object.

    Args:
        data: A Parquet file, or a JSON object in the form of `json.dumps(..., indent=2)`.
        name: Name of the object; it must be opened by the same name.

    Returns:
        The same Parquet file or JSON object, with a seal.
    """
    if data.endswith(_PARQUET_END):
        at = len(data) - _footer(data)
        return b"".join((data[:at], _PARQUET_SEAL, _digest(name, data[:at], data[at:]).digest(), data[at:]))
    body = data.rstrip().removesuffix(b"\n}")
    return b"".join((body, _JSON_SEAL % _digest(name, body, _JSON_END).hexdigest().encode(), _JSON_END))


def opened(data: bytes, name: str) -> bytes:
    """Check an object's seal.

    Args:
        data: A result of `sealed`.
        name: The name it was sealed with.

    Returns:
        The object: a JSON object without the seal, a Parquet file with it.

    Raises:
        DamagedError: It has changed, a part is missing, or it never had a seal.
    """
    if data.endswith(_JSON_END):
        at = len(data) - len(_JSON_END) - _JSON_LENGTH
        body = data[: max(at, 0)]
        if sealed(body + _JSON_END, name) == data:
            return body + _JSON_END
    elif len(data) > _PARQUET_LENGTH + 8 and data.endswith(_PARQUET_END):
        view, at = memoryview(data), len(data) - _footer(data)
        start = at - _PARQUET_LENGTH
        if start > 0 and view[start:at] == _PARQUET_SEAL + _digest(name, view[:start], view[at:]).digest():
            return data
    raise DamagedError(f"{name}: damaged")


def _footer(data: bytes) -> int:
    """Length of a Parquet file's footer, with its own length and the magic number after it."""
    return int.from_bytes(data[-8:-4], "little") + 8


def _digest(name: str, *parts: bytes | memoryview) -> hashlib.blake2b:
    digest = hashlib.blake2b(name.encode() + b"\0", digest_size=_SIZE)
    for part in parts:
        digest.update(part)
    return digest
