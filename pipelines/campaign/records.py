"""Items, votes and errors of a campaign."""

from dataclasses import dataclass
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.judgements import SWAPPED, Preferred
from llm_blender_ray.pipelines.quality.votes import Side


class CampaignError(BlendError):
    """The campaign can't be used, or does not allow it."""


class UnknownItemError(CampaignError):
    """There is no such item (HTTP 404)."""


class AnsweredBeforeError(CampaignError):
    """The annotator has given another answer to the item (HTTP 409)."""


class ItemLostError(CampaignError):
    """The item is not the annotator's, or no longer (HTTP 409)."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item of a new campaign: two answers to a prompt.

    Attributes:
        prompt: Index of the prompt.
        sides: The two answers, by candidate or `fused`.
        names: Their contestants.
        gold: The right answer, the first of them on the left; None: not a gold item.
        is_open: Whether it is shown from the beginning; if not, `pairs: active` may open it.
    """

    prompt: int
    sides: tuple[Side, Side]
    names: tuple[str, str]
    gold: Preferred | None = None
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Assignment:
    """An item as it is shown to an annotator.

    Attributes:
        row: The prompt's row, as the output of a run.
        left: Side on the left; `right` the other.
    """

    item: int
    row: dict[str, Any]
    left: Side
    right: Side


@dataclass(frozen=True, slots=True)
class CastVote:
    """A vote that holds.

    Attributes:
        prompt: Index of the prompt.
        names: Contestants of the item, in the item's order.
        sides: Its sides.
        gold: See `NewItem`.
        swapped: Whether the second one was on the left.
        preferred: As it was shown.
        at: ISO 8601.
    """

    item: int
    prompt: int
    annotator: str
    names: tuple[str, str]
    sides: tuple[Side, Side]
    gold: Preferred | None
    swapped: bool
    preferred: Preferred
    comment: str | None
    seconds: float | None
    at: str

    @property
    def shown(self) -> tuple[Side, Side]:
        """Sides as they were shown, left and right."""
        return self.sides[::-1] if self.swapped else self.sides

    @property
    def unswapped(self) -> Preferred:
        """What is preferred with the item's first side on the left."""
        return SWAPPED[self.preferred] if self.swapped else self.preferred


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item of the campaign; see `NewItem`.

    Attributes:
        row_id: Id of the prompt's row.
    """

    item: int
    prompt: int
    row_id: str
    sides: tuple[Side, Side]
    names: tuple[str, str]
    gold: Preferred | None
