"""What a run cost: each stage, and the blend beside its best single model. Needs no plots: `blend evaluate`."""

import glob

from llm_blender_ray.pipelines.bulk.checkpoints import MANIFEST
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.quality.rounding import dollars
from llm_blender_ray.pipelines.quality.run_cost import RunCost
from llm_blender_ray.pipelines.report.numbers import Numbers, by_standing
from llm_blender_ray.pipelines.report.parts import Section, Table, share
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.storage import get


def manifest_of(uri: str) -> Manifest | None:
    """Manifest of the run that wrote these rows; None if there is none, or it is not one of ours.

    Its checksum is not required: one of an earlier version has none, and nothing is decided by a report.
    """
    if glob.has_magic(uri):
        return None
    text = get(f"{Output(uri).work_folder}/{MANIFEST}")
    try:
        return None if text is None else Manifest.parse(text)
    except ValueError:
        return None


def cost_of(uri: str) -> RunCost | None:
    """What the run that wrote these rows cost; None if they are of no run, or nothing has a price."""
    manifest = manifest_of(uri)
    if manifest is None or manifest.cost_usd is None:
        return None
    numbers = Numbers()
    for row in read_rows(uri):
        numbers.add(row)
    return run_cost(numbers, manifest)


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
