"""Command `blend leaderboard`."""

import json
from typing import Annotated, Any, get_args

import typer

from llm_blender_ray.pipelines.cli.options import AsJson, Debug, UsageError


def leaderboard_command(
    uri: Annotated[list[str], typer.Argument(metavar="URI...", help="Rows with judgements, scores or references.")],
    judge: Annotated[
        list[str], typer.Option(metavar="NAME", help="Only judgements of this judge; repeatable. Default: all.")
    ] = [],  # noqa: B006 (typer copies it)
    score: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare by this given score (`candidates[].scores`)."),
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(metavar="M", help="Compare by this metric against references; with --paper, its columns."),
    ] = [],  # noqa: B006
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Win rates against this model; `reference`: --score is the probability to beat `output`.",
        ),
    ] = None,
    at_least: Annotated[
        list[str], typer.Option(metavar="MODEL", help="A column: share at least as good as MODEL; repeatable.")
    ] = [],  # noqa: B006
    top_k: Annotated[int, typer.Option(min=1, metavar="K", help="Places that count in the column Top-K.")] = 3,
    control: Annotated[
        list[str], typer.Option(metavar="C", help="Also strengths at equal `length` or `style`; repeatable.")
    ] = [],  # noqa: B006
    by: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="A table for each value of this column, too; repeatable.")
    ] = [],  # noqa: B006
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="LLM-Blender's Table 2: metrics as columns; random choice and oracles as lines, too."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of resamples and permutations.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Which model is better, and how sure that is: strengths, win rates, ranks, with 95% intervals."""
    from llm_blender_ray.configs.extras import require
    from llm_blender_ray.pipelines.quality.bradley_terry import Control
    from llm_blender_ray.pipelines.quality.contest import REFERENCE, LeaderboardOptions
    from llm_blender_ray.pipelines.quality.metrics import default_metrics, read_metric

    if unknown := [one for one in control if one not in get_args(Control)]:
        raise UsageError(f"--control {unknown[0]}: expected one of {', '.join(get_args(Control))}")
    if bool(judge) + bool(score) + (bool(metric) and not paper) > 1:
        raise UsageError("--judge, --score, --metric: give one of them")
    if len(metric) > 1 and not paper:
        raise UsageError("--metric: give one, or --paper")
    if baseline == REFERENCE and score is None:
        raise UsageError(f"--baseline {REFERENCE} needs --score, a probability")
    metrics: list[Any] = [read_metric(one) for one in metric] or (default_metrics() if paper else [])
    options = LeaderboardOptions(
        judges=tuple(judge),
        score=score,
        metric=metrics[0] if metrics and not paper else None,
        baseline=baseline,
        at_least=tuple(at_least),
        top_k=top_k,
        controls=tuple(control),  # type: ignore[arg-type]
        slice_by=tuple(by),
        columns=tuple(metrics) if paper else (),
        paper=paper,
        seed=seed,
    )

    from rich.console import Console

    from llm_blender_ray.pipelines.quality.leaderboard import LEADERBOARD_NEEDS, leaderboard_of
    from llm_blender_ray.pipelines.quality.leaderboard_tables import render_leaderboard

    require(*LEADERBOARD_NEEDS)
    report = leaderboard_of(uri, options)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        Console().print(render_leaderboard(report))
