"""JSON of values that it has no type for."""

import base64
from typing import Any


def plain(value: Any) -> Any:
    """Text of such a value, for `json.dumps(default=...)`: bytes in base64, dates and times in ISO 8601."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
