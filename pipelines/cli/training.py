"""Commands `blend train ranker` and `blend train fuser`."""

import typer

from llm_blender_ray.configs.loading import load
from llm_blender_ray.pipelines.cli.options import Config, Debug, Set
from llm_blender_ray.pipelines.cli.prepared import Prepared, works_on_cluster

train_app = typer.Typer(help="Train a ranker or a fuser on your own rows.")


@train_app.command("ranker")
@works_on_cluster("train ranker")
def train_ranker(
    config: Config,
    set_: Set = [],  # noqa: B006 (typer copies it)
    debug: Debug = False,
) -> Prepared:
    """Train a PairRanker on rows with scored candidates, votes or preferences."""
    from llm_blender_ray.configs.training import RankerTraining

    settings = load(config, RankerTraining, set_)

    def start() -> None:
        from llm_blender_ray.pipelines.train.ranker import run_ranker_training

        run_ranker_training(settings)

    return Prepared(start, settings)


@train_app.command("fuser")
@works_on_cluster("train fuser")
def train_fuser(
    config: Config,
    set_: Set = [],  # noqa: B006
    debug: Debug = False,
) -> Prepared:
    """Train a fuser on rows with candidates and references."""
    from llm_blender_ray.configs.training import FuserTraining

    settings = load(config, FuserTraining, set_)

    def start() -> None:
        from llm_blender_ray.pipelines.train.fuser import run_fuser_training

        run_fuser_training(settings)

    return Prepared(start, settings)
