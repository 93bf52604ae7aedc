"""Command `blend export ranker`."""

from typing import Annotated

import typer

from llm_blender_ray.configs.rankers import RankerLayout
from llm_blender_ray.pipelines.cli.options import Debug

export_app = typer.Typer(help="Write a trained model in a published layout.")


@export_app.command("ranker")
def export_ranker(
    ranker: Annotated[str, typer.Argument(metavar="M", help="PairRanker: a local folder or hub id.")],
    layout: Annotated[
        RankerLayout,
        typer.Option(
            metavar="L",
            help="pairrm (llm-blender/PairRM, which the original llm-blender loads) or pairrm-hf "
            "(llm-blender/PairRM-hf).",
        ),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="A new folder.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Of pairrm: the encoder that its config names, a hub id or folder. Default: the one that M names, "
            "else a folder `backbone` in DIR, without weights.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a PairRanker in the layout of PairRM or PairRM-hf; its logits stay equal."""
    from llm_blender_ray.actors.pairrm.export import export_pairrm

    export_pairrm(ranker, layout, output, backbone=backbone)
    typer.echo(f"ranker exported to {output} ({layout})")
