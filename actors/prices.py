"""Prices of models, and the cost of what they were asked for. Pure, and offline: the table is a package's.

Prices of endpoints come from the config, else from `genai-prices` by the endpoint's URL and model. A model that
neither knows has no price, and what it costs is unknown: not zero.
"""

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.configs.schema import EndpointModel

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo
    from genai_prices.types import ModelPrice as TablePrice

MILLION = 1_000_000
NANO = 1_000_000_000  # a budget is counted in whole billionths of a dollar: sums of them are exact
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per million tokens."""

    input: float
    cached_input: float
    output: float


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Price of a model by tokens.

    Attributes:
        rates: Of a call.
        tiers: Rates of a call whose prompt has more tokens than this number; ascending.
    """

    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()

    def usd(self, usage: TokenUsage) -> float:
        """Cost of calls, in USD. The mean prompt selects the tier, so the cost of one call is exact."""
        rates = self._rates(usage.prompt_tokens / max(usage.calls, 1))
        new_tokens = usage.prompt_tokens - usage.cached_prompt_tokens
        input_usd = new_tokens * rates.input + usage.cached_prompt_tokens * rates.cached_input
        return (input_usd + usage.completion_tokens * rates.output) / MILLION

    def most_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Upper bound of the cost of one call with at most these numbers of tokens."""
        reached = (self.rates, *(rates for start, rates in self.tiers if prompt_tokens > start))
        dearest = max(
            prompt_tokens * max(one.input, one.cached_input) + completion_tokens * one.output for one in reached
        )
        return dearest / MILLION

    def _rates(self, prompt_tokens: float) -> Rates:
        above = [rates for start, rates in self.tiers if prompt_tokens > start]
        return above[-1] if above else self.rates


def nano_usd(usd: float) -> int:
    """Whole billionths of a dollar, rounded up."""
    return math.ceil(usd * NANO)


def token_price(name: str, part: PartSettings, prices: Mapping[str, ModelPrice]) -> TokenPrice | None:
    """Price of the tokens of a part's LLM.

    Args:
        name: Name of the part: a base LLM's, `ranker` or `fuser`.
        part: Its settings.
        prices: `prices` of the config.

    Returns:
        None where no tokens are billed, and where nothing has a price (`lacks_price`).
    """
    if (own := prices.get(name)) is not None:
        if own.input is None or own.output is None:
            return None
        cached = own.input if own.cached_input is None else own.cached_input
        return TokenPrice(Rates(own.input, cached, own.output))
    llm = part.prompted_llm
    return table_price(llm.base_url, llm.model) if isinstance(llm, EndpointModel) else None


def lacks_price(name: str, part: PartSettings, prices: Mapping[str, ModelPrice]) -> bool:
    """Whether a part asks an endpoint at a price that is unknown."""
    endpoint = isinstance(part.prompted_llm, EndpointModel)
    return endpoint and name not in prices and token_price(name, part, prices) is None


def check_prices(parts: Mapping[str, PartSettings], prices: Mapping[str, ModelPrice]) -> None:
    """Check that a budget can bound what each part of a run spends.

    Raises:
        BlendError: A part asks an endpoint at an unknown price, or has a price of tokens and is no endpoint.
    """
    for name, part in parts.items():
        llm = part.prompted_llm
        if lacks_price(name, part, prices):
            assert isinstance(llm, EndpointModel)
            raise BlendError(
                f"budget: the price of {name} is unknown ({llm.model} at {llm.base_url} is not in the table); set "
                f"prices.{name}"
            )
        if name in prices and prices[name].by_tokens and not isinstance(llm, EndpointModel):
            raise BlendError(f"budget: it bounds calls to endpoints; {name} is none, but has a price of tokens")


def billed_parts(parts: Mapping[str, PartSettings], prices: Mapping[str, ModelPrice]) -> list[str]:
    """Names of the parts that call an endpoint, or have a price of tokens."""
    return [n for n, part in parts.items() if lacks_price(n, part, prices) or token_price(n, part, prices)]


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices of the tokens of a blend's parts.

    Attributes:
        prices: By part; None where an endpoint's is unknown. Parts that bill no tokens have none.
    """

    prices: Mapping[str, TokenPrice | None] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, PartSettings], prices: Mapping[str, ModelPrice]) -> Self:
        """Prices of the parts of a config, with its `prices`."""
        return cls({name: token_price(name, parts[name], prices) for name in billed_parts(parts, prices)})

    @property
    def known(self) -> bool:
        """Whether any price is known."""
        return any(price is not None for price in self.prices.values())

    def usd_by_part(self, usages: Mapping[str, TokenUsage]) -> dict[str, float | None]:
        """Costs of the calls of parts that bill tokens, in USD; None where the price is unknown."""
        priced = [(name, self.prices[name], usage) for name, usage in usages.items() if name in self.prices]
        return {name: None if price is None else price.usd(usage) for name, price, usage in priced}


def total_usd(costs: Collection[float | None]) -> float | None:
    """Sum of costs; None, unknown, as soon as one of them is."""
    known = [usd for usd in costs if usd is not None]
    return math.fsum(known) if len(known) == len(costs) else None


def gpu_usd(name: str, prices: Mapping[str, ModelPrice], gpu_seconds: float) -> float | None:
    """Cost of a part's GPUs; None where they have no price."""
    price = prices.get(name)
    return None if price is None or price.gpu_hour is None else price.gpu_hour * gpu_seconds / SECONDS_PER_HOUR


@functools.cache
def table_price(base_url: str, model: str) -> TokenPrice | None:
    """Today's price of an endpoint's model in the table of `genai-prices`.

    Args:
        base_url: The endpoint's URL, which selects the service. The model's name alone says nothing: another
            server may have a model of that name for nothing.
        model: The service's name of the model.

    Returns:
        None where the table has no such service or model, or no price of both input and output.
    """
    from genai_prices.data_snapshot import get_snapshot  # its table: 0.2 s

    try:
        _, info = get_snapshot().find_provider_model(model, None, None, base_url)
    except LookupError:
        return None
    return _price_in(info)


def _price_in(info: "ModelInfo") -> TokenPrice | None:
    from genai_prices.types import TieredPrices

    price = info.get_prices(datetime.now(UTC))
    if price.input_mtok is None or price.output_mtok is None:
        return None
    starts = {
        tier.start
        for value in (price.input_mtok, price.cache_read_mtok, price.output_mtok)
        if isinstance(value, TieredPrices)
        for tier in value.tiers
    }
    return TokenPrice(_rates_at(price, 0), tuple((start, _rates_at(price, start + 1)) for start in sorted(starts)))


def _rates_at(price: "TablePrice", prompt_tokens: int) -> Rates:
    """Rates of a call with a prompt of this length."""
    from genai_prices.types import TieredPrices

    def rate(name: str, default: float) -> float:
        value = getattr(price, name)
        if isinstance(value, TieredPrices):
            value = [value.base, *(tier.price for tier in value.tiers if prompt_tokens > tier.start)][-1]
        return default if value is None else float(value)

    input_rate = rate("input_mtok", 0.0)
    return Rates(input_rate, rate("cache_read_mtok", input_rate), rate("output_mtok", 0.0))
