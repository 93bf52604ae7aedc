"""Numbers as text."""


def fixed(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a fixed count of digits after the point; what rounds to zero is never -0.

    Args:
        value: The number.
        digits: Digits after the point.
        sign: Put `+` before numbers that are not negative.
    """
    return f"{value:{'+' if sign else ''}z,.{digits}f}"


def dollars(usd: float) -> str:
    """An amount in USD: cents from 100 dollars on, else four significant digits."""
    return f"${usd:,.2f}" if usd >= 100 else f"${usd:.4g}"
