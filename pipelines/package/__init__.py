"""LLM-Blender on Ray: many LLMs answer, PairRanker compares, GenFuser writes one better answer.

Example:
    >>> from llm_blender_ray import Blender
    >>> blender = Blender()
    >>> blender.loadranker("llm-blender/PairRM")
    >>> blender.rank(["What is 2 + 2?"], [["4", "5"]])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_blender_ray.configs.loading import ConfigError, load
    from llm_blender_ray.configs.schema import BlendConfig
    from llm_blender_ray.pipelines.llm_blender import Blender, BlenderConfig, GenFuserConfig, RankerConfig

__all__ = ["BlendConfig", "Blender", "BlenderConfig", "ConfigError", "GenFuserConfig", "RankerConfig", "load"]

_MODULES = {
    "BlendConfig": "configs.schema",
    "ConfigError": "configs.loading",
    "load": "configs.loading",
    "Blender": "pipelines.llm_blender",
    "BlenderConfig": "pipelines.llm_blender",
    "GenFuserConfig": "pipelines.llm_blender",
    "RankerConfig": "pipelines.llm_blender",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, and `blend --help` needs none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
