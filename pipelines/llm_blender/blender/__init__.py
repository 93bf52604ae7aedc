"""Module path of `Blender` in the original: `llm_blender.blender`."""

from llm_blender_ray.pipelines.llm_blender.blender.blender import Blender

__all__ = ["Blender"]
