"""Agreement of users' votes with the ranker, and their preference for the blend.

A vote is a row's column `vote`, as the service writes it (`pipelines.serve.ballots`): which of two of the row's
answers a user found better. Members' answers were shown without names; the blend's is recognisable by coming last.
Votes count as independent, though one user may cast many: with few users the intervals are too narrow.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from rich.table import Table
from rich.text import Text

from llm_blender_ray.actors.judged_pairs import FUSED as FUSED
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.pipelines.rows.user_columns import column

_Z = 1.959964  # of the 95% interval


def _side(value: object) -> object:
    """Report one error where pydantic's own union reports one for each of its members."""
    if value == FUSED or (type(value) is int and value >= 0):
        return value
    raise PydanticCustomError("side", 'Input should be a candidate\'s index or "fused"')


Side = Annotated[
    int | Literal["fused"],
    PlainValidator(_side, json_schema_input_type=Annotated[int, Field(ge=0)] | Literal["fused"]),
]


class Verdict(Settings):
    """Which of two answers to one prompt is better: candidates by index, or the fused answer."""

    left: Side
    right: Side
    preferred: Literal["left", "right", "tie"]

    @model_validator(mode="after")
    def _of_two(self) -> Self:
        if self.left == self.right:
            raise ValueError("left and right are the same answer")
        return self

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right."""
        return self.left, self.right

    @property
    def sign(self) -> int:
        """1: left is better, -1: right is, 0: a tie."""
        return {"left": 1, "tie": 0, "right": -1}[self.preferred]


def parsed_side(side: object) -> object:
    """Parse a side of a Parquet column, which has indexes and `fused` as JSON text (`pipelines.rows.columns`)."""
    return json.loads(side) if isinstance(side, str) and side != FUSED else side


class _Kept(Verdict):
    """A verdict in a row."""

    left: Annotated[Side, BeforeValidator(parsed_side)]
    right: Annotated[Side, BeforeValidator(parsed_side)]
    at: str  # ISO 8601


def read_vote(row: Mapping[str, Any]) -> Verdict | None:
    """Vote of a row of `read_rows`; None if it has none, or one about other answers."""
    try:
        vote = _Kept.model_validate(column(row, "vote"))
    except ValidationError:
        return None  # another column of that name
    return vote if all(side_text(row, side) is not None for side in vote.sides) else None


def margin_between(row: Mapping[str, Any], i: int, j: int) -> float | None:
    """Margin of candidate i over j by the ranker: of both orders where both were compared."""
    if row["logits"] is not None:
        forth, back = row["logits"][i][j], row["logits"][j][i]
        told = [logit for logit in (forth, None if back is None else -back) if logit is not None]
        if told:
            return sum(told) / len(told)
    if row["scores"] is None or row["scores"][i] is None or row["scores"][j] is None:
        return None
    return float(row["scores"][i] - row["scores"][j])


def name_of(candidate: Mapping[str, Any], index: int) -> str:
    """Name of an answer's model; without one, the answer's index."""
    return candidate["model"] or f"candidate {index + 1}"


def interval(hits: float, count: float) -> tuple[float, float]:
    """95% interval of a share, count > 0 (Wilson 1927: holds for small counts and shares near 0 and 1)."""
    share, z2 = hits / count, _Z**2
    centre = share + z2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0) / (1 + z2 / count), min((centre + half) / (1 + z2 / count), 1.0)


@dataclass
class WinRecord:
    """How often one model was preferred to another."""

    wins: int = 0
    ties: int = 0
    losses: int = 0

    def add(self, sign: int) -> None:
        """Add one vote: 1 for it, -1 for the other, 0 a tie."""
        self.wins += sign > 0
        self.ties += sign == 0
        self.losses += sign < 0

    def report(self) -> dict[str, int]:
        """The record as plain data."""
        return {"wins": self.wins, "ties": self.ties, "losses": self.losses}


@dataclass
class Votes:
    """Statistics of rows' votes. Rows with an error, and votes between equal texts, are left out."""

    count: int = 0
    ties: int = 0
    agreed: int = 0
    judged: int = 0  # votes between candidates, without ties, for which the ranker has a preference
    undecided: int = 0  # the same where it has none: a margin of 0, or nothing compared
    blend_over_first: WinRecord = field(default_factory=WinRecord)
    blend_over_others: WinRecord = field(default_factory=WinRecord)
    models: dict[str, WinRecord] = field(default_factory=lambda: defaultdict(WinRecord))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row of `read_rows`."""
        vote = None if row["error"] is not None else read_vote(row)
        if vote is None or side_text(row, vote.left) == side_text(row, vote.right):
            return
        self.count += 1
        self.ties += vote.sign == 0
        match vote.sides:
            case (int(left), int(right)):
                self._between(row, left, right, vote.sign)
            case ("fused", int(other)):
                self._blend_against(row, other, vote.sign)
            case (int(other), "fused"):
                self._blend_against(row, other, -vote.sign)

    def _between(self, row: Mapping[str, Any], left: int, right: int, sign: int) -> None:
        names = [name_of(row["candidates"][at], at) for at in (left, right)]
        if names[0] != names[1]:  # else two samples of one model
            self.models[names[0]].add(sign)
            self.models[names[1]].add(-sign)
        if sign == 0:
            return
        margin = margin_between(row, left, right) if was_compared(row) else None
        if margin:
            self.judged += 1
            self.agreed += (margin > 0) == (sign > 0)
        else:
            self.undecided += 1

    def _blend_against(self, row: Mapping[str, Any], other: int, sign: int) -> None:
        is_first = bool(row["ranking"]) and row["ranking"][0] == other
        (self.blend_over_first if is_first else self.blend_over_others).add(sign)

    def report(self) -> dict[str, Any]:
        """The statistics as plain data.

        {"votes", "ties", "ranker": {"agrees", "of", "undecided", "share", "interval"}, "blend": {"over_first",
        "over_others"}, "models": {name: record}}; a record is {"wins", "ties", "losses"}. "ranker" covers votes
        between two candidates that are no ties: the share in which the user's choice is the ranker's (of
        "undecided" it made none), with its 95% interval; "over_first" is the blend against the ranker's first.
        """
        share = self.agreed / self.judged if self.judged else None
        return {
            "votes": self.count,
            "ties": self.ties,
            "ranker": {
                "agrees": self.agreed,
                "of": self.judged,
                "undecided": self.undecided,
                "share": share,
                "interval": list(interval(self.agreed, self.judged)) if self.judged else None,
            },
            "blend": {
                "over_first": self.blend_over_first.report(),
                "over_others": self.blend_over_others.report(),
            },
            "models": {name: record.report() for name, record in sorted(self.models.items())},
        }


def table(report: Mapping[str, Any]) -> Table:
    """`Votes.report` as a table to print with rich."""
    shown = Table(title=Text(f"By people ({_number(report['votes'], 'vote')})"), title_justify="left")
    shown.add_column("", no_wrap=True)
    for heading in ("won", "tied", "lost"):
        shown.add_column(heading, justify="right")
    records = {
        **{f"{name} against other models": record for name, record in report["models"].items()},
        "blend against the ranker's choice": report["blend"]["over_first"],
        "blend against other answers": report["blend"]["over_others"],
    }
    for label, record in records.items():
        if any(record.values()):
            shown.add_row(Text(label), *(str(record[key]) for key in ("wins", "ties", "losses")))
    shown.caption = _agreement(report["ranker"])
    return shown


def _agreement(ranker: Mapping[str, Any]) -> str | None:
    undecided = f"; on {ranker['undecided']} more it is undecided" if ranker["undecided"] else ""
    if ranker["share"] is None:
        return None
    low, high = ranker["interval"]
    return (
        f"the ranker agrees with {ranker['share']:.1%} of {_number(ranker['of'], 'choice')} between two models' "
        f"answers (95% interval {low:.1%} to {high:.1%}){undecided}"
    )


def was_compared(row: Mapping[str, Any]) -> bool:
    """Whether the ranker compared the row; False for an order by the leaderboard (`actors.leaderboard`)."""
    return row["logits"] is None or any(logit is not None for logits in row["logits"] for logit in logits)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def side_text(row: Mapping[str, Any], side: Side) -> str | None:
    """Text of a side; None if the row has no such answer."""
    if side == FUSED:
        return row["fused"]
    candidates = row["candidates"] or ()
    return candidates[side]["text"] if isinstance(side, int) and side < len(candidates) else None
