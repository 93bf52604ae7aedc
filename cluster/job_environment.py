"""Environment variables that a job gets from its submitter, as two shares of which one alone reveals nothing.

Ray shows the runtime environment of a job, `env_vars` included, in `ray job list`, the dashboard and its logs, and
nodes keep a job's upload on their disks after its end. So one share is a file of the upload, random bytes, and the
other is a variable of the runtime environment: the values XOR those bytes. Ray's setup hook joins them in the
memory of every process of the job: the driver's parent, whose environment the driver inherits, and each worker.

Needs no Ray and nothing slow: it runs at the start of every worker.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

FILE = "environment.share"  # in the uploaded folder, beside the package
VARIABLE = "BLEND_ENVIRONMENT_SHARE"
HOOK = f"{__name__}.restore_environment"
_MULTIPLE = 256  # bytes to which the values are padded: their length is a hint, too


def split_environment(values: Mapping[str, str]) -> tuple[bytes, str]:
    """Split variables into two shares.

    Args:
        values: The variables by their names.

    Returns:
        Contents of `FILE` and value of `VARIABLE`.
    """
    text = json.dumps(dict(values)).encode()
    text += b" " * (-len(text) % _MULTIPLE)
    pad = secrets.token_bytes(len(text))
    return pad, _xor(text, pad).hex()


def restore_environment() -> None:
    """Set the job's variables in this process; without them, do nothing."""
    share = os.environ.pop(VARIABLE, None)
    if share is not None:
        pad = (Path(__file__).parents[2] / FILE).read_bytes()
        os.environ.update(json.loads(_xor(bytes.fromhex(share), pad)))


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
