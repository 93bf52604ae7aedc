"""Numbers as text never show a zero with a minus."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.quality.rounding import fixed


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (-0.0004, 3, False, "0.000"),
        (-0.0, 2, False, "0.00"),
        (-0.004, 2, True, "+0.00"),
        (-0.005001, 2, True, "-0.01"),
        (1234.5, 1, False, "1,234.5"),
        (0.25, 3, True, "+0.250"),
    ],
)
def test_a_number_has_its_digits_and_a_zero_no_minus(value: float, digits: int, sign: bool, text: str) -> None:
    assert fixed(value, digits, sign=sign) == text


@given(st.floats(-10, 10), st.integers(0, 6), st.booleans())
def test_no_zero_has_a_minus(value: float, digits: int, sign: bool) -> None:
    text = fixed(value, digits, sign=sign)
    assert not re.fullmatch(r"-[0.]+", text)
    assert abs(float(text) - value) <= 0.5 * 10**-digits + 1e-12
