"""Section of a report on money: each stage's cost, and the blend's beside that of its best single model."""

from llm_blender_ray.pipelines.bulk.costs import dollars
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.report.numbers import Numbers, by_standing
from llm_blender_ray.pipelines.report.parts import Section, Table, share


def cost_section(numbers: Numbers, manifest: Manifest | None) -> Section | None:
    """What the run cost; None where nothing has a price."""
    if manifest is None or manifest.cost_usd is None:
        return None
    total, rows = manifest.cost_usd, max(manifest.output.rows, 1)
    priced = [stage for stage in manifest.stages if stage.cost_usd is not None]
    texts = [f"The run cost {dollars(total)}: {dollars(total / rows)} a row."]
    costs = {stage.name: stage.cost_usd for stage in priced if stage.kind == "generate"}
    ranked = [name for name in by_standing(numbers) if numbers.models[name].rank.count]
    if ranked and (alone := costs.get(ranked[0])):
        texts.append(
            f"The best single model by this ranking is {ranked[0]}, whose answers alone cost {dollars(alone)}: the "
            f"blend cost {total / alone:.1f} times that."
        )
    if manifest.unpriced:
        texts.append(f"Not in these amounts: {', '.join(manifest.unpriced)}, whose price is unknown.")
    if least := [stage.name for stage in priced if stage.unreported_calls or stage.uncounted]:
        texts.append(f"At least: not all tokens of {', '.join(least)} are known.")
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
                share(stage.cost_usd or 0.0, total),
                dollars((stage.cost_usd or 0.0) / rows),
            )
            for stage in priced
        ),
    )
    return Section("Cost", tuple(texts), tables=(table,))
