"""Commands `blend campaign ...`: people compare the answers of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from llm_blender_ray.configs.extras import require
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings, PairChoice
from llm_blender_ray.pipelines.cli.options import AsJson, Debug, UsageError, settings_of

campaign_app = typer.Typer(help="Let people compare the answers of a run, blind, on a page of their own.")

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="The campaign's folder.")]
Url = Annotated[
    str, typer.Option(metavar="URL", help="Address of the page, as annotators reach it: their links begin with it.")
]
LOCAL_URL = "http://127.0.0.1:8000"


@campaign_app.command("create")
def create_command(
    uri: Annotated[list[str], typer.Argument(metavar="URI...", help="Finished runs, or rows with candidates.")],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="The campaign's folder; must have none.")],
    contestant: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A model, `blend` (the fused answer) or `ranker` (its choice); repeatable. Default: all models, "
            "and the blend.",
        ),
    ] = [],  # noqa: B006 (typer copies it)
    pairs: Annotated[
        PairChoice,
        typer.Option(
            metavar="P",
            help="design (default): --items pairs, every two contestants equally often; active: --items pairs, "
            "each the one that is most informative after the votes so far; all: every pair of every prompt.",
        ),
    ] = "design",
    items: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pairs to compare; default: one for each prompt.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, metavar="K", help="Annotators who compare each pair.")] = 1,
    gold: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Rows with right `judgements`: shown to every annotator, to measure them."
        ),
    ] = None,
    gold_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="One in N items is a gold one, on average.")
    ] = 10,
    annotator: Annotated[
        list[str], typer.Option(metavar="NAME", help="Make a key for an annotator; repeatable.")
    ] = [],  # noqa: B006
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Heading of the page.")] = None,
    instructions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text file with instructions for the annotators.")
    ] = None,
    criterion: Annotated[
        list[str], typer.Option(metavar="TEXT", help="What to attend to, a line of the instructions; repeatable.")
    ] = [],  # noqa: B006
    lease_minutes: Annotated[
        float, typer.Option(min=0.01, metavar="N", help="After so long an item that is not answered is free again.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the draws of prompts and sides.")] = 0,
    url: Url = LOCAL_URL,
    debug: Debug = False,
) -> None:
    """Make a campaign of the answers of finished runs."""
    if pairs == "all" and items is not None:
        raise UsageError("--items: `--pairs all` has every pair; leave one of them out")
    settings = settings_of(
        CampaignSettings,
        contestants=tuple(contestant),
        pairs=pairs,
        items=items,
        overlap=overlap,
        gold_every=gold_every,
        title=title,
        instructions=_text_of(instructions) if instructions else None,
        criteria=tuple(criterion),
        lease_s=lease_minutes * 60,
        seed=seed,
    )

    from llm_blender_ray.pipelines.campaign.creation import add_annotators, check_names, create_campaign

    check_names(annotator)
    made = create_campaign(uri, output, settings, gold)
    extent = f"{made.items} items of {made.prompts} prompts, {made.gold} gold items"
    typer.echo(f"campaign at {output}: {extent}; contestants: {', '.join(made.contestants)}", err=True)
    _show_keys(add_annotators(output, annotator), url)


@campaign_app.command("invite")
def invite_command(
    folder: Folder,
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of annotators.")],
    url: Url = LOCAL_URL,
    debug: Debug = False,
) -> None:
    """Make a key for each annotator; it is shown once. Remove a line of FOLDER/keys to shut one out."""
    from llm_blender_ray.pipelines.campaign.creation import add_annotators
    from llm_blender_ray.pipelines.campaign.store import CampaignStore

    CampaignStore(folder)
    _show_keys(add_annotators(folder, name), url)


@campaign_app.command("serve")
def serve_command(
    folder: Folder,
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="P", help="Port to listen on; 0: a free one.")
    ] = 8000,
    debug: Debug = False,
) -> None:
    """Serve the page to the annotators, until it is interrupted."""
    require("fastapi", "uvicorn", "prometheus_client")

    from llm_blender_ray.pipelines.campaign.command import serve_campaign

    serve_campaign(folder, host, port)


@campaign_app.command("status")
def status_command(folder: Folder, as_json: AsJson = False, debug: Debug = False) -> None:
    """How far the campaign and each annotator are."""
    from llm_blender_ray.pipelines.campaign.status import campaign_status

    status = campaign_status(folder)
    if as_json:
        typer.echo(json.dumps(status.report(), indent=2))
    else:
        Console().print(status.render())


@campaign_app.command("results")
def results_command(
    folder: Folder,
    aggregate: Annotated[
        Literal["votes", "majority", "dawid-skene"],
        typer.Option(
            metavar="A",
            help="The leaderboard is of all votes (default), or of one for each item: of the `majority`, or by "
            "`dawid-skene`, where annotators who are often wrong count less.",
        ),
    ] = "votes",
    with_: Annotated[
        list[str],
        typer.Option("--with", metavar="URI", help="Also count votes of these rows, as of the online page."),
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(metavar="N", help="Of the bootstraps.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Leaderboard by the votes, agreement between annotators, and how reliable each one is."""
    require("scipy", "statsmodels")

    from llm_blender_ray.pipelines.campaign.results import campaign_results, render_results

    report = campaign_results(folder, aggregate, with_, seed)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        Console().print(render_results(report))


@campaign_app.command("export")
def export_command(
    folder: Folder,
    output: Annotated[str, typer.Option(metavar="FILE", help="A .jsonl or .json file.")],
    shape: Annotated[
        Literal["rows", "trl", "arena", "argilla"],
        typer.Option(
            metavar="S",
            help="rows (default): the rows with their `judgements`; trl: preferences; arena: a battle for each "
            "vote; argilla: records.",
        ),
    ] = "rows",
    debug: Debug = False,
) -> None:
    """Write the votes to a file."""
    from llm_blender_ray.pipelines.campaign.exports import export_campaign

    typer.echo(f"{output}: {export_campaign(folder, shape, output)} records", err=True)


@campaign_app.command("import")
def import_command(
    folder: Folder,
    uri: Annotated[str, typer.Argument(metavar="URI", help="Rows with `judgements`, or battles of an arena.")],
    debug: Debug = False,
) -> None:
    """Add votes of a file; the same file once more adds nothing."""
    from llm_blender_ray.pipelines.campaign.imports import import_votes

    count = import_votes(folder, uri)
    typer.echo(
        f"{count.added} votes added, {count.known} were there before, {count.unknown} are on answers that the "
        "campaign does not have",
        err=True,
    )


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(f"--instructions {file}: {why}") from error


def _show_keys(keys: Mapping[str, str], url: str) -> None:
    """Print each annotator's link, which has the key in its fragment: no server and no log gets it."""
    if keys:
        typer.echo("links (keep them, the keys are nowhere else):")
    for name, key in keys.items():
        typer.echo(f"  {name}: {url.rstrip('/')}/#{key}")
