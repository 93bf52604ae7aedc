"""Options of the command line, and the settings made of them."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from typer.exceptions import TyperException

from llm_blender_ray.configs.loading import load
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.schema import BlendConfig, Dtype, RankerSection, RankerSettings

_SettingsT = TypeVar("_SettingsT", bound=BaseModel)


def _set_debug(value: bool) -> None:
    if value:
        os.environ["BLEND_DEBUG"] = "1"


class UsageError(TyperException):
    """The command line itself is wrong."""

    exit_code = 2


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of settings.")]
Set = Annotated[list[str], typer.Option("--set", metavar="a.b=value", help="Override one setting; repeatable.")]
DASHBOARD = typer.Option(
    metavar="URL", help="The cluster's dashboard, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS"
)
Input = Annotated[str, typer.Option(metavar="URI", help="Rows: a file, folder or glob, local or s3://.")]
OutputPath = Annotated[
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
TopK = Annotated[int | None, typer.Option(min=1, metavar="K", help="How many of the best must be in order.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option(metavar="D", help="auto (default), float32, bfloat16 or float16.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Update = Annotated[
    bool,
    typer.Option("--update", help="Resume with a changed config or input; valid results are reused."),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Retry what failed in the run at the output; other results are reused."),
]
PreferencesUri = Annotated[
    str | None,
    typer.Option("--preferences", metavar="URI", help="Also write pairs of a better and a worse answer (DPO)."),
]
Pairs = Annotated[
    str | None, typer.Option(metavar="P", help="Which pairs: best-worst (default), best-random or all.")
]
Margin = Annotated[float | None, typer.Option(metavar="X", help="Least difference of scores in a pair.")]
PairColumns = Annotated[
    list[str],
    typer.Option("--pair-column", metavar="NAME", help="A further column of the rows in their pairs; repeatable."),
]
Metrics = Annotated[
    list[str],
    typer.Option(
        "--metric",
        metavar="M",
        help="A metric against references, with options as in rouge_l:stemmer=true; repeatable. Default: all that "
        "need no model.",
    ),
]
OrderBy = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        help="The metric that orders the systems, computed if --metric does not name it. Default: the first that "
        "differs between answers.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, is_eager=True, expose_value=False, help="Show tracebacks."),
]


RunInput = Annotated[str | None, typer.Option("--input", metavar="URI", help="Prompts; default: the config's.")]
RunOutput = Annotated[str | None, typer.Option("--output", metavar="URI", help="Default: the config's output.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N rows.")]


def bulk_settings(
    config: str,
    overrides: list[str],
    input: str | None,
    output: str | None,
    limit: int | None,
    preferences: tuple[str | None, str | None, float | None, list[str]],
    *,
    overwrite: bool,
    update: bool,
    retry_failed: bool = False,
) -> BlendConfig:
    """Settings of a bulk run: the config, overridden by options."""
    existing = {"overwrite": overwrite, "update": update, "retry_failed": retry_failed}
    settings = rows_settings(config, BlendConfig, overrides, input, output, limit, **existing)
    wanted = preference_settings(settings.preferences, *preferences)
    return settings if wanted is None else settings.model_copy(update={"preferences": wanted})


def rows_settings(
    config: str,
    schema: type[_SettingsT],
    overrides: list[str],
    input: str | None,
    output: str | None,
    limit: int | None,
    **existing: bool,
) -> _SettingsT:
    """Settings of a command over rows: the config, overridden by options.

    Args:
        config: YAML file.
        schema: Settings with `input`, `output` and `limit`.
        overrides: Values of `--set`.
        input: Value of `--input`.
        output: Value of `--output`.
        limit: Value of `--limit`.
        **existing: Options of `check_existing`.

    Raises:
        UsageError: There is no input or no output, or options exclude each other.
    """
    check_existing(**existing)
    settings = load(config, schema, overrides)
    given = {"input": input, "output": output, "limit": limit}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    for name in ("input", "output"):
        if getattr(settings, name) is None:
            raise UsageError(f"no {name}: give --{name} or set `{name}` in {config}")
    return settings


def check_existing(*, overwrite: bool, update: bool, retry_failed: bool) -> None:
    """Check options about an existing output.

    Raises:
        UsageError: It is to be both replaced and updated.
    """
    if overwrite and (update or retry_failed):
        option = "--update resumes" if update else "--retry-failed keeps what didn't fail"
        raise UsageError(f"--overwrite starts over, {option}: give one of them")


def preference_settings(
    configured: Preferences | None,
    output: str | None,
    pairs: str | None,
    margin: float | None,
    columns: list[str],
) -> Preferences | None:
    """Settings of the preference data that a command writes: the config's, overridden by options."""
    given = {"output": output, "pairs": pairs, "margin": margin, "columns": columns or None}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return configured
    if output is None and configured is None:
        raise UsageError("--pairs, --margin and --pair-column are options of --preferences: give it too")
    return settings_of(Preferences, **{**(configured.model_dump() if configured else {}), **given})


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"blend {version('llm-blender-ray')}")
        except PackageNotFoundError as error:  # a source tree on the path, as in a job
            raise UsageError("this copy is not installed, so it has no version") from error
        raise typer.Exit


def program_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of `blend` itself, before a command."""


def settings_of(schema: type[_SettingsT], **values: object) -> _SettingsT:
    """Settings made of options.

    Raises:
        UsageError: The schema rejects a value.
    """
    try:
        return schema.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        mistakes = "; ".join(
            (f"--{_option(e['loc'])}: " if e["loc"] else "") + e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        )
        raise UsageError(mistakes) from error


def _option(path: tuple[int | str, ...]) -> str:
    """The option that sets a path of the settings."""
    if path[0] == "columns":
        return "pair-column"
    return str(next((key for key in reversed(path) if key in _RANKER_OPTIONS), path[-1])).replace("_", "-")


_RANKER_OPTIONS = ("kind", "strategy", "top_k", "dtype", "cache", "replicas")


def is_config(ranker: str) -> bool:
    """Whether `--ranker` names a config, and no model."""
    return ranker.endswith((".yaml", ".yml"))


def ranker_section(given: str, **options: object) -> RankerSection:
    """The ranker that `--ranker` names, with the other options, and what it may cost where that is a config."""
    options = {name: value for name, value in options.items() if value is not None}
    if is_config(given):
        overrides = [f"ranker.{name}={json.dumps(value)}" for name, value in options.items()]
        return load(given, RankerSection, overrides)
    return settings_of(RankerSection, ranker={"model": given, **options})


def ranker_settings(given: str, **options: object) -> RankerSettings:
    """Settings of the ranker that `--ranker` names, with the other options."""
    return ranker_section(given, **options).ranker
