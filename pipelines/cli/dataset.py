"""Command `blend dataset mixinstruct`."""

from typing import Annotated

import typer

from llm_blender_ray.pipelines.cli.options import Debug, Overwrite, UsageError

dataset_app = typer.Typer(help="Build training data from published data sets.")


@dataset_app.callback()
def _of_commands() -> None:
    """Without it a single command would be `blend dataset`."""


@dataset_app.command("mixinstruct")
def mixinstruct_command(
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder of train, val and test, local or s3://.")],
    source: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=URI",
            help="A source and its files (.jsonl, .json, .parquet); repeatable. Names: gpt4all, dolly, "
            "alpaca_gpt4, sharegpt, and those of other packages.",
        ),
    ],
    format: Annotated[str, typer.Option(metavar="F", help="Format of the files: jsonl, parquet, ...")] = "jsonl",
    train: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Rows to train on; default: 100000.")
    ] = None,
    val: Annotated[int | None, typer.Option(min=0, metavar="N", help="Held-out rows; default: 5000.")] = None,
    test: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Test rows; default: 5000. Without any size, fewer rows are split alike."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all draws.")] = 42,
    tokenizer: Annotated[
        str, typer.Option(metavar="M", help="Folder or hub id; counts tokens. Default: the original's, LLaMA's.")
    ] = "chavinlo/alpaca-native",
    max_length: Annotated[
        int, typer.Option(min=12, metavar="N", help="Prompts and outputs have fewer tokens than N.")
    ] = 128,
    whole_words: Annotated[
        bool,
        typer.Option(
            "--whole-words", help="Find ShareGPT's banned phrases as words; else anywhere, as the original."
        ),
    ] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Build MixInstruct from its sources: filters, deduplication, splits. `blend run` adds the candidates."""
    from llm_blender_ray.configs.registry import RegistryError
    from llm_blender_ray.pipelines.datasets.lengths import token_lengths
    from llm_blender_ray.pipelines.datasets.mixinstruct import MixSettings, build_mixinstruct
    from llm_blender_ray.pipelines.datasets.selection import SplitSizes
    from llm_blender_ray.pipelines.datasets.sources import SOURCES
    from llm_blender_ray.pipelines.rows.formats import format_endings

    sources: dict[str, str] = {}
    for one in source:
        name, equals, uri = one.partition("=")
        if not equals or not uri:
            raise UsageError(f"--source: expected NAME=URI, got {one!r}")
        if name in sources:
            raise UsageError(f"--source {name}: given twice; a folder or glob has several files")
        try:
            sources[SOURCES.check(name)] = uri
        except RegistryError as error:
            raise UsageError(f"--source: {error}") from error
    if f".{format}" not in format_endings():
        raise UsageError(f"--format: expected one of {', '.join(format_endings())} without the dot, got {format!r}")
    settings = MixSettings(sources, SplitSizes(train, val, test), seed, max_length, whole_words)
    summary = build_mixinstruct(settings, output, f".{format}", token_lengths(tokenizer), overwrite=overwrite)
    for line in summary.lines():
        typer.echo(line, err=True)
