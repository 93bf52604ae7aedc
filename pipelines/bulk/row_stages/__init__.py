"""Stages with one result for each row, by their kind."""

from collections.abc import Mapping

from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.bulk.row_stages.base import RowStage
from llm_blender_ray.pipelines.bulk.row_stages.fuse import FuseRows
from llm_blender_ray.pipelines.bulk.row_stages.judge import JudgeRows
from llm_blender_ray.pipelines.bulk.row_stages.rank import RankRows
from llm_blender_ray.pipelines.bulk.row_stages.score import ScoreRows

ROW_STAGES: Mapping[Stage, RowStage] = {
    "rank": RankRows(),
    "fuse": FuseRows(),
    "judge": JudgeRows(),
    "score": ScoreRows(),
}
