"""Means with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass
class Mean:
    """Running mean with its confidence interval, over squares about the mean (Welford), so that none cancel."""

    total: float = 0.0
    count: int = 0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Self:
        """The mean of these values."""
        if not len(values):
            return cls()
        array = np.asarray(values, dtype=float)
        return cls(float(array.sum()), len(array), float(((array - array.mean()) ** 2).sum()))

    def add(self, value: float) -> None:
        """Add one value."""
        from_before = value - self.total / self.count if self.count else 0.0
        self.total += value
        self.count += 1
        self.squares += from_before * (value - self.total / self.count)

    def merge(self, other: Self) -> None:
        """Add the values of another mean (Chan, Golub and LeVeque 1979)."""
        if self.count and other.count:
            apart = self.total / self.count - other.total / other.count
            self.squares += apart**2 * self.count * other.count / (self.count + other.count)
        self.total += other.total
        self.count += other.count
        self.squares += other.squares

    @property
    def value(self) -> float | None:
        """The mean so far; None without values."""
        return self.total / self.count if self.count else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, from the sample's standard deviation; None for fewer than two values."""
        return None if self.count < 2 else math.sqrt(self.squares / (self.count - 1) / self.count)

    @property
    def ci95_half_width(self) -> float | None:
        """Half the width of the mean's 95% interval, by the normal distribution; None for fewer than two values."""
        return None if self.standard_error is None else 1.96 * self.standard_error

    def report(self) -> dict[str, float | int | None]:
        """The mean as plain data: {"mean", "standard_error", "ci95_half_width", "count"}."""
        return {
            "mean": self.value,
            "standard_error": self.standard_error,
            "ci95_half_width": self.ci95_half_width,
            "count": self.count,
        }
