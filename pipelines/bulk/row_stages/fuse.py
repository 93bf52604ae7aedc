"""The fuser's stage: one text from the best candidates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from llm_blender_ray.actors.records import RESULT_COLUMNS, Blend
from llm_blender_ray.actors.stages import FUSING_FAILED, Fuse
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.bulk.row_stages.base import ANSWERS, RowStage, current_places


class FuseRows(RowStage):
    """See `actors.stages.Fuse`."""

    stage: ClassVar[Any] = Fuse
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        **{name: RESULT_COLUMNS[name] for name in ("fused", "fused_from")},
        "error": pa.string(),
    }
    result: ClassVar[str] = "fused"
    error_prefixes: ClassVar[tuple[str, ...]] = (FUSING_FAILED,)
    failure_verb: ClassVar[str] = "nothing fused of"
    made: ClassVar[str] = "fusion"

    def values(self, blend: Blend) -> dict[str, Any]:
        """See base class."""
        fused_from = blend.fused_from if blend.fused is not None else None
        return {"fused": blend.fused, "fused_from": fused_from, "error": blend.error}

    def restored(self, blend: Blend, row: Mapping[str, Any], usage: TokenUsage | None) -> Blend:
        """See base class."""
        return replace(blend, fused=row["fused"], error=row["error"], fusing_usage=usage)

    def usage(self, blend: Blend) -> TokenUsage | None:
        """See base class."""
        return blend.fusing_usage

    def moved(self, blend: Blend, was: Mapping[str, Any]) -> dict[str, Any] | None:
        """See base class."""
        now = current_places(blend, was[ANSWERS])
        if was["fused"] is None or any(now[i] is None for i in was["fused_from"]):
            return None
        return {"fused": was["fused"], "fused_from": [now[i] for i in was["fused_from"]], "error": None}
