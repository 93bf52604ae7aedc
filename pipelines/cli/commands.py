"""The `blend` command: one subcommand per job.

Each command imports what it needs when it runs, so that `--help` needs neither torch nor Ray. Exit codes: 0 done, 1
the run failed, 2 wrong use (mistakes in a config included). An error is one line; with `--debug`, a traceback too.
"""

import os
import sys
import traceback
from importlib.util import find_spec
from typing import Annotated

import typer
import yaml
from typer.exceptions import TyperException

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.configs.extras import missing_extra
from llm_blender_ray.configs.loading import ConfigError, load
from llm_blender_ray.configs.schema import BlendConfig, GenFuser
from llm_blender_ray.pipelines.cli.agreement import agreement_command
from llm_blender_ray.pipelines.cli.bench import bench_app
from llm_blender_ray.pipelines.cli.campaign import campaign_app
from llm_blender_ray.pipelines.cli.dataset import dataset_app
from llm_blender_ray.pipelines.cli.export import export_app
from llm_blender_ray.pipelines.cli.judge import judge_command, names_judges, plan_judging
from llm_blender_ray.pipelines.cli.leaderboard import leaderboard_command
from llm_blender_ray.pipelines.cli.options import (
    DASHBOARD,
    AsJson,
    Config,
    Debug,
    DtypeOption,
    Input,
    Kind,
    Limit,
    Margin,
    Metrics,
    OrderBy,
    OutputPath,
    Overwrite,
    PairColumns,
    Pairs,
    PreferencesUri,
    RankerOption,
    RetryFailed,
    RunInput,
    RunOutput,
    Set,
    StrategyOption,
    TopK,
    Update,
    UsageError,
    bulk_settings,
    check_existing,
    is_config,
    preference_settings,
    program_options,
    ranker_section,
    settings_of,
)
from llm_blender_ray.pipelines.cli.prepared import Prepared, works_on_cluster
from llm_blender_ray.pipelines.cli.printing import print_lines, print_summary
from llm_blender_ray.pipelines.cli.score import score_command
from llm_blender_ray.pipelines.cli.submit import DO_THE_SAME_RUN, SubmitCommand, job_command, other_commands
from llm_blender_ray.pipelines.cli.training import train_app
from llm_blender_ray.pipelines.interruption import how_to_go_on, install

