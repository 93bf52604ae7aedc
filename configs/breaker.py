"""Settings of circuit breakers: when a part of a blend that keeps failing is skipped for a while."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from llm_blender_ray.configs.settings import Settings


class BreakerSettings(Settings):
    """Limits of a circuit breaker (`actors.circuit_breaker`).

    Attributes:
        failures: Failures in a row that open it.
        wait_s: Seconds until the first probe; doubled after each probe that fails.
        longest_wait_s: Bound of that.
    """

    failures: Annotated[int, Field(ge=1)] = 5
    wait_s: Annotated[float, Field(gt=0)] = 1.0
    longest_wait_s: Annotated[float, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.longest_wait_s < self.wait_s:
            raise ValueError(f"longest_wait_s ({self.longest_wait_s:g}) is smaller than wait_s ({self.wait_s:g})")
        return self
