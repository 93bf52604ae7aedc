"""`blend submit`: a command as a job on a Ray cluster.

`blend submit CONFIG ...` is `blend submit run CONFIG ...`. The command line is checked here by the command itself
(`prepared`), then sent with paths as the cluster has them.
"""

import inspect
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from llm_blender_ray.cluster.job_paths import CONFIG, JobPaths, config_on_cluster
from llm_blender_ray.pipelines.cli.options import DASHBOARD, UsageError, is_config
from llm_blender_ray.pipelines.cli.prepared import CLUSTER_COMMANDS, Prepared
from llm_blender_ray.pipelines.interruption import left_to_others

DO_THE_SAME_RUN = "Do the same run as a job on a Ray cluster; submitted again, it resumes where it was stopped."

# options whose values are paths, or may be, in all commands that work on a cluster
URI_OPTIONS = ("input", "output", "uri", "preferences", "cache")
MODEL_OPTIONS = ("ranker", "fuser")
METRIC_OPTIONS = ("metric", "order_by")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = {  # options of every `blend submit`
    "context": typer.Context,
    "address": Annotated[str, DASHBOARD],
    "wait": Annotated[bool, typer.Option("--wait", help="Print its log, and exit with its exit code.")],
    "env": Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A variable of this environment for the job, never shown; repeatable."),
    ],
}
_DEFAULTS = {"wait": False, "env": []}


def other_commands() -> str:
    """Line of `blend submit --help` about the other commands that can be submitted."""
    others = ", ".join(sorted(CLUSTER_COMMANDS.keys() - {"run"}))
    return (
        f"Other commands, with their own arguments and options: {others}; as in blend submit rank --address URL "
        "--ranker M --input URI --output URI."
    )


class SubmitCommand(TyperCommand):
    """`blend submit CONFIG`, or `blend submit COMMAND` if the first argument is one of `CLUSTER_COMMANDS`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the command line by the parser of the command that it names."""
        before, line = self._split(info_name, args, parent)
        commands = _job_commands().commands
        if line and (command := commands.get(line[0])):
            words = 2 if isinstance(command, TyperGroup) else 1
            return command.make_context(
                f"{info_name} {line[0]}", [*line[1:words], *before, *line[words:]], parent, **extra
            )
        program = parent.command if parent else None
        if line and isinstance(program, TyperGroup) and line[0] in program.commands and not Path(line[0]).exists():
            names = sorted({words.split()[0] for words in CLUSTER_COMMANDS})
            raise UsageError(f"blend {line[0]} doesn't run as a job; these do: {', '.join(names)}")
        return super().make_context(info_name, args, parent, **extra)

    def _split(self, info_name: str | None, args: list[str], parent: Any) -> tuple[list[str], list[str]]:
        """The options before the first argument, and what starts with it."""
        parser = self.make_parser(self.context_class(self, info_name=info_name, parent=parent))
        parser.allow_interspersed_args = False
        options, rest, _ = parser.parse_args(list(args))
        first = options.get("config")
        line = [first, *rest] if isinstance(first, str) else []
        return [one for one in args[: len(args) - len(line)] if one != "--"], line


def _job_commands() -> TyperGroup:
    """Every command that can be submitted, with the options of `blend submit`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    groups: dict[str, typer.Typer] = {}
    for words in CLUSTER_COMMANDS:
        group, _, name = words.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(rich_markup_mode=None)
            app.add_typer(groups[group], name=group, help=f"Do blend {group} as a job on a Ray cluster.")
        (groups[group] if group else app).command(name)(job_command(words))
    made = typer.main.get_command(app)
    assert isinstance(made, TyperGroup)
    return made


def job_command(words: str, description: str | None = None) -> Callable[..., None]:
    """Make the command that submits another one: it takes the same options, and those of `blend submit`.

    Args:
        words: The other command, of `CLUSTER_COMMANDS`.
        description: For its help; None: the other one's.
    """
    prepare = CLUSTER_COMMANDS[words]

    def submit(*, context: typer.Context, address: str, wait: bool, env: list[str], **options: Any) -> None:
        variables = read_variables(env)
        prepared = prepare(**options)
        with left_to_others(signal.SIGINT):  # it asks whether to stop the job
            code = _submit(words, context, prepared, address, variables, wait=wait)
        raise typer.Exit(code)

    theirs = inspect.signature(prepare).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = [
        inspect.Parameter(name, keyword, default=_DEFAULTS.get(name, inspect.Parameter.empty), annotation=kind)
        for name, kind in _OURS.items()
    ]
    both = [*ours, *(one.replace(kind=keyword) for one in theirs)]
    submit.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    submit.__annotations__ = {one.name: one.annotation for one in both}
    submit.__doc__ = description or prepare.__doc__
    return submit


def read_variables(names: Sequence[str]) -> dict[str, str]:
    """The variables that `--env` names.

    Raises:
        UsageError: One is not set, is none that a job can be given, or its value stands on the command line.
    """
    found: dict[str, str] = {}
    for given in names:
        name, equals, _ = given.partition("=")
        if equals or not _NAME.fullmatch(name):
            raise UsageError(f"--env {name}: expected the name of an environment variable alone")
        if name.startswith("RAY_"):
            raise UsageError(f"--env {name}: the cluster has its own")
        if name not in os.environ:
            raise UsageError(f"--env {name}: not set in this environment")
        found[name] = os.environ[name]
    return found


def _submit(
    words: str,
    context: typer.Context,
    prepared: Prepared,
    address: str,
    variables: Mapping[str, str],
    *,
    wait: bool,
) -> int:
    from llm_blender_ray.cluster.job_client import connect
    from llm_blender_ray.cluster.submission import submit_command
    from llm_blender_ray.configs.environment import variables as needed_variables

    needed = [name for name in needed_variables(prepared.config) if name not in variables]
    if needed:
        typer.echo(f"blend: the cluster's machines need these environment variables: {', '.join(needed)}", err=True)
    client = connect(address)
    paths = JobPaths(client.runs_here())
    config = config_on_cluster(prepared.config, paths.here) if prepared.config else None
    arguments = job_arguments(context, paths)
    given = context.params
    output = paths.uri("output", given["output"]) if given.get("output") else getattr(config, "output", None)
    return submit_command(
        client,
        [*words.split(), *arguments],
        config,
        paths,
        environment=variables,
        metadata={"command": words, "config": given.get("config", ""), "output": output or ""},
        wait=wait,
    )


def job_arguments(context: typer.Context, paths: JobPaths) -> list[str]:
    """Arguments and options of a parsed command line, as the job has them.

    Those with the value that they have by default are left out, and so is `--set`: the uploaded config has it.

    Raises:
        ConfigError: A path depends on a folder of this machine, and the job runs on another.
    """
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)  # --help and --debug have none
        if value is None or name in (*_OURS, "set_") or value == parameter.get_default(context):
            continue
        values = [_on_cluster(name, str(one), paths) for one in (value if isinstance(value, list) else [value])]
        if parameter.param_type_name == "argument":
            arguments += values
        elif value is True:
            options.append(parameter.opts[0])
        else:
            options += [part for one in values for part in (parameter.opts[0], one)]
    return [*arguments, *options]


def _on_cluster(name: str, value: str, paths: JobPaths) -> str:
    """A value on the command line, as the job has it."""
    if name == "config" or (name == "ranker" and is_config(value)):
        return CONFIG
    if name in URI_OPTIONS:
        return paths.uri(name, value)
    if name in MODEL_OPTIONS:
        return paths.model(name, value)
    return paths.metric(value) if name in METRIC_OPTIONS else value
