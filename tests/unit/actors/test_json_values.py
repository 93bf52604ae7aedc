"""Text of values that JSON has no type for."""

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest

from llm_blender_ray.actors.json_values import plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", "AP8="),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
        (time(3, 4), "03:04:00"),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_values_without_a_type_in_json_are_text(value: Any, text: str) -> None:
    assert json.loads(json.dumps([value], default=plain)) == [text]
