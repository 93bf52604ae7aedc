"""Rows of files as a Ray Dataset: one read task per file, which streams (`pipelines.parsing`)."""

import functools
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.parsing import ROWS_PER_BLOCK, full_schema, native_schema, read_tables
from pipelines.uris import list_files


def read(uri: str, limit: int | None = None, rows_per_block: int = ROWS_PER_BLOCK) -> "ray.data.Dataset":
    """The rows of a file, folder or glob, in order, as columns of `rows.ROW_SCHEMA`.

    Columns of Parquet files that aren't ours come along in their own type; other unknown keys are JSON in
    `extra`. A bad row has `error` set. Raises BlendError when nothing is there or a file can't be opened.
    """
    files = list_files(uri)
    dataset = ray.data.read_datasource(
        RowsDatasource(files, native_schema(files), rows_per_block),
        override_num_blocks=len(files),  # otherwise Ray splits what few tasks read into 200 tiny blocks
    )
    dataset.context.execution_options.preserve_order = True  # its own copy; what follows has it too
    if limit is not None:
        dataset = dataset.limit(limit)
    # Ray glues what a task reads to blocks of 128 MiB; stages and checkpoints want few rows at a time.
    return dataset.repartition(target_num_rows_per_block=rows_per_block, strict=True)


class RowsDatasource(Datasource):
    """Files of rows. `native`: the columns that come along beside ours."""

    def __init__(self, files: list[str], native: pa.Schema, rows_per_block: int) -> None:
        super().__init__()
        self._files, self._native, self._rows_per_block = files, native, rows_per_block

    def get_name(self) -> str:
        """What Ray's progress bar calls the stage."""
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown, and not needed: the number of tasks is that of the files."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per file, in the files' order."""
        return [
            ReadTask(
                functools.partial(read_tables, file, self._native, self._rows_per_block),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=[file], exec_stats=None),
                schema=full_schema(self._native),
                per_task_row_limit=per_task_row_limit,
            )
            for file in self._files
        ]
