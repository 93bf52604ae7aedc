"""`blend campaign status`: how far a campaign is."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_blender_ray.pipelines.campaign.creation import annotator_keys
from llm_blender_ray.pipelines.campaign.records import CampaignError
from llm_blender_ray.pipelines.campaign.store import CampaignStore

_KINDS = ("vote", "skip", "undo", "open")


@dataclass(frozen=True, slots=True)
class AnnotatorStatus:
    """One annotator's work.

    Attributes:
        votes: That hold, gold items included.
        skipped: Items.
        undone: Answers that were taken back.
        open: Items that they have on the screen.
        last: When they last did something, in ISO 8601.
    """

    votes: int
    skipped: int
    undone: int
    open: int
    last: str | None


@dataclass(frozen=True, slots=True)
class CampaignStatus:
    """How far a campaign is.

    Attributes:
        votes: That the campaign needs and has.
        wanted: That it needs in all.
        items: Items that have all their votes.
        annotators: Everyone who has a key or a vote.
    """

    title: str
    votes: int
    wanted: int
    items: int
    annotators: dict[str, AnnotatorStatus]

    def report(self) -> dict[str, Any]:
        """The status as plain data."""
        return asdict(self)

    def render(self) -> Group:
        """The status as a line and a table to print with rich."""
        title = f"{self.title}: {self.votes:,} of {self.wanted:,} votes, {self.items:,} items complete"
        shown = Table()
        shown.add_column("annotator", no_wrap=True)
        for heading in ("votes", "skipped", "undone", "open"):
            shown.add_column(heading, justify="right")
        shown.add_column("last")
        for name, one in self.annotators.items():
            counts = (str(number) for number in (one.votes, one.skipped, one.undone, one.open))
            shown.add_row(Text(name), *counts, one.last or "")
        return Group(Text(title), shown)


def campaign_status(folder: str) -> CampaignStatus:
    """Status of a folder's campaign.

    Raises:
        CampaignError: There is none.
    """
    store = CampaignStore(folder)
    votes, wanted = store.progress()
    now, overlap = store.clock(), store.settings.overlap
    with store.reading() as database:
        (items,) = database.execute(
            "SELECT count(*) FROM (SELECT 1 FROM votes JOIN items USING (item) WHERE gold IS NULL "
            "GROUP BY item HAVING count(*) >= ?)",
            (overlap,),
        ).fetchone()
        counts: dict[str, dict[str, int]] = {}
        lasts: dict[str, str] = {}
        for query, given in (
            ("SELECT annotator, kind, count(*) FROM answers GROUP BY annotator, kind", ()),
            ("SELECT annotator, 'undo', count(*) FROM events WHERE kind = 'undo' GROUP BY annotator", ()),
            ("SELECT annotator, 'open', count(*) FROM leases WHERE expires > ? GROUP BY annotator", (now,)),
        ):
            for annotator, kind, count in database.execute(query, given):
                counts.setdefault(annotator, {})[kind] = count
        lasts.update(database.execute("SELECT annotator, max(at) FROM events GROUP BY annotator"))
    try:
        invited = annotator_keys(folder).owners
    except CampaignError:  # nobody yet
        invited = frozenset()
    annotators = {}
    for name in sorted(invited | counts.keys()):
        cast, skipped, undone, leased = (counts.get(name, {}).get(kind, 0) for kind in _KINDS)
        annotators[name] = AnnotatorStatus(cast, skipped, undone, leased, lasts.get(name))
    return CampaignStatus(store.settings.title, votes, wanted, items, annotators)
