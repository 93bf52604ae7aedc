"""Which annotator gets which item, and their answers.

An item has `overlap` places. A vote takes one, and so does a lease, from when the item is shown until it is
answered or the lease expires: so an item gets exactly `overlap` votes, and one that is abandoned comes back. Gold
items have a place for everyone.
"""

import json
import sqlite3

from llm_blender_ray.actors.tournaments.board import draw_by_hash
from llm_blender_ray.pipelines.campaign.records import (
    AnsweredBeforeError,
    Assignment,
    ItemLostError,
    UnknownItemError,
)
from llm_blender_ray.pipelines.campaign.store import CampaignStore, add_event, items_of
from llm_blender_ray.pipelines.quality.judgements import Preferred

# Places of an item `one` that others than the annotator have taken, and whether it is new to the annotator.
_TAKEN = (
    "((SELECT count(*) FROM votes WHERE votes.item = one.item AND votes.annotator <> :annotator) + "
    "(SELECT count(*) FROM leases WHERE leases.item = one.item AND leases.annotator <> :annotator "
    "AND leases.expires > :now))"
)
_NEW = "NOT EXISTS (SELECT 1 FROM answers WHERE answers.item = one.item AND answers.annotator = :annotator)"


class Assignments:
    """Items of a campaign's annotators."""

    def __init__(self, store: CampaignStore) -> None:
        self._store, self._settings = store, store.settings

    def next_item(self, annotator: str) -> Assignment | None:
        """Lease an item to an annotator: the one that they have, or another; None: there is none for them now."""
        now = self._store.clock()
        with self._store.changing() as database:
            item = self._leased(database, annotator, now) or self._free(database, annotator, now)
            return None if item is None else self._assign(database, item, annotator, now)

    def answer(
        self, annotator: str, item: int, preferred: Preferred | None, comment: str | None, seconds: float | None
    ) -> None:
        """Store a vote or a skip. The same answer once more changes nothing, so that a client may send it again.

        Args:
            annotator: Name of the annotator.
            item: The item.
            preferred: As it was shown; None: a skip, after which another annotator gets the item.
            comment: What the annotator wrote.
            seconds: See `schema.sql`.

        Raises:
            UnknownItemError: There is no such item.
            AnsweredBeforeError: The annotator has given another answer to it.
            ItemLostError: It is not shown to the annotator, or has been given to another one since.
            CampaignError: The answer can't be written.
        """
        now = self._store.clock()
        kind = "skip" if preferred is None else "vote"
        with self._store.changing() as database:
            query = "SELECT kind, preferred, comment FROM answers WHERE annotator = ? AND item = ?"
            before = database.execute(query, (annotator, item)).fetchone()
            if before == (kind, preferred, comment):
                return
            if before is not None:
                raise AnsweredBeforeError("you have answered this item before; undo that answer to change it")
            query = "SELECT swapped, expires > ? FROM leases WHERE annotator = ? AND item = ?"
            lease = database.execute(query, (now, annotator, item)).fetchone()
            if lease is None:
                if database.execute("SELECT 1 FROM items WHERE item = ?", (item,)).fetchone() is None:
                    raise UnknownItemError(f"there is no item {item}")
                raise ItemLostError("this item isn't yours now; here is another one")
            if not lease[1] and not self._has_room(database, item, annotator, now):
                raise ItemLostError("this item was open for too long, and another annotator has got it")
            database.execute("DELETE FROM leases WHERE annotator = ? AND item = ?", (annotator, item))
            add_event(database, self._store.now(), annotator, item, kind, lease[0], preferred, comment, seconds)

    def undo(self, annotator: str, item: int) -> bool:
        """Take an annotator's answer to an item back and lease the item to them again, with its sides as before.

        Returns:
            Whether there was an answer; one that was undone before stays so.
        """
        now = self._store.clock()
        with self._store.changing() as database:
            query = "SELECT swapped FROM answers WHERE annotator = ? AND item = ? AND NOT imported"
            if (found := database.execute(query, (annotator, item)).fetchone()) is None:
                return False
            add_event(database, self._store.now(), annotator, item, "undo", found[0])
            database.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
            if self._has_room(database, item, annotator, now):  # else it was a skip, and others have got the item
                self._lease(database, item, annotator, found[0], now)
        return True

    def last_answered(self, annotator: str) -> int | None:
        """Item that the annotator has answered last: what `undo` is for."""
        with self._store.reading() as database:
            query = "SELECT item FROM answers WHERE annotator = ? AND NOT imported ORDER BY event DESC LIMIT 1"
            found = database.execute(query, (annotator,)).fetchone()
        return found[0] if found else None

    def answered(self, annotator: str) -> int:
        """Items that an annotator has voted on or skipped."""
        with self._store.reading() as database:
            query = "SELECT count(*) FROM answers WHERE annotator = ? AND NOT imported"
            return int(database.execute(query, (annotator,)).fetchone()[0])

    def _leased(self, database: sqlite3.Connection, annotator: str, now: float) -> int | None:
        """The annotator's own item, if it still has a place for them."""
        for item, valid in database.execute(
            "SELECT item, expires > ? FROM leases WHERE annotator = ?", (now, annotator)
        ).fetchall():
            if valid or self._has_room(database, item, annotator, now):
                return int(item)
            database.execute("DELETE FROM leases WHERE annotator = ? AND item = ?", (annotator, item))
        return None

    def _has_room(self, database: sqlite3.Connection, item: int, annotator: str, now: float) -> bool:
        query = f"SELECT gold IS NOT NULL OR {_TAKEN} < :overlap FROM items AS one WHERE item = :item"
        given = {"item": item, "annotator": annotator, "now": now, "overlap": self._settings.overlap}
        return bool(database.execute(query, given).fetchone()[0])

    def _free(self, database: sqlite3.Connection, annotator: str, now: float) -> int | None:
        """An item that has a place for the annotator: by its turn a gold one, else the next."""
        given = {"annotator": annotator, "now": now, "overlap": self._settings.overlap}
        if self._is_turn_of_gold(database, annotator):
            query = f"SELECT item FROM items AS one WHERE gold IS NOT NULL AND {_NEW} ORDER BY position LIMIT 1"
            if found := database.execute(query, given).fetchone():
                return int(found[0])
        found = database.execute(
            f"SELECT item FROM items AS one WHERE position IS NOT NULL AND gold IS NULL AND {_NEW} "
            f"AND {_TAKEN} < :overlap ORDER BY position LIMIT 1",
            given,
        ).fetchone()
        if found is None and self._settings.pairs == "active":
            from llm_blender_ray.pipelines.campaign.opening import open_item  # numpy

            return open_item(database, items_of(database, self._settings), self._settings.seed, now)
        return int(found[0]) if found else None

    def _is_turn_of_gold(self, database: sqlite3.Connection, annotator: str) -> bool:
        query = "SELECT count(*) FROM answers WHERE annotator = ? AND NOT imported"
        (answered,) = database.execute(query, (annotator,)).fetchone()
        draw = draw_by_hash(f"gold\0{annotator}\0{answered}", self._settings.seed)
        return int.from_bytes(draw[:8], "big") % self._settings.gold_every == 0

    def _assign(self, database: sqlite3.Connection, item: int, annotator: str, now: float) -> Assignment:
        """Lease an item, its sides as before, or else so that each side is on the left as often as the other."""
        query = "SELECT swapped FROM leases WHERE annotator = ? AND item = ?"
        if found := database.execute(query, (annotator, item)).fetchone():
            swapped = found[0]
        else:
            (balance,) = database.execute(
                "SELECT coalesce(sum(2 * swapped - 1), 0) FROM (SELECT swapped FROM votes WHERE item = :item "
                "UNION ALL SELECT swapped FROM leases WHERE item = :item AND expires > :now)",
                {"item": item, "now": now},
            ).fetchone()
            drawn = draw_by_hash(f"side\0{item}\0{annotator}", self._settings.seed)[0] & 1
            swapped = drawn if balance == 0 else int(balance < 0)
        self._lease(database, item, annotator, swapped, now)
        query = "SELECT first, second, row FROM items JOIN prompts USING (prompt) WHERE item = ?"
        first, second, row = database.execute(query, (item,)).fetchone()
        sides = json.loads(first), json.loads(second)
        return Assignment(item, json.loads(row), sides[swapped], sides[1 - swapped])

    def _lease(self, database: sqlite3.Connection, item: int, annotator: str, swapped: int, now: float) -> None:
        given = (item, annotator, swapped, now + self._settings.lease_s)
        database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", given)
