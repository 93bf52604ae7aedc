"""Section of a report on money: each stage's cost, and the blend's beside that of its best single model."""

from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.quality.rounding import dollars
from llm_blender_ray.pipelines.quality.run_cost import RunCost
from llm_blender_ray.pipelines.report.numbers import Numbers, by_standing
from llm_blender_ray.pipelines.report.parts import Section, Table, share


def run_cost(numbers: Numbers, manifest: Manifest | None) -> RunCost | None:
    """Cost of the run with these rows; None where nothing has a price."""
    if manifest is None or manifest.cost_usd is None:
        return None
    priced = [stage for stage in manifest.stages if stage.cost_usd is not None]
    costs = {stage.name: stage.cost_usd for stage in priced if stage.kind == "generate"}
    best = next((name for name in by_standing(numbers) if numbers.models[name].rank.count), None)
    return RunCost(
        usd=manifest.cost_usd,
        usd_per_row=manifest.cost_usd / max(manifest.output.rows, 1),
        best_model=best if best in costs else None,
        best_model_usd=costs.get(best or ""),
        unpriced=manifest.unpriced,
        incomplete=tuple(stage.name for stage in priced if stage.unreported_calls or stage.uncounted),
    )


def cost_section(numbers: Numbers, manifest: Manifest | None) -> Section | None:
    """What the run cost; None where nothing has a price."""
    cost = run_cost(numbers, manifest)
    if manifest is None or cost is None:
        return None
    priced = [stage for stage in manifest.stages if stage.cost_usd is not None]
    rows = max(manifest.output.rows, 1)
    table = Table(
        "Tokens at the prices of the config or of the table; GPUs by the busy time of their actors.",
        ("", "calls", "tokens read", "of them cached", "tokens written", "USD", "share", "USD a row"),
        tuple(
            (
                stage.name,
                f"{stage.calls:,}",
                f"{stage.prompt_tokens:,}",
                f"{stage.cached_prompt_tokens:,}",
                f"{stage.completion_tokens:,}",
                dollars(stage.cost_usd or 0.0),
                share(stage.cost_usd or 0.0, cost.usd),
                dollars((stage.cost_usd or 0.0) / rows),
            )
            for stage in priced
        ),
    )
    return Section("Cost", tuple(cost.sentences()), tables=(table,))
