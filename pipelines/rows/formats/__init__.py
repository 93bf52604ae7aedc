"""File formats of rows, by ending. A new one is a module here and its class in `FORMATS`."""

from pathlib import PurePosixPath

from llm_blender_ray.pipelines.rows.compression import ending_of
from llm_blender_ray.pipelines.rows.formats.base import Format
from llm_blender_ray.pipelines.rows.formats.columnar import Arrow, Parquet
from llm_blender_ray.pipelines.rows.formats.delimited import Csv, Tsv
from llm_blender_ray.pipelines.rows.formats.json_text import JsonLines, JsonList

FORMATS: dict[str, Format] = {
    ending: one for one in (JsonLines(), JsonList(), Parquet(), Arrow(), Csv(), Tsv()) for ending in one.endings
}


def kind(uri: str) -> str | None:
    """The ending of a file of rows, a key of `FORMATS` (without `.gz` or the like); None for any other file."""
    name = PurePosixPath(uri).name.lower()
    packed = ending_of(name)
    name = name.removesuffix(packed or "")
    ending = next((ending for ending in FORMATS if name.endswith(ending) and name != ending), None)
    return None if packed and ending and not FORMATS[ending].compressible else ending
