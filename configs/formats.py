"""Registry of file formats of rows, by the ending of their files without the dot."""

from typing import Annotated, Any

from pydantic import AfterValidator

from llm_blender_ray.configs.registry import Registry

_FORMATS = "llm_blender_ray.pipelines.rows.formats"
FORMATS: Registry[Any] = Registry(  # subclasses of `pipelines.rows.formats.base.Format`
    "file format",
    "llm_blender_ray.formats",
    {
        "jsonl": f"{_FORMATS}.json_text:JsonLines",
        "ndjson": f"{_FORMATS}.json_text:JsonLines",
        "json": f"{_FORMATS}.json_text:JsonList",
        "parquet": f"{_FORMATS}.columnar:Parquet",
        "arrow": f"{_FORMATS}.columnar:Arrow",
        "csv": f"{_FORMATS}.delimited:Csv",
        "tsv": f"{_FORMATS}.delimited:Tsv",
    },
)


FormatName = Annotated[str, AfterValidator(FORMATS.check)]
