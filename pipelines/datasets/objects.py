"""Objects of data files one by one: JSON lines, a JSON list, Parquet; memory holds one at a time, not the file."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.pipelines.rows.uris import kind, list_files, open_binary, translate_errors

_BATCH_ROWS = 1000


def read_objects(uri: str) -> Iterator[dict[str, Any] | None]:
    """Objects of the files of a URI, in the order of the files' paths.

    Args:
        uri: File, folder or glob of `.jsonl`, `.json` and `.parquet`, text also compressed.

    Yields:
        The object; None in place of a line or an item that is no JSON object.

    Raises:
        BlendError: A file can't be read to its end, or has another format.
    """
    for file in list_files(uri):
        with translate_errors(file, "read it"):
            match kind(file):
                case ".parquet":
                    yield from _of_parquet(file)
                case ".json" if _is_list(file):
                    yield from _of_list(file)
                case ".json" | ".jsonl" | ".ndjson":
                    yield from _of_lines(file)
                case ending:
                    raise BlendError(f"{file}: expected .jsonl, .json or .parquet, not {ending}")


def _of_parquet(file: str) -> Iterator[dict[str, Any] | None]:
    try:
        with open_binary(file) as source, pq.ParquetFile(source) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise BlendError(f"{file}: not a Parquet file: {one_line(error)}") from error


def _is_list(file: str) -> bool:
    with open_binary(file) as source:
        return source.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _of_list(file: str) -> Iterator[dict[str, Any] | None]:
    with open_binary(file) as source:
        if source.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            source.seek(0)
        try:
            for item in ijson.items(source, "item", use_float=True):
                yield item if isinstance(item, dict) else None
        except ijson.JSONError as error:
            raise BlendError(f"{file}: broken JSON list, perhaps half a download: {one_line(error)}") from error


def _of_lines(file: str) -> Iterator[dict[str, Any] | None]:
    with open_binary(file) as source:
        for number, line in enumerate(source):
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None
