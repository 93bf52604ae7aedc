"""Training rows and pairs in Arrow files, read memory-mapped: a training set takes disk space, not memory.

Every process of a training reads the same files in the same order, so an index means the same example everywhere.
"""

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

from llm_blender_ray.actors.records import MESSAGE_TYPE, Prompt
from llm_blender_ray.pipelines.rows.uris import replacing
from llm_blender_ray.pipelines.train.pairs import TrainingPair
from llm_blender_ray.pipelines.train.rows import TrainingRow

_Record = TypeVar("_Record")

_ROWS = pa.schema(
    {
        "id": pa.string(),
        "instruction": pa.string(),
        "input": pa.string(),
        "messages": pa.list_(MESSAGE_TYPE),
        "texts": pa.list_(pa.string()),
        "metrics": pa.list_(pa.string()),  # a JSON object each
        "reference": pa.string(),
        "ranking": pa.list_(pa.int64()),
    }
)
_PAIRS = pa.schema(
    {
        "row": pa.int64(),
        "left": pa.int64(),
        "right": pa.int64(),
        "lead": pa.list_(pa.float64()),
        "weight": pa.float64(),
    }
)
_AT_ONCE = {_ROWS: 256, _PAIRS: 4096}  # records of a batch, which a writer holds


class StoredRecords(Sequence[_Record], Generic[_Record]):
    """Records of Arrow files as a sequence, each made on access."""

    def __init__(self, files: Sequence[Path], make: Callable[[dict[str, Any]], _Record]) -> None:
        """Map the files.

        Args:
            files: In the order of their records.
            make: Makes a record of its columns.
        """
        self._make = make
        readers = [pa.ipc.open_file(pa.memory_map(str(file))) for file in files]
        self._batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(len(batch) for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> _Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Record]: ...
    def __getitem__(self, index: int | slice) -> _Record | list[_Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        batch = bisect_right(self._ends, index)
        before = self._ends[batch - 1] if batch else 0
        (record,) = self._batches[batch].slice(index - before, 1).to_pylist()
        return self._make(record)

    def __iter__(self) -> Iterator[_Record]:
        for batch in self._batches:
            yield from map(self._make, batch.to_pylist())


def store_rows(rows: Iterable[TrainingRow], uri: str) -> int:
    """Write rows as they come; the number of rows."""
    return _store((_row_columns(row) for row in rows), _ROWS, uri)


def store_pairs(pairs: Iterable[TrainingPair], uri: str) -> int:
    """Write pairs as they come; the number of pairs."""
    return _store((_pair_columns(pair) for pair in pairs), _PAIRS, uri)


def stored_rows(files: Sequence[Path]) -> StoredRecords[TrainingRow]:
    """Rows that `store_rows` wrote."""
    return StoredRecords(files, _row)


def stored_pairs(file: Path) -> StoredRecords[TrainingPair]:
    """Pairs that `store_pairs` wrote."""
    return StoredRecords([file], _pair)


def _store(records: Iterable[dict[str, Any]], schema: pa.Schema, uri: str) -> int:
    """Write one file, which gets its name when it is complete."""
    left, count = iter(records), 0
    with replacing(uri) as file, pa.ipc.new_file(file, schema) as writer:
        while chunk := list(itertools.islice(left, _AT_ONCE[schema])):
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count


def _row_columns(row: TrainingRow) -> dict[str, Any]:
    return {
        "id": row.prompt.id,
        "instruction": row.prompt.instruction,
        "input": row.prompt.input,
        "messages": row.prompt.messages,
        "texts": row.texts,
        "metrics": [json.dumps(dict(one)) for one in row.metrics],
        "reference": row.reference,
        "ranking": row.ranking,
    }


def _row(columns: dict[str, Any]) -> TrainingRow:
    messages, ranking = columns["messages"], columns["ranking"]
    return TrainingRow(
        prompt=Prompt(
            id=columns["id"],
            instruction=columns["instruction"],
            input=columns["input"],
            messages=None if messages is None else tuple(messages),
        ),
        texts=tuple(columns["texts"]),
        metrics=tuple(map(json.loads, columns["metrics"])),
        reference=columns["reference"],
        ranking=None if ranking is None else tuple(ranking),
    )


def _pair_columns(pair: TrainingPair) -> dict[str, Any]:
    return {
        "row": pair.row,
        "left": pair.left,
        "right": pair.right,
        "lead": pair.lead,
        "weight": pair.weight,
    }


def _pair(columns: dict[str, Any]) -> TrainingPair:
    return TrainingPair(**{**columns, "lead": tuple(columns["lead"])})
