"""The original's module path of `Blender`: `llm_blender.blender`."""

from llm_blender_ray.pipelines.llm_blender.blender.blender import Blender

__all__ = ["Blender"]