app = typer.Typer(
    help="Blend the answers of many LLMs: generate, rank pairwise, fuse.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(program_options)
app.add_typer(train_app, name="train")
app.add_typer(export_app, name="export")
app.add_typer(dataset_app, name="dataset")
app.add_typer(campaign_app, name="campaign")
if find_spec("llm_blender_ray.pipelines.bench") is not None:  # in a checkout, not in the wheel
    app.add_typer(bench_app, name="bench")


@app.command()
@works_on_cluster("run")
def run(
    config: Config,
    input: RunInput = None,
    output: RunOutput = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    preferences: PreferencesUri = None,
    pairs: Pairs = None,
    margin: Margin = None,
    pair_column: PairColumns = [],  # noqa: B006 (typer copies it)
    set_: Set = [],  # noqa: B006 (typer copies it)
    debug: Debug = False,
) -> Prepared:
    """Bulk run: read prompts, generate with every LLM, rank, fuse the best, write. Resumes where it was stopped."""
    wanted = (preferences, pairs, margin, pair_column)
    settings = bulk_settings(
        config, set_, input, output, limit, wanted, overwrite=overwrite, update=update, retry_failed=retry_failed
    )

    def start() -> None:
        from llm_blender_ray.pipelines.bulk.commands import run_blend

        print_summary(run_blend(settings, overwrite=overwrite, update=update, retry_failed=retry_failed))

    return Prepared(start, settings)


@app.command()
def serve(
    config: Config,
    host: Annotated[
        str, typer.Option(metavar="H", help="Address to listen on; any but this machine's own needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="P", help="Port to listen on.")] = 8000,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Online: OpenAI's API, where the model `blend` is all models together, and a page for people."""
    settings = load(config, BlendConfig, set_)

    from llm_blender_ray.pipelines.serve.command import serve_blend

    serve_blend(settings, host, port)


@app.command()
def deploy(
    config: Config,
    address: Annotated[str | None, DASHBOARD] = None,
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on, on every node.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="P", help="Port to listen on.")] = 8000,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the service is up, or has failed.")] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the config for `serve deploy` and KubeRay, and deploy nothing.")
    ] = False,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Online, on a Ray cluster: deploy the service or update it. Only models whose settings changed restart."""
    settings = load(config, BlendConfig, set_)

    if print_:
        from llm_blender_ray.pipelines.serve.serve_config import serve_config

        typer.echo(
            yaml.safe_dump(serve_config(settings, host, port), sort_keys=False, allow_unicode=True), nl=False
        )
    elif address is None:
        raise UsageError("give --address, the cluster's dashboard (http://HOST:8265), or --print")
    else:
        from llm_blender_ray.pipelines.serve.deploy import deploy_service

        deploy_service(settings, address, host, port, wait=wait)


@app.command()
def key(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key's owner.")]) -> None:
    """Make an API key for the service: the key, shown once, and the line for the keys file."""
    from llm_blender_ray.pipelines.serve.access import new_key

    try:
        secret, line = new_key(name)
    except BlendError as error:
        raise UsageError(str(error)) from error
    typer.echo(f"key (keep it, it is nowhere else):     {secret}\nline for the file of serve.keys_file: {line}")


@app.command()
@works_on_cluster("rank")
def rank(
    ranker: RankerOption,
    input: Input,
    output: OutputPath,
    kind: Kind = None,
    strategy: StrategyOption = None,
    top_k: TopK = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Also write every row's logits.")] = False,
    dtype: DtypeOption = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Cache of comparisons (SQLite), which are not repeated."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Ranker actors; default: as many as fit."),
    ] = None,
    preferences: PreferencesUri = None,
    pairs: Pairs = None,
    margin: Margin = None,
    pair_column: PairColumns = [],  # noqa: B006 (typer copies it)
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    debug: Debug = False,
) -> Prepared:
    """Rank the candidates that rows already have: with --top-k as many as must be right, else all of them."""
    check_existing(overwrite=overwrite, update=update, retry_failed=retry_failed)
    section = ranker_section(
        ranker, kind=kind, strategy=strategy, top_k=top_k, dtype=dtype, cache=cache, replicas=replicas
    )
    wanted = preference_settings(None, preferences, pairs, margin, pair_column)

    def start() -> None:
        from llm_blender_ray.pipelines.bulk.commands import run_rank

        existing = {"overwrite": overwrite, "update": update, "retry_failed": retry_failed}
        print_summary(run_rank(section, input, output, matrix=matrix, preferences=wanted, **existing))

    return Prepared(start, section if is_config(ranker) else None)


@app.command()
@works_on_cluster("fuse")
def fuse(
    fuser: Annotated[
        str, typer.Option(metavar="M", help="GenFuser or any seq2seq model: a local folder or hub id.")
    ],
    input: Input,
    output: OutputPath,
    top_k: Annotated[int, typer.Option(min=1, metavar="K", help="How many of the best are fused.")] = 3,
    num_beams: Annotated[int, typer.Option(min=1, metavar="B", help="Beams of the search; 1 is greedy.")] = 4,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Longest answer; default: a candidate's 128.")
    ] = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    debug: Debug = False,
) -> Prepared:
    """Fuse the best candidates of ranked rows; of rows without `ranking`, the first ones."""
    check_existing(overwrite=overwrite, update=update, retry_failed=retry_failed)
    settings = settings_of(GenFuser, model=fuser, top_k=top_k, num_beams=num_beams, max_new_tokens=max_new_tokens)

    def start() -> None:
        from llm_blender_ray.pipelines.bulk.commands import run_fuse

        print_summary(
            run_fuse(settings, input, output, overwrite=overwrite, update=update, retry_failed=retry_failed)
        )

    return Prepared(start)


@app.command()
@works_on_cluster("compare")
def compare(
    ranker: RankerOption,
    input: Input,
    output: OutputPath,
    kind: Kind = None,
    dtype: DtypeOption = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    debug: Debug = False,
) -> Prepared:
    """Compare two candidates: margin (of the first over the second) and preference (0 or 1)."""
    check_existing(overwrite=overwrite, update=update, retry_failed=retry_failed)
    section = ranker_section(ranker, kind=kind, dtype=dtype, strategy="full")

    def start() -> None:
        from llm_blender_ray.pipelines.bulk.commands import run_compare

        print_summary(
            run_compare(section, input, output, overwrite=overwrite, update=update, retry_failed=retry_failed)
        )

    return Prepared(start, section if is_config(ranker) else None)


@app.command()
def plan(
    config: Config,
    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="Plan for a cluster with N GPUs.")] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Estimate costs by this output of a run with --limit N over the same input."
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Estimate costs with answers of N tokens.")
    ] = None,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Show the placement of a run on the cluster and what it will cost, without running it."""
    if names_judges(config):
        plan_judging(config, gpus, measured, answer_tokens, set_)
        return
    settings = load(config, BlendConfig, set_)

    from llm_blender_ray.pipelines.bulk.planning import show_plan

    show_plan(settings, gpus, measured=measured, answer_tokens=answer_tokens)


@app.command("report")
@works_on_cluster("report")
def report_command(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Rows of a run, or rows with candidates.")],
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="The page; default: URI.report.html, beside the rows.")
    ] = None,
    metric: Metrics = [],  # noqa: B006
    order_by: OrderBy = None,
    debug: Debug = False,
) -> Prepared:
    """Write one HTML page of a run: quality, win matrix, comparisons, lengths, errors, time."""
    from llm_blender_ray.pipelines.quality.metrics import read_metrics

    metrics, ordering = read_metrics(metric, order_by)

    def start() -> None:
        from llm_blender_ray.pipelines.report.page import write_report

        typer.echo(write_report(uri, output, metrics, ordering))

    return Prepared(start)


