"""Commands `blend bench rank` and `blend bench pool`."""

from typing import Annotated

import typer

from llm_blender_ray.pipelines.cli.options import Debug, DtypeOption, Input, Kind, RankerOption, ranker_settings

bench_app = typer.Typer(help="Measure on this machine; JSON comes last.")


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
    settings = ranker_settings(ranker, kind=kind, dtype=dtype)
    strategies = [ranker_settings(ranker, kind=kind, strategy=one).strategy for one in strategy]

    from llm_blender_ray.pipelines.bench.rank import main as measure

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
    """Latency of one request on several ranker replicas, and on up to 64 simulated ones."""
    settings = ranker_settings(ranker, dtype=dtype)

    from llm_blender_ray.pipelines.bench.pool import main as measure

    measure(settings, input, replicas=replicas, limit=limit, simulated_s=simulated_s)
