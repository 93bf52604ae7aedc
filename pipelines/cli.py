"""The `blend` command: one subcommand per job.

Each command imports what it needs when it runs, so that `--help` doesn't wait for torch and Ray. Exit codes:
0 done, 1 the run failed, 2 wrong use (a config's mistakes included). An error is one line; with `--debug`, a
traceback too.
"""

import json
import os
import sys
import traceback
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from typer.exceptions import TyperException

from actors.errors import BlendError, one_line
from configs.loading import ConfigError, load
from configs.schema import BlendConfig, Dtype, Fuser, Ranker, RankerConfig

app = typer.Typer(
    help="Blend the answers of many LLMs: generate, rank pairwise, fuse.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
train_app = typer.Typer(help="Train a ranker or a fuser on your own rows.")
app.add_typer(train_app, name="train")
bench_app = typer.Typer(help="Measure on this machine; JSON comes last.")
app.add_typer(bench_app, name="bench")

_SettingsT = TypeVar("_SettingsT", bound=BaseModel)


def _set_debug(value: bool) -> None:
    if value:
        os.environ["BLEND_DEBUG"] = "1"


class UsageError(TyperException):
    """The command line itself is wrong."""

    exit_code = 2


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of settings.")]
Set = Annotated[list[str], typer.Option("--set", metavar="a.b=value", help="Override one setting; repeatable.")]
Input = Annotated[str, typer.Option(metavar="URI", help="Rows: a file, folder or glob, local or s3://.")]
Output = Annotated[
    str, typer.Option(metavar="URI", help="One .jsonl, .json, .parquet or .csv file, or a folder of Parquet files.")
]
RankerOption = Annotated[
    str,
    typer.Option(metavar="M", help="A local folder or hub id, or a config (.yaml) whose `ranker` is used."),
]
Kind = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="What M is: pairranker (default), or reward for a reward model."),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        metavar="S",
        help="What is compared: full, sparse, sparse-refine, focus, swiss, knockout, bubble or reference, with "
        "options as in swiss:rounds=4,orders=one. Default: focus, or full without --top-k.",
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, metavar="K", help="How many of the best must be right.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option(metavar="D", help="auto (default), float32, bfloat16 or float16.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, is_eager=True, expose_value=False, help="Show tracebacks."),
]


@app.command()
def run(
    config: Config,
    input: Annotated[str | None, typer.Option(metavar="URI", help="Prompts; default: the config's input.")] = None,
    output: Annotated[str | None, typer.Option(metavar="URI", help="Default: the config's output.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N rows.")] = None,
    overwrite: Overwrite = False,
    set_: Set = [],  # noqa: B006 (typer copies it)
    debug: Debug = False,
) -> None:
    """Bulk: read prompts, ask every LLM, rank the answers, fuse the best, write."""
    settings = load(config, BlendConfig, set_)
    given = {"input": input, "output": output, "limit": limit}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    for name in ("input", "output"):
        if getattr(settings, name) is None:
            raise UsageError(f"no {name}: give --{name} or set `{name}` in {config}")

    from pipelines.jobs import run_blend

    typer.echo(run_blend(settings, overwrite=overwrite).line(), err=True)


@app.command()
def rank(
    ranker: RankerOption,
    input: Input,
    output: Output,
    kind: Kind = None,
    strategy: StrategyOption = None,
    top_k: TopK = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Also write every row's logits.")] = False,
    dtype: DtypeOption = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keep comparisons here (SQLite), and make none that are there."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Actors that rank; default: what fits."),
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Rank the candidates that rows already have: with --top-k as many as must be right, else all of them."""
    settings = _ranker(
        ranker, kind=kind, strategy=strategy, top_k=top_k, dtype=dtype, cache=cache, replicas=replicas
    )

    from pipelines.jobs import run_rank

    typer.echo(run_rank(settings, input, output, matrix=matrix, overwrite=overwrite).line(), err=True)


@app.command()
def fuse(
    fuser: Annotated[
        str, typer.Option(metavar="M", help="GenFuser or any seq2seq model: a local folder or hub id.")
    ],
    input: Input,
    output: Output,
    top_k: Annotated[int, typer.Option(min=1, metavar="K", help="How many of the best are fused.")] = 3,
    num_beams: Annotated[int, typer.Option(min=1, metavar="B", help="Beams of the search; 1 is greedy.")] = 4,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Longest answer; default: a candidate's 128.")
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Fuse the best candidates of ranked rows; of rows without `ranking`, the first ones."""
    settings = _settings(Fuser, model=fuser, top_k=top_k, num_beams=num_beams, max_new_tokens=max_new_tokens)

    from pipelines.jobs import run_fuse

    typer.echo(run_fuse(settings, input, output, overwrite=overwrite).line(), err=True)