@app.command("evaluate")
@works_on_cluster("evaluate")
def evaluate_command(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Rows of a run, or rows with candidates.")],
    as_json: AsJson = False,
    examples: Annotated[int, typer.Option(min=0, metavar="N", help="Also print the first N rows as prose.")] = 0,
    metric: Metrics = [],  # noqa: B006
    order_by: OrderBy = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the JSON there; local or s3://.")
    ] = None,
    debug: Debug = False,
) -> Prepared:
    """Quality against references (`output`) or given scores (`candidates[].scores`); users' votes."""
    from llm_blender_ray.pipelines.quality.metrics import read_metrics

    metrics, ordering = read_metrics(metric, order_by)

    def start() -> None:
        from llm_blender_ray.pipelines.quality.evaluation import main as evaluate_rows
        from llm_blender_ray.pipelines.report.costs import cost_of

        evaluate_rows(
            uri,
            as_json=as_json,
            examples=examples,
            metrics=metrics,
            order_by=ordering,
            cost_of=cost_of,
            output=output,
        )

    return Prepared(start)


app.command("judge")(judge_command)
app.command("agreement")(agreement_command)
app.command("leaderboard")(leaderboard_command)
app.command("score")(score_command)
app.command("submit", cls=SubmitCommand, epilog=other_commands())(job_command("run", DO_THE_SAME_RUN))


def main() -> None:
    """Run a command; turn what it raises into one line and an exit code."""
    install()
    try:
        code = app(standalone_mode=False)
    except ConfigError as error:
        code = _tell(str(error), 2)
    except TyperException as error:
        code = _tell(error.format_message(), error.exit_code)
    except BlendError as error:
        print_lines(getattr(error, "details", ()))
        code = _tell(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _tell(how_to_go_on(sys.argv[1:]), 130)
    except Exception as error:
        code = _tell(missing_extra(error) or f"unexpected {one_line(error)} (--debug shows where)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, code: int) -> int:
    if "BLEND_DEBUG" in os.environ:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"blend: {line}", file=sys.stderr)
    return code
