"""Votes from files into a campaign: rows with judgements, or the arena's battles."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm_blender_ray.pipelines.campaign.records import StoredItem
from llm_blender_ray.pipelines.campaign.store import CampaignStore, add_event
from llm_blender_ray.pipelines.quality.judgements import (
    ARENA_WINNERS,
    PEOPLE,
    Preferred,
    contestant_of,
    read_judgements,
)
from llm_blender_ray.pipelines.quality.votes import side_text
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.user_columns import column


@dataclass
class ImportCount:
    """What became of a file's votes.

    Attributes:
        added: Votes that are new.
        known: Votes of annotators who have answered the item already.
        unknown: Votes on answers that the campaign does not have.
    """

    added: int = 0
    known: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class _GivenVote:
    item: StoredItem
    swapped: bool
    annotator: str
    preferred: Preferred
    comment: str | None = None
    at: str | None = None


def import_votes(folder: str, uri: str) -> ImportCount:
    """Add the votes of a file to a campaign; the same file once more adds nothing.

    Args:
        folder: The campaign's.
        uri: Rows with `judgements`, `vote` or `cmp_results`, whose answers are found by the row's `id` and their
            texts; or battles with `question_id`, `model_a`, `model_b`, `winner` and `judge`.

    Raises:
        CampaignError: There is no campaign, or it can't be written.
        BlendError: The file can't be read.
    """
    store, count = CampaignStore(folder), ImportCount()
    rows = store.rows()
    by_id: defaultdict[str, list[StoredItem]] = defaultdict(list)
    for item in store.items():
        if item.gold is None:
            by_id[item.row_id].append(item)
    given = [vote for row in read_rows(uri) for vote in _votes(row, rows, by_id)]
    now = store.now()
    with store.changing() as database:
        for vote in given:
            if vote is None:
                count.unknown += 1
                continue
            try:
                add_event(
                    database,
                    vote.at or now,
                    vote.annotator,
                    vote.item.item,
                    "vote",
                    int(vote.swapped),
                    vote.preferred,
                    vote.comment,
                    imported=True,
                )
            except sqlite3.IntegrityError:
                count.known += 1
                continue
            count.added += 1
            database.execute(
                "UPDATE items SET position = (SELECT coalesce(max(position), -1) + 1 FROM items) "
                "WHERE item = ? AND position IS NULL",
                (vote.item.item,),
            )
    return count


def _votes(
    row: Mapping[str, Any], rows: list[dict[str, Any]], by_id: Mapping[str, list[StoredItem]]
) -> Iterator[_GivenVote | None]:
    """Votes of a row of `read_rows`; None for one on answers that the campaign does not have."""
    winner = column(row, "winner")
    if isinstance(winner, str) and winner in ARENA_WINNERS:
        names = (column(row, "model_a"), column(row, "model_b"))
        item = next((one for one in by_id[str(column(row, "question_id"))] if set(one.names) == set(names)), None)
        annotator, at = column(row, "judge"), column(row, "tstamp")
        name = annotator if isinstance(annotator, str) and annotator else PEOPLE
        when = at if isinstance(at, str) else None
        yield _GivenVote(item, item.names != names, name, ARENA_WINNERS[winner], at=when) if item else None
        return
    for one in read_judgements(row):
        texts = tuple(side_text(row, side) for side in one.sides)
        known = {
            item: tuple(side_text(rows[item.prompt], side) for side in item.sides) for item in by_id[str(row["id"])]
        }
        same = [item for item, of_item in known.items() if of_item in (texts, texts[::-1])]
        if not same:
            yield None
            continue
        # Models may share a text: of several items the one of the same contestants, or else of the same sides.
        contestants = {contestant_of(row, side) for side in one.sides}
        item = min(same, key=lambda item: (set(item.names) != contestants, set(item.sides) != set(one.sides)))
        yield _GivenVote(item, known[item] != texts, one.judge, one.preferred, one.reply, one.at)
