"""Checkpoint store of a bulk run (`OUTPUT/.blend`): input blocks, per-stage results, manifest.

    rows/FINGERPRINT/00000-000012.parquet   the input, cut into blocks
    index.parquet                           the blocks: file, rows, digests; written after all of them
    results/generate-alder-3f2a91c04d/8c1f...-01ab....parquet  one stage's result of one block
    replies/judge-gpt-77c0.../8c1f...-01ab.../0-9d2e....json   one reply of a judge, while its block has no result
    run.json                                settings at the start of the run
    manifest.json                           record of the run; written when the output is complete

A result's folder is named by everything that decides it (the stage's settings, and those of the stages before), its
file by the block's content and its rows' ids. So a result exists or not, independent of who made it and when: a
killed run, a restarted actor, a twelfth LLM or a longer input compute only what is missing. Files appear whole
(`storage.put`), and every file has a checksum (`checksums`): a damaged one counts as missing.

`--retry-failed` replaces a result by one in which the failed rows are run again; others keep their values. Each
result has the number of the attempt that made it, and `run.json` that of the current one (see `retry`).
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.identity import settings_digest
from llm_blender_ray.pipelines.bulk.checksums import DamagedError, opened, sealed
from llm_blender_ray.pipelines.rows.columns import deserialize_type, serialize_type
from llm_blender_ray.pipelines.rows.storage import get, names, put, remove
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local, translate_errors

RECORD, INDEX, MANIFEST, BALANCES = "run.json", "index.parquet", "manifest.json", "budget.json"
# Version of the layout of work folders; raise it with any change. 1 had no checksums, 2 no code versions in keys.
FORMAT = 3
_META = b"blend"
_READ_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the input that travel together.

    Attributes:
        bad: Rows with an error of their own.
        digest: Of what stages read of the rows.
        content: Of all their content.
        ids: Of their ids.
    """

    file: str
    rows: int
    bad: int
    digest: str
    content: str
    ids: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """Blocks of the whole input.

    Attributes:
        fingerprint: Of the input's files.
        seen: See `columns.inspect_columns`.
    """

    blocks: tuple[Block, ...]
    fingerprint: str
    seen: pa.DataType

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(block.rows for block in self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each block's results: its digest, and what distinguishes it from blocks of equal content.

        That is its rows' ids and the number of such blocks before it: rows keep their results wherever they move.
        """
        before: Counter[tuple[str, str]] = Counter()
        found = []
        for block in self.blocks:
            found.append(f"{block.digest}-{settings_digest([block.ids, before[block.digest, block.ids]])}")
            before[block.digest, block.ids] += 1
        return tuple(found)

    @property
    def digest(self) -> str:
        """Digest of the content of all rows in order."""
        return settings_digest([block.content for block in self.blocks])


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a stage for one block: columns, and the account for the manifest."""

    table: pa.Table
    account: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """A work folder. It travels to every actor, so it is only its URI."""

    root: str

    def run(self) -> dict[str, Any] | None:
        """Settings at the start of the run; None if they are missing or damaged."""
        data = self._get(RECORD)
        return None if data is None else json.loads(data)

    def save_run(self, run: Mapping[str, Any]) -> None:
        """Store the settings at the start of the run."""
        self._put(RECORD, json.dumps({"format": FORMAT, **run}, indent=2).encode())

    def format(self) -> int | None:
        """Version of the work folder's layout; None if its record is missing or damaged."""
        try:
            record = json.loads(get(f"{self.root}/{RECORD}") or b"")
        except ValueError:
            return None
        if isinstance(record, dict) and "identity" in record and not {"format", "blake2b"} & set(record):
            return 1  # that version had neither
        whole = self.run()
        return None if whole is None else int(whole["format"])

    def manifest(self) -> bytes | None:
        """Manifest of the finished run; None if it is not finished, or the manifest is damaged."""
        return self._get(MANIFEST)

    def save_manifest(self, text: str | None) -> None:
        """Store the manifest; None: the output is not complete (any more)."""
        if text is None:
            remove(f"{self.root}/{MANIFEST}")
        else:
            self._put(MANIFEST, text.encode())

    def balances(self) -> dict[str, int]:
        """What the run has spent and reserved, in billionths of a dollar, by account.

        Raises:
            BlendError: The record of it is damaged.
        """
        if self.damaged((BALANCES,)):
            raise BlendError(
                f"{self.root}/{BALANCES}: damaged, so what was spent is unknown; remove it to count from zero"
            )
        data = self._get(BALANCES)
        found: dict[str, int] = {} if data is None else json.loads(data)["nano_usd"]
        return found

    def save_balances(self, balances: Mapping[str, int]) -> None:
        """Store what the run has spent and reserved."""
        self._put(BALANCES, json.dumps({"nano_usd": dict(balances)}, indent=2).encode())

    def index(self) -> Index | None:
        """Blocks of the input; None if it was not read completely, or the index is damaged."""
        data = self._get(INDEX)
        if data is None:
            return None
        table, meta = _read(data)
        seen = deserialize_type(bytes.fromhex(meta["seen"]))
        return Index(tuple(Block(**row) for row in table.to_pylist()), meta["fingerprint"], seen)

    def save_index(self, index: Index) -> None:
        """Store the blocks of the input."""
        table = pa.Table.from_pylist([asdict(block) for block in index.blocks], schema=_INDEX_SCHEMA)
        meta = {"fingerprint": index.fingerprint, "seen": serialize_type(index.seen).hex()}
        self._put(INDEX, _written(table, meta))

    def rows(self, fingerprint: str, block: str) -> pa.Table:
        """Rows of one block.

        Raises:
            DamagedError: They are missing or damaged.
        """
        name = _rows(fingerprint, block)
        data = self._get(name)
        if data is None:
            raise DamagedError(f"{self.root}/{name}: gone or damaged")
        return _read(data)[0]

    def save_rows(self, fingerprint: str, block: str, table: pa.Table) -> None:
        """Store one block of the input."""
        self._put(_rows(fingerprint, block), _written(table, {}))

    def keep_rows(self, fingerprint: str) -> None:
        """Remove the rows of other inputs than this one."""
        for name in names(f"{self.root}/rows") - {fingerprint}:
            remove(f"{self.root}/rows/{name}")

    def lost_rows(self, index: Index) -> list[str]:
        """Names of the input's blocks that are missing or damaged."""
        expected = {_rows(index.fingerprint, block.file) for block in index.blocks}
        there = {f"rows/{index.fingerprint}/{name}" for name in names(f"{self.root}/rows/{index.fingerprint}")}
        return sorted([*(expected - there), *self.damaged(expected & there)])

    def stages(self) -> set[str]:
        """Folders of results."""
        return names(f"{self.root}/results")

    def done(self, stage: str) -> set[str]:
        """Names of the blocks with a result of a stage."""
        return {PurePosixPath(name).stem for name in names(f"{self.root}/results/{stage}")}

    def result(self, stage: str, digest: str) -> Result | None:
        """Result of a stage for a block; None if it is missing or damaged."""
        data = self._get(_result(stage, digest))
        return None if data is None else Result(*_read(data))

    def accounts(self, stage: str, blocks: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Accounts of a stage's results by block, without those that are missing or damaged."""

        def account(block: str) -> dict[str, Any] | None:
            data = self._get(_result(stage, block))
            return None if data is None else json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[_META])

        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            blocks = list(blocks)
            found = zip(blocks, pool.map(account, blocks), strict=True)
            return {block: one for block, one in found if one is not None}

    def save_result(self, stage: str, digest: str, result: Result) -> None:
        """Store a stage's result of a block."""
        self._put(_result(stage, digest), _written(result.table, result.account))

    def forget_result(self, stage: str, digest: str) -> None:
        """Remove a stage's result of a block."""
        remove(f"{self.root}/{_result(stage, digest)}")

    def save_reply(self, stage: str, block: str, attempt: int, key: str, reply: Mapping[str, Any]) -> None:
        """Store one reply of a stage's LLM in a block that is not finished."""
        self._put(f"{_replies(stage, block)}/{attempt}-{key}.json", json.dumps(reply, indent=2).encode())

    def replies(self, stage: str, block: str, attempt: int) -> dict[str, dict[str, Any]]:
        """Replies that an unfinished attempt at a block has stored, by their keys; damaged ones are missing."""
        folder, mine = _replies(stage, block), f"{attempt}-"
        found = [name for name in names(f"{self.root}/{folder}") if name.startswith(mine)]
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            read = zip(found, pool.map(self._get, [f"{folder}/{name}" for name in found]), strict=True)
            return {PurePosixPath(name).stem.removeprefix(mine): json.loads(data) for name, data in read if data}

    def forget_replies(self, stage: str, block: str) -> None:
        """Remove the stored replies of a block that has its result."""
        remove(f"{self.root}/{_replies(stage, block)}")

    def damaged_results(self, stage: str) -> list[str]:
        """Names of blocks with a damaged result of a stage."""
        found = self.damaged(_result(stage, name) for name in self.done(stage))
        return [PurePosixPath(one).stem for one in found]

    def damaged(self, objects: Iterable[str] = (RECORD, INDEX, MANIFEST)) -> list[str]:
        """Existing objects that are damaged, sorted. All of each is read."""
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            objects = list(objects)
            return sorted(name for name, bad in zip(objects, pool.map(self._damaged, objects), strict=True) if bad)

    def _damaged(self, name: str) -> bool:
        data = get(f"{self.root}/{name}")
        try:
            return data is not None and not opened(data, name)
        except DamagedError:
            return True

    def _get(self, name: str) -> bytes | None:
        """Content of an object; None if it is missing or damaged."""
        data = get(f"{self.root}/{name}")
        try:
            return None if data is None else opened(data, name)
        except DamagedError:
            return None

    def _put(self, name: str, data: bytes) -> None:
        put(f"{self.root}/{name}", sealed(data, name))

    def make_private(self) -> None:
        """Restrict the work folder, on a disk, to this user."""
        fs, path = filesystem(self.root)
        if is_local(fs):
            with translate_errors(self.root, "make it"):
                Path(path).mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):  # another user's folder
                    Path(path).chmod(0o700)

    def clear(self) -> None:
        """Remove everything."""
        remove(self.root)


_INDEX_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("bad", pa.int64()),
        ("digest", pa.string()),
        ("content", pa.string()),
        ("ids", pa.string()),
    ]
)


def _rows(fingerprint: str, block: str) -> str:
    return f"rows/{fingerprint}/{block}.parquet"


def _replies(stage: str, block: str) -> str:
    return f"replies/{stage}/{block}"


def _result(stage: str, digest: str) -> str:
    return f"results/{stage}/{digest}.parquet"


def _written(table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_META: json.dumps(meta)}), sink)
    return sink.getvalue()


def _read(data: bytes) -> tuple[pa.Table, dict[str, Any]]:
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)  # a third of read_table's time, if small
    meta = json.loads(table.schema.metadata[_META])
    return table.replace_schema_metadata(None), meta
