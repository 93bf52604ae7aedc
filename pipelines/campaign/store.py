"""Store of a campaign: one SQLite file with its prompts, items, leases and events.

An acknowledged vote is on the disk (WAL, `synchronous=FULL`). Every change is one immediate transaction, so that
several servers, threads and commands may work on a campaign at once.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.pipelines.campaign.records import CampaignError, CastVote, NewItem, StoredItem
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.quality.judgements import Preferred

DATABASE = "campaign.sqlite3"
TRANSACTION_WAIT_S = 60.0  # for another transaction
_SCHEMA = Path(__file__).with_name("schema.sql")


class CampaignStore:
    """Campaign of a folder."""

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time) -> None:
        """Open a campaign.

        Args:
            folder: Its folder.
            clock: Seconds since 1970.

        Raises:
            CampaignError: There is none in the folder.
        """
        self.folder, self.clock = Path(folder), clock
        self._file = self.folder / DATABASE
        if not self._file.is_file():
            raise CampaignError(f"{folder}: no campaign is there; `blend campaign create` makes one")
        with self.reading() as database:
            (settings,) = database.execute("SELECT settings FROM campaign").fetchone()
        self.settings = CampaignSettings.model_validate_json(settings)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        settings: CampaignSettings,
        rows: Sequence[tuple[str, str]],
        items: Iterable[NewItem],
        clock: Callable[[], float] = time.time,
    ) -> "CampaignStore":
        """Make a campaign.

        Args:
            folder: Its folder; must have no campaign.
            settings: Its settings.
            rows: Id and JSON text of each prompt's row.
            items: In the order in which they are shown.
            clock: Seconds since 1970.

        Raises:
            CampaignError: There is one, or it can't be written.
        """
        file = Path(folder) / DATABASE
        incomplete = file.with_name(f".{DATABASE}.tmp")
        if file.exists():
            raise CampaignError(f"{folder}: a campaign is there already; give another --output")
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            incomplete.unlink(missing_ok=True)
            incomplete.touch(mode=0o600)  # it has prompts and answers
            with closing(sqlite3.connect(incomplete)) as database, database:
                database.execute("PRAGMA journal_mode = WAL")  # the file keeps it
                database.executescript(_SCHEMA.read_text(encoding="utf-8"))
                created = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
                database.execute("INSERT INTO campaign VALUES (?, ?)", (settings.model_dump_json(), created))
                database.executemany("INSERT INTO prompts (id, row) VALUES (?, ?)", rows)
                database.executemany(
                    "INSERT INTO items (prompt, first, second, first_name, second_name, gold, position) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        (
                            one.prompt + 1,
                            *map(json.dumps, one.sides),
                            *one.names,
                            one.gold,
                            at if one.is_open else None,
                        )
                        for at, one in enumerate(items)
                    ),
                )
            incomplete.rename(file)
        except (OSError, sqlite3.Error) as error:
            raise CampaignError(f"{folder}: can't make a campaign there: {one_line(error)}") from error
        return cls(folder, clock)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block, which sees one state.

        Raises:
            CampaignError: The file can't be read.
        """
        with self._connected() as database:
            database.execute("BEGIN")
            yield database

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block, which is one transaction: durable when it ends, or undone when it raises.

        Raises:
            CampaignError: The file can't be written.
        """
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            address = f"file:{quote(str(self._file.absolute()))}?mode=rw"
            connected = sqlite3.connect(address, uri=True, timeout=TRANSACTION_WAIT_S, isolation_level=None)
            with closing(connected) as database:
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
                yield database
        except sqlite3.Error as error:
            raise CampaignError(f"campaign {self.folder}: {one_line(error)}") from error

    def progress(self) -> tuple[int, int]:
        """Votes that the campaign needs: how many there are, and how many it needs in all."""
        with self.reading() as database:
            (votes,) = database.execute(
                "SELECT coalesce(sum(min(number, ?)), 0) FROM (SELECT count(*) AS number FROM votes "
                "JOIN items USING (item) WHERE gold IS NULL GROUP BY item)",
                (self.settings.overlap,),
            ).fetchone()
            return int(votes), items_of(database, self.settings) * self.settings.overlap

    def now(self) -> str:
        """The time in ISO 8601."""
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="seconds")

    def votes(self) -> Iterator[CastVote]:
        """Votes that hold, in the order in which they were cast."""
        with self.reading() as database:
            found = database.execute(
                "SELECT item, prompt, annotator, first_name, second_name, first, second, gold, swapped, preferred, "
                "comment, seconds, at FROM votes JOIN items USING (item) ORDER BY event"
            ).fetchall()
        for item, prompt, annotator, one, other, first, second, gold, swapped, *rest in found:
            sides = json.loads(first), json.loads(second)
            yield CastVote(item, prompt - 1, annotator, (one, other), sides, gold, bool(swapped), *rest)

    def skipped(self) -> dict[str, int]:
        """How many items each annotator has skipped, without those who have skipped none."""
        with self.reading() as database:
            query = "SELECT annotator, count(*) FROM answers WHERE kind = 'skip' GROUP BY annotator"
            return dict(database.execute(query))

    def items(self) -> list[StoredItem]:
        """All items, gold items and those that `pairs: active` may open included."""
        with self.reading() as database:
            found = database.execute(
                "SELECT item, prompt, id, first, second, first_name, second_name, gold "
                "FROM items JOIN prompts USING (prompt) ORDER BY item"
            ).fetchall()
        return [
            StoredItem(item, prompt - 1, id, (json.loads(first), json.loads(second)), (one, other), gold)
            for item, prompt, id, first, second, one, other, gold in found
        ]

    def gold_prompts(self) -> set[int]:
        """Prompts of gold items."""
        with self.reading() as database:
            found = database.execute("SELECT DISTINCT prompt FROM items WHERE gold IS NOT NULL")
            return {prompt - 1 for (prompt,) in found}

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the prompts, as the output of a run."""
        with self.reading() as database:
            return [json.loads(row) for (row,) in database.execute("SELECT row FROM prompts ORDER BY prompt")]


def add_event(
    database: sqlite3.Connection,
    at: str,
    annotator: str,
    item: int,
    kind: str,
    swapped: int,
    preferred: Preferred | None = None,
    comment: str | None = None,
    seconds: float | None = None,
    *,
    imported: bool = False,
) -> None:
    """Add an event (see `schema.sql`) within a transaction.

    Raises:
        sqlite3.IntegrityError: The annotator has answered the item before.
    """
    database.execute(
        "INSERT INTO events (at, annotator, item, round, swapped, kind, preferred, comment, seconds, imported) "
        "SELECT ?, ?, ?, count(*), ?, ?, ?, ?, ?, ? FROM events WHERE kind = 'undo' AND annotator = ? AND item = ?",
        (at, annotator, item, swapped, kind, preferred, comment, seconds, imported, annotator, item),
    )


def items_of(database: sqlite3.Connection, settings: CampaignSettings) -> int:
    """Items that the campaign shows in all, gold items aside."""
    query = "SELECT count(*), count(position), count(DISTINCT prompt) FROM items WHERE gold IS NULL"
    there, opened, prompts = database.execute(query).fetchone()
    return min(settings.items or prompts, there) if settings.pairs == "active" else int(opened)