@app.command()
def compare(
    ranker: RankerOption,
    input: Input,
    output: Output,
    kind: Kind = None,
    dtype: DtypeOption = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Say which of two candidates is better: margin (of the first over the second) and preference (0 or 1)."""
    settings = _ranker(ranker, kind=kind, dtype=dtype, strategy="full")

    from pipelines.jobs import run_compare

    typer.echo(run_compare(settings, input, output, overwrite=overwrite).line(), err=True)


@app.command()
def plan(
    config: Config,
    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="As if the cluster had N GPUs.")] = None,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Show what would run where, without running it."""
    settings = load(config, BlendConfig, set_)

    from pipelines.jobs import show_plan

    show_plan(settings, gpus)


@train_app.command("ranker")
def train_ranker(
    config: Config,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Train a PairRanker on rows with candidates and scores."""
    from configs.training import RankerTraining
    from pipelines.train.ranker import train

    train(load(config, RankerTraining, set_))


@train_app.command("fuser")
def train_fuser(
    config: Config,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Train a fuser on rows with candidates and references."""
    from configs.training import FuserTraining
    from pipelines.train.fuser import train

    train(load(config, FuserTraining, set_))


@bench_app.command("rank")
def bench_rank(
    ranker: RankerOption,
    input: Input,
    kind: Kind = None,
    strategy: Annotated[
        list[str], typer.Option(metavar="S", help="To compare with full; repeatable. Default: one of each kind.")
    ] = [],  # noqa: B006
    top_k: Annotated[int, typer.Option(min=1, metavar="K", help="How many of the best must be right.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N rows.")] = None,
    dtype: DtypeOption = None,
    debug: Debug = False,
) -> None:
    """Speed of a ranker, and what every strategy costs and loses against comparing all pairs."""
    settings = _ranker(ranker, kind=kind, dtype=dtype)
    strategies = [_ranker(ranker, kind=kind, strategy=one).strategy for one in strategy]

    from pipelines.bench.rank import main as measure

    measure(settings, input, limit=limit, top_k=top_k, strategies=[one for one in strategies if one])


@bench_app.command("pool")
def bench_pool(
    ranker: RankerOption,
    input: Input,
    replicas: Annotated[int, typer.Option(min=2, metavar="N", help="Ranker actors that share a request.")] = 2,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Requests: the first N rows.")] = 5,
    dtype: DtypeOption = None,
    simulated_s: Annotated[
        float, typer.Option(metavar="S", help="Seconds that a comparison takes on a simulated replica.")
    ] = 0.3,
    debug: Debug = False,
) -> None:
    """How much sooner one request is ranked on several replicas, and on up to 64 simulated ones."""
    settings = _ranker(ranker, dtype=dtype)

    from pipelines.bench.pool import main as measure

    measure(settings, input, replicas=replicas, limit=limit, simulated_s=simulated_s)


@app.command()
def evaluate(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Rows of a run, or rows with candidates.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    examples: Annotated[int, typer.Option(min=0, metavar="N", help="Also tell the first N rows as prose.")] = 0,
    debug: Debug = False,
) -> None:
    """Quality of a run against references (`output`) or given scores (`candidates[].scores`)."""
    from pipelines.evaluate import main as evaluate_rows

    evaluate_rows(uri, as_json=as_json, examples=examples)


def _settings(schema: type[_SettingsT], **values: object) -> _SettingsT:
    """Settings of command line options; a value the schema refuses is wrong use."""
    try:
        return schema.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        mistakes = "; ".join(
            f"--{_option(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise UsageError(mistakes) from error


def _option(path: tuple[int | str, ...]) -> str:
    """The option that set what is at a path of the settings."""
    return str(next((key for key in reversed(path) if key in _RANKER_OPTIONS), path[-1])).replace("_", "-")


_RANKER_OPTIONS = ("kind", "strategy", "top_k", "dtype", "cache", "replicas")


def _ranker(given: str, **options: object) -> Ranker:
    """The ranker that `--ranker` names, with what other options say of it."""
    options = {name: value for name, value in options.items() if value is not None}
    if given.endswith((".yaml", ".yml")):
        overrides = [f"ranker.{name}={json.dumps(value)}" for name, value in options.items()]
        return load(given, RankerConfig, overrides).ranker
    return _settings(RankerConfig, ranker={"model": given, **options}).ranker


def main() -> None:
    """Entry point: runs a command, and turns what it raises into one line and an exit code."""
    try:
        code = app(standalone_mode=False)
    except ConfigError as error:
        code = _tell(str(error), 2)
    except TyperException as error:
        code = _tell(error.format_message(), error.exit_code)
    except BlendError as error:
        code = _tell(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _tell("interrupted", 130)
    except Exception as error:
        code = _tell(f"unexpected {one_line(error)} (--debug shows where)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, code: int) -> int:
    if "BLEND_DEBUG" in os.environ:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"blend: {line}", file=sys.stderr)
    return code
