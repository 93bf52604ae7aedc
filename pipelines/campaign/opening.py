"""Opens the next item of an active campaign: the pair of contestants that tells most, on a prompt drawn by hash."""

import sqlite3

import numpy as np

from llm_blender_ray.actors.tournaments.board import draw_by_hash
from llm_blender_ray.pipelines.campaign.active import believe, most_telling


def open_item(database: sqlite3.Connection, wanted: int, seed: int, now: float) -> int | None:
    """Open an item; None: `wanted` are open, or no item is left.

    The same votes and leases open the same item.

    Args:
        database: A transaction of the campaign's.
        wanted: Items to be opened in all.
        seed: Of the draws.
        now: Seconds since 1970.
    """
    query = "SELECT count(position), coalesce(max(position), -1) FROM items WHERE gold IS NULL"
    opened, last = database.execute(query).fetchone()
    if opened >= wanted:
        return None
    left = database.execute(
        "SELECT DISTINCT first_name, second_name FROM items WHERE position IS NULL AND gold IS NULL"
    ).fetchall()
    if not left:
        return None
    names = sorted({name for pair in left for name in pair} | _voted(database))
    index = {name: at for at, name in enumerate(names)}
    wins_CC, ties_CC, pending_CC = (np.zeros((len(names), len(names))) for _ in range(3))
    for first, second, sign, count in database.execute(
        "SELECT first_name, second_name, CASE preferred WHEN 'left' THEN 1 - 2 * swapped "
        "WHEN 'right' THEN 2 * swapped - 1 ELSE 0 END AS sign, count(*) "
        "FROM votes JOIN items USING (item) WHERE gold IS NULL GROUP BY first_name, second_name, sign"
    ):
        i, j = index[first], index[second]
        if sign:
            wins_CC[(i, j) if sign > 0 else (j, i)] += count
        else:
            ties_CC[i, j] += count
            ties_CC[j, i] += count
    for first, second, count in database.execute(
        "SELECT first_name, second_name, count(*) FROM leases JOIN items USING (item) "
        "WHERE gold IS NULL AND expires > ? GROUP BY first_name, second_name",
        (now,),
    ):
        pending_CC[index[first], index[second]] += count
        pending_CC[index[second], index[first]] += count
    contests = sorted({tuple(sorted((index[first], index[second]))) for first, second in left})
    best = most_telling(believe(wins_CC, ties_CC, pending_CC), [(i, j) for i, j in contests])
    pair = min(best, key=lambda one: draw_by_hash(f"{opened}\0{names[one[0]]}\0{names[one[1]]}", seed))
    one, other = (names[at] for at in pair)
    query = (
        "SELECT item FROM items WHERE position IS NULL AND gold IS NULL "
        "AND ((first_name = ? AND second_name = ?) OR (first_name = ? AND second_name = ?))"
    )
    found = [item for (item,) in database.execute(query, (one, other, other, one))]
    item = int(min(found, key=lambda one: draw_by_hash(f"open\0{one}", seed)))
    database.execute("UPDATE items SET position = ? WHERE item = ?", (last + 1, item))
    return item


def _voted(database: sqlite3.Connection) -> set[str]:
    """Contestants of open items."""
    query = "SELECT DISTINCT first_name, second_name FROM items WHERE position IS NOT NULL AND gold IS NULL"
    return {name for pair in database.execute(query) for name in pair}
