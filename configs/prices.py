"""Settings of what models cost, and of how much may be spent."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from llm_blender_ray.configs.settings import Settings

USD = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UsdLimit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelPrice(Settings):
    """Price of one model: by tokens where a service bills them, by time where the GPUs are your own.

    Attributes:
        input: USD per million prompt tokens.
        cached_input: USD per million prompt tokens that the service read from its cache.
        output: USD per million completion tokens, reasoning included.
        gpu_hour: USD per hour of one GPU.
    """

    input: USD | None = None
    cached_input: USD | None = None  # None: as input
    output: USD | None = None
    gpu_hour: USD | None = None

    @property
    def by_tokens(self) -> bool:
        """Whether tokens are billed."""
        return self.input is not None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.input is None) != (self.output is None):
            raise ValueError("expected both input and output (0 where one of them is free)")
        if self.cached_input is not None and self.input is None:
            raise ValueError("expected input and output beside cached_input")
        if self.by_tokens == (self.gpu_hour is not None):
            raise ValueError("expected either input and output, or gpu_hour")
        return self


class BudgetSettings(Settings):
    """Most that calls to endpoints may cost. A call is made only if the most it can cost still fits.

    Attributes:
        usd_per_run: Of a bulk run, all its sessions and retries together.
        usd_per_request: Of a request of the service, all its models' calls and retries together.
        usd_per_key_per_day: Of all requests of one API key on a day (UTC); without keys, of all requests.
    """

    usd_per_run: UsdLimit | None = None
    usd_per_request: UsdLimit | None = None
    usd_per_key_per_day: UsdLimit | None = None

    @property
    def bounds_requests(self) -> bool:
        """Whether requests of the service have a budget."""
        return self.usd_per_request is not None or self.usd_per_key_per_day is not None
