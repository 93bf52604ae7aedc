"""`blend score`."""

from typing import Annotated

import typer

from llm_blender_ray.pipelines.cli.options import (
    Debug,
    Input,
    OutputPath,
    Overwrite,
    RetryFailed,
    Update,
    UsageError,
    check_existing,
)
from llm_blender_ray.pipelines.cli.prepared import Prepared, works_on_cluster
from llm_blender_ray.pipelines.cli.printing import print_summary


@works_on_cluster("score")
def score_command(
    input: Input,
    output: OutputPath,
    metric: Annotated[
        list[str],
        typer.Option(
            metavar="M",
            help="A metric with its options, as in bertscore:model=roberta-large; repeatable. Its scores are "
            "written under its name, or another one: rouge_l:stemmer=true,as=stems.",
        ),
    ] = [],  # noqa: B006 (typer copies it)
    references: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the references: a text, or a list of texts.")
    ] = "output",
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    debug: Debug = False,
) -> Prepared:
    """Score candidates and fused answers by references: candidates[].scores, which `blend train ranker` reads."""
    check_existing(overwrite=overwrite, update=update, retry_failed=retry_failed)
    from llm_blender_ray.pipelines.quality.metrics import read_named_metrics

    metrics = read_named_metrics(metric)
    if not metrics:
        raise UsageError("no metric: give --metric, for example --metric rouge_l")

    def start() -> None:
        from llm_blender_ray.pipelines.bulk.score import run_score

        existing = {"overwrite": overwrite, "update": update, "retry_failed": retry_failed}
        print_summary(run_score(metrics, input, output, references=references, **existing))

    return Prepared(start)
