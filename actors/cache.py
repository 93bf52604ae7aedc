"""Cache of comparisons, so that a later run over the same rows does not repeat them.

One SQLite file, which all processes of a node may share: keyed by scorer, prompt and both answers, so that it
serves any strategy, and rows that have got more candidates since. Nodes that share no disk have a file each. Every
entry has a checksum: one with a flipped bit is as good as missing.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.records import Matchup, digest

LOOKUP_BATCH = 500  # older SQLite takes at most 999 parameters
WAIT_S = 60.0  # for another process that is writing


class CacheError(BlendError):
    """The cache's file can't be used."""


class ComparisonCache:
    """Scores of one scorer's matchups, kept in a file."""

    def __init__(self, file: str | Path, identity: str) -> None:
        """Open a cache file, or create it.

        Args:
            file: Path of the file.
            identity: Of the scorer (`Traits.identity`).

        Raises:
            CacheError: The file can't be used.
        """
        self._file = Path(file)
        self._identity = identity
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cache {self._file}: {one_line(error)}") from error
        with self._open() as database:
            _let_readers_pass_writers(database)
            database.execute(
                "CREATE TABLE IF NOT EXISTS sealed_comparisons "
                "(matchup BLOB PRIMARY KEY, score REAL NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID"
            )

    def get(self, matchups: Sequence[Matchup]) -> dict[int, float]:
        """The scores that are known, by their matchup's place in `matchups`.

        Raises:
            CacheError: The cache file can't be used.
        """
        places: dict[bytes, list[int]] = {}
        for i, matchup in enumerate(matchups):
            places.setdefault(self._key(matchup), []).append(i)
        keys = list(places)
        found: dict[int, float] = {}
        with self._open() as database:
            for start in range(0, len(keys), LOOKUP_BATCH):
                some = keys[start : start + LOOKUP_BATCH]
                marks = ",".join("?" * len(some))
                query = f"SELECT matchup, score, seal FROM sealed_comparisons WHERE matchup IN ({marks})"
                for key, score, seal in database.execute(query, some):
                    if isinstance(score, float) and seal == _seal(key, score):
                        found.update(dict.fromkeys(places[key], score))
        return found

    def put(self, scores: Iterable[tuple[Matchup, float]]) -> None:
        """Keep these.

        Raises:
            CacheError: The cache file can't be used.
        """
        rows = [(key, score, _seal(key, score)) for matchup, score in scores for key in [self._key(matchup)]]
        if rows:
            with self._open() as database:
                database.executemany("INSERT OR REPLACE INTO sealed_comparisons VALUES (?, ?, ?)", rows)

    def _key(self, matchup: Matchup) -> bytes:
        return digest(matchup.prompt, self._identity, matchup.left, matchup.right)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block, which is one transaction."""
        try:
            with closing(sqlite3.connect(self._file, timeout=WAIT_S)) as database, database:
                yield database
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a message about damaged names
            raise CacheError(f"cache {self._file}: {one_line(error)}; remove the file or name another") from error


def _let_readers_pass_writers(database: sqlite3.Connection) -> None:
    """Set WAL mode, unless another process that is opening the file prevents it: that process sets it."""
    try:
        database.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise


def _seal(key: bytes, score: float) -> bytes:
    plus_zero = score + 0.0  # SQLite doesn't keep the sign of -0.0
    return hashlib.blake2b(key + struct.pack("<d", plus_zero), digest_size=8).digest()
