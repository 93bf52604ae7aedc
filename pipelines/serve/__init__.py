"""The online service: OpenAI's API over a blend's parts, on Ray Serve.

`serve deploy` and KubeRay's RayService import `llm_blender_ray.pipelines.serve:application`.
"""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ray.serve import Application


class Arguments(BaseModel):
    """Arguments of the application (`args` in a Serve config file).

    Ray Serve updates an application whose arguments have changed. So the config itself is the argument to use; a
    file's name stays the same when the file changes; the gateways log that it has.

    Attributes:
        config: The config, or the path of its YAML file on the node that builds the application.
        overrides: As `--set a.b=value` has them.
        digest: SHA-256 of the file, in hexadecimal digits. A node that has another file doesn't build.
    """

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] | str
    overrides: list[str] = Field(default_factory=list)
    digest: str | None = None


def application(arguments: Arguments) -> "Application":
    """Build the service of a config.

    Raises:
        ConfigError: The config is invalid.
        PlanError: The cluster cannot hold it.
    """
    from llm_blender_ray.cluster.session import capacity
    from llm_blender_ray.configs.loading import load, load_mapping
    from llm_blender_ray.configs.online import online
    from llm_blender_ray.configs.schema import BlendConfig
    from llm_blender_ray.pipelines.serve.config_file import ConfigFile
    from llm_blender_ray.pipelines.serve.deployments import build

    file = None
    if isinstance(arguments.config, str):
        file = ConfigFile(arguments.config, arguments.digest)
        config = load(arguments.config, BlendConfig, arguments.overrides)
    else:
        config = load_mapping(arguments.config, BlendConfig, arguments.overrides, name="config")
    return build(online(config), capacity(config.ray), file=file)
