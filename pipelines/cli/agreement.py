"""Command `blend agreement`."""

from typing import Annotated

import typer

from llm_blender_ray.pipelines.cli.options import AsJson, Debug, Metrics


def agreement_command(
    uri: Annotated[
        list[str],
        typer.Argument(metavar="URI", help="Rows of a run, of judges, of votes, or a ranked preference set."),
    ],
    by: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Also by each value of this column; repeatable.")
    ] = [],  # noqa: B006 (typer copies it)
    rater: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Compare only this rater, as the output names it; repeatable."),
    ] = [],  # noqa: B006
    metric: Metrics = [],  # noqa: B006
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Agreement of ranker, judges, given scores, metrics and people; accuracy of a ranker on a preference set."""
    from llm_blender_ray.pipelines.quality.agreement_report import print_agreement
    from llm_blender_ray.pipelines.quality.metrics import read_metrics

    metrics, _ = read_metrics(metric, None)
    print_agreement(uri, slice_by=by, metrics=metrics, raters=rater, as_json=as_json)
