"""Cost of a finished run: of each stage, for the manifest, and as last lines.

Tokens are billed at the prices of the config or of the table; GPUs of your own models by the busy time of their
actors, where the config has their price. What has no price has an unknown cost and is named, never counted as 0.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from llm_blender_ray.actors.prices import gpu_usd, lacks_price
from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.bulk.results import usages_of
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.quality.rounding import dollars


def with_costs(
    records: Sequence[StageRecord], work: StageGraph, prices: Mapping[str, ModelPrice]
) -> tuple[StageRecord, ...]:
    """The records of a run's stages with their costs.

    Args:
        records: One for each step.
        work: All steps.
        prices: `prices` of the config.
    """
    priced = []
    for record, step in zip(records, work.steps, strict=True):
        part = step.placement
        if step.price is not None:
            usd: float | None = step.price.usd(record.usage)
        else:
            usd = gpu_usd(step.name, prices, record.seconds * part.num_gpus)
        priced.append(record.model_copy(update={"cost_usd": usd}))
    return tuple(priced)


def row_costs(costs: Sequence[float | None], step: StageSpec, result: pa.Table) -> list[float | None]:
    """Costs of rows with that of one more step.

    Args:
        costs: Of the steps before it, in USD; None: nothing was billed.
        step: The step.
        result: Its result on the rows.

    Returns:
        The costs. What an earlier version's result used is unknown, and not in them.
    """
    if step.price is None:
        return list(costs)
    own = [None if usage is None else step.price.usd(usage) for usage in usages_of(step.kind, result)]
    return [cost if usd is None else (cost or 0.0) + usd for cost, usd in zip(costs, own, strict=True)]


def unpriced_stages(
    records: Sequence[StageRecord], work: StageGraph, prices: Mapping[str, ModelPrice]
) -> tuple[str, ...]:
    """Names of the steps that have called an endpoint whose price is unknown; `records` are theirs."""
    return tuple(
        step.name
        for record, step in zip(records, work.steps, strict=True)
        if (record.calls or record.uncounted) and lacks_price(step.name, step.placement.settings, prices)
    )


def cost_lines(manifest: Manifest) -> list[str]:
    """What the run cost in all, a row, and by stage, and whose cost is unknown; none where nothing is billed."""
    known = [stage for stage in manifest.stages if stage.cost_usd is not None]
    lines: list[str] = []
    if known and manifest.cost_usd is not None:
        least = any(stage.unreported_calls or stage.uncounted for stage in known)
        each = ", ".join(f"{stage.name} {dollars(stage.cost_usd or 0.0)}" for stage in known)
        a_row = dollars(manifest.cost_usd / max(manifest.output.rows, 1))
        lines.append(f"cost: {'at least ' * least}{dollars(manifest.cost_usd)}, {a_row} a row: {each}")
    if manifest.unpriced:
        lines.append(
            f"cost of {', '.join(manifest.unpriced)} unknown: neither the config nor the table has a price; "
            f"{' and '.join(f'prices.{name}' for name in manifest.unpriced)} would set it"
        )
    return lines
