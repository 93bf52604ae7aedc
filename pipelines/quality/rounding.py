"""Numbers as text."""


def fixed(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number with so many digits after the point; what rounds to zero is never -0.

    Args:
        value: The number.
        digits: Digits after the point.
        sign: Put `+` before numbers that are not negative.
    """
    return f"{value:{'+' if sign else ''}z,.{digits}f}"
