"""Self-blend as a baseline of the blend: one LLM sampled n times in place of n LLMs (Li et al. 2025, "Self-MoA").

    python -m llm_blender_ray.pipelines.miniature.self_blend

Answers held-out prompts with the six LLMs of `configs/demo.yaml`, and as often with the best one alone, by
`configs/demo-self.yaml`; ranks both with the same ranker and fuses the three best of each with the same fuser. Each
line has 95% intervals, and its difference to the mixed blend on the same prompts. JSON comes last.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from llm_blender_ray.actors.generator import Generator
from llm_blender_ray.actors.records import Candidate, read_prompt
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig, ModelSettings
from llm_blender_ray.pipelines.miniature.data import read_data
from llm_blender_ray.pipelines.miniature.evaluation import MINIATURE_TOP_K, fuse_heldout, rank_heldout
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.metrics import parts_right
from llm_blender_ray.pipelines.quality.rounding import fixed

_RANKER, _FUSER = (PRESETS / "miniature" / name for name in ("ranker", "fuser"))


def generate_answers(models: Sequence[ModelSettings], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the answers of all LLMs, all their samples, as candidates."""
    found: list[list[Candidate]] = [[] for _ in rows]
    for model in models:
        for of_row, answers in zip(found, asyncio.run(_answers(model, rows)), strict=True):
            of_row += answers
        print(f"{model.name}: answers to {len(rows)} prompts", file=sys.stderr, flush=True)
    return [
        {**row, "candidates": [one.to_row() for one in of_row]} for row, of_row in zip(rows, found, strict=True)
    ]


async def _answers(model: ModelSettings, rows: Sequence[Mapping[str, Any]]) -> list[list[Candidate]]:
    generator = Generator(model)
    prompts = [read_prompt(row) for row in rows]
    asked = [generator.answer(prompt, sample) for prompt in prompts for sample in range(model.samples)]
    answers = await asyncio.gather(*asked)
    await generator.close()
    return [list(answers[at : at + model.samples]) for at in range(0, len(answers), model.samples)]


def measure_self_blend(
    rows: Sequence[Mapping[str, Any]], temperatures: Sequence[float], *, num_beams: int = 4
) -> dict[str, Any]:
    """Measure the mixed blend, and the self-blend at several temperatures of its samples.

    Args:
        rows: Rows of the miniature with their references.
        temperatures: Of the samples.
        num_beams: Of the fuser.

    Returns:
        {"prompts", "lines": {label: {"parts", "exact", "parts_less_mixed", "exact_less_mixed"}}}, each [mean, half
        the width of its 95% interval].
    """
    mixed, own = (load(PRESETS / name, BlendConfig) for name in ("demo.yaml", "demo-self.yaml"))
    of_mixed, model = generate_answers(mixed.models, rows), own.models[0]
    alone = [one.name for one in mixed.models].index(model.name)
    parts = {f"{model.name} alone, greedy": _shares(rows, [row["candidates"][alone]["text"] for row in of_mixed])}
    parts |= _blended(f"{len(mixed.models)} LLMs", rows, of_mixed, num_beams)
    blend = [*parts.values()][-1]
    for temperature in temperatures:
        sampling = model.sampling.model_copy(update={"temperature": temperature})
        of_own = generate_answers([model.model_copy(update={"sampling": sampling})], rows)
        label = f"{model.samples} samples of {model.name} at temperature {temperature:g}"
        parts |= _blended(label, rows, of_own, num_beams)
    lines = {
        label: {
            "parts": _mean(one),
            "exact": _mean(one == 1),
            "parts_less_mixed": _mean(one - blend),
            "exact_less_mixed": _mean((one == 1) * 1.0 - (blend == 1)),
        }
        for label, one in parts.items()
    }
    return {"prompts": len(rows), "lines": lines}


def _blended(
    label: str, rows: Sequence[Mapping[str, Any]], answered: Sequence[Mapping[str, Any]], num_beams: int
) -> dict[str, NDArray[np.float64]]:
    """Correct parts by row of the best answer by the references, by the ranker, and of the fusion of the best."""
    ranked = [
        [row["candidates"][at]["text"] for at in order]
        for row, order in zip(answered, rank_heldout(_RANKER, answered), strict=True)
    ]
    fused = fuse_heldout(_FUSER, answered, [texts[:MINIATURE_TOP_K] for texts in ranked], num_beams=num_beams)
    best = [max(_shares([row] * len(texts), texts)) for row, texts in zip(rows, ranked, strict=True)]
    return {
        f"oracle of {label}": np.array(best),
        f"best of {label}": _shares(rows, [texts[0] for texts in ranked]),
        f"blend of {label}": _shares(rows, fused),
    }


def _shares(rows: Sequence[Mapping[str, Any]], texts: Sequence[str | None]) -> NDArray[np.float64]:
    return np.array([parts_right(row["output"], text or "") for row, text in zip(rows, texts, strict=True)])


def _mean(values: NDArray[Any]) -> list[float]:
    mean = Mean.of(values)
    return [round(mean.value or 0.0, 4), round(mean.ci95_half_width or 0.0, 4)]


def self_blend_table(results: Mapping[str, Any]) -> str:
    """The results as plain text, each figure with half the width of its 95% interval."""
    lines = results["lines"]
    width = max(map(len, lines))
    text = [f"{'':{width}}  parts         exact         parts less the mixed blend"]
    for label, line in lines.items():
        figures = "  ".join(f"{fixed(mean)} ± {half:.3f}" for mean, half in (line["parts"], line["exact"]))
        mean, half = line["parts_less_mixed"]
        text.append(f"{label:{width}}  {figures}  {fixed(mean, sign=True)} ± {half:.3f}")
    return "\n".join(text)


def main(
    temperature: Annotated[list[float], typer.Option(min=0.01, help="Of the samples; repeatable.")] = [0.7, 1.5],  # noqa: B006
    limit: Annotated[int | None, typer.Option(min=2, help="Prompts; default: all that are shipped.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the fuser.")] = 4,
) -> None:
    """Print the table and JSON."""
    torch.set_num_threads(1)
    rows = list(islice(read_data(PRESETS / "miniature" / "heldout.jsonl"), limit))
    results = measure_self_blend(rows, temperature, num_beams=num_beams)
    print(self_blend_table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    typer.run(main)
