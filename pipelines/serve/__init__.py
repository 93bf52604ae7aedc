"""The online service: OpenAI's API over a blend's parts, on Ray Serve.

`serve deploy` and KubeRay's RayService import `llm_blender_ray.pipelines.serve:application`.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ray.serve import Application


class Arguments(BaseModel):
    """Arguments of the application (`args` in a Serve config file)."""

    model_config = ConfigDict(extra="forbid")

    config: str  # path of the YAML file, on the node that builds the application
    overrides: list[str] = Field(default_factory=list)  # like `--set a.b=value`


def application(arguments: Arguments) -> "Application":
    """Build the service of a config.

    Raises:
        ConfigError: The config is invalid.
        PlanError: The cluster cannot hold it.
    """
    from llm_blender_ray.cluster.plan import place_together
    from llm_blender_ray.cluster.session import capacity
    from llm_blender_ray.configs.loading import load
    from llm_blender_ray.configs.online import online
    from llm_blender_ray.configs.schema import BlendConfig
    from llm_blender_ray.pipelines.serve.deployments import build

    config = load(arguments.config, BlendConfig, arguments.overrides)
    config = online(config)
    return build(config, place_together(config, capacity(config.ray)))
