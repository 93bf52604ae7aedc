"""Command `python -m llm_blender_ray.pipelines.miniature --seed N --output DIR`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from llm_blender_ray.pipelines.miniature.evaluation import quality_table
from llm_blender_ray.pipelines.miniature.recipe import Miniature, make


def main(
    seed: Annotated[int, typer.Option(help="Decides beliefs, prompts and weights.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder of all results; finished steps in it are kept.")] = Path(
        "out/miniature"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 2,
) -> None:
    """Train the miniature from scratch and measure it."""
    begin = time.monotonic()
    print(quality_table(make(Miniature(seed, output), workers=workers)))
    print(f"{time.monotonic() - begin:.0f} s; all of it lies in {output}")


if __name__ == "__main__":
    typer.run(main)
