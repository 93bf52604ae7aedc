"""Manifests of bulk runs with given stages."""

from datetime import UTC, datetime
from typing import Any

from llm_blender_ray.pipelines.bulk.manifest import InputRecord, Manifest, OutputRecord, StageRecord


def manifest_of_stages(*stages: StageRecord, rows: int, bad: dict[str, int] | None = None, **more: Any) -> Manifest:
    """A manifest of `rows` rows; `bad`: those of them that cannot be used, by the kind of their error."""
    now = datetime.now(UTC)
    return Manifest(
        command="run",
        started=now,
        finished=now,
        sessions=1,
        config={},
        versions={},
        input=InputRecord(uri="i", rows=rows, bad=sum((bad or {}).values()), digest="", errors=bad or {}),
        output=OutputRecord(uri="o", rows=rows, errors=0, files=()),
        stages=stages,
        **{"errors": {}, **more},
    )
