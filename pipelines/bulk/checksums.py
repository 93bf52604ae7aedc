"""Checksums of the objects in a work folder: what is read is what was written, or it counts as damaged.

A seal is a BLAKE2b digest of an object's name and bytes. It stands where the format has room for it, between the
pages and the footer of Parquet and as the last key of a JSON object, so that other programs read a sealed file as
before. The name is part of it, so that a file in another's place is found out too.
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
    """A kept object is gone, or its bytes aren't those that were written."""


def sealed(data: bytes, name: str) -> bytes:
    """Add the seal to an object.

    Args:
        data: a Parquet file, or a JSON object as `json.dumps(..., indent=2)` writes it.
        name: where the object is kept; it must be opened by the same name.

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
        data: what `sealed` gave.
        name: the name it was sealed with.

    Returns:
        The object: a JSON object without the seal, a Parquet file with it.

    Raises:
        DamagedError: a bit of it has changed, a part is missing, or it never had a seal.
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
    """The length of a Parquet file's footer, with its own length and the magic number after it."""
    return int.from_bytes(data[-8:-4], "little") + 8


def _digest(name: str, *parts: bytes | memoryview) -> hashlib.blake2b:
    digest = hashlib.blake2b(name.encode() + b"\0", digest_size=_SIZE)
    for part in parts:
        digest.update(part)
    return digest
