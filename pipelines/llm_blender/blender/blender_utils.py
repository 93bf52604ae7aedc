"""Module path of its helpers in the original: `llm_blender.blender.blender_utils`."""

from llm_blender_ray.pipelines.llm_blender.arguments import get_topk_candidates_from_ranks

__all__ = ["get_topk_candidates_from_ranks"]
