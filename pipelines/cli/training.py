"""Commands `blend train ranker` and `blend train fuser`."""

from typing import Annotated

import typer

from llm_blender_ray.configs.loading import load
from llm_blender_ray.pipelines.cli.options import AsJson, Config, Debug, Set
from llm_blender_ray.pipelines.cli.prepared import Prepared, works_on_cluster

Estimate = Annotated[
    bool, typer.Option("--estimate", help="Print the memory that the training needs, and train nothing.")
]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", min=0.1, help="GiB of a GPU, for --estimate. Default: this machine's, or 80."),
]

train_app = typer.Typer(help="Train a ranker or a fuser on your own rows.")


@train_app.command("ranker")
@works_on_cluster("train ranker")
def train_ranker(
    config: Config,
    set_: Set = [],  # noqa: B006 (typer copies it)
    estimate: Estimate = False,
    gpu_memory: GpuMemory = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Prepared:
    """Train a PairRanker on rows with scored candidates, votes or preferences."""
    from llm_blender_ray.configs.training import RankerTraining

    settings = load(config, RankerTraining, set_)

    def start() -> None:
        if estimate:
            from llm_blender_ray.pipelines.train.estimate import print_estimate

            print_estimate(settings, gpu_memory, as_json=as_json)
            return
        from llm_blender_ray.pipelines.train.ranker import run_ranker_training

        run_ranker_training(settings)

    return Prepared(start, settings)


@train_app.command("fuser")
@works_on_cluster("train fuser")
def train_fuser(
    config: Config,
    set_: Set = [],  # noqa: B006
    estimate: Estimate = False,
    gpu_memory: GpuMemory = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Prepared:
    """Train a fuser on rows with candidates and references."""
    from llm_blender_ray.configs.training import FuserTraining

    settings = load(config, FuserTraining, set_)

    def start() -> None:
        if estimate:
            from llm_blender_ray.pipelines.train.estimate import print_estimate

            print_estimate(settings, gpu_memory, as_json=as_json)
            return
        from llm_blender_ray.pipelines.train.fuser import run_fuser_training

        run_fuser_training(settings)

    return Prepared(start, settings)
