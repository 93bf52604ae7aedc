"""Judgements: who found which of two answers better. One form for LLM judges, people and preference data sets.

A row carries them in its column `judgements` (`blend judge`, campaigns), in `vote` (the online page), in
`cmp_results` (MixInstruct), in `chosen` and `rejected` (TRL, RewardBench) or in `winner` (MT-bench and arenas).
`read_outcomes` turns all of them into outcomes between named contestants, which is what every statistic of this
folder reads.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, ValidationError

from llm_blender_ray.actors.chats import read_answer
from llm_blender_ray.actors.errors import FieldError
from llm_blender_ray.actors.judged_pairs import Preferred as Preferred
from llm_blender_ray.configs.judges import BLEND_CONTESTANT as BLEND_CONTESTANT
from llm_blender_ray.configs.judges import RANKER_CONTESTANT as RANKER_CONTESTANT
from llm_blender_ray.pipelines.quality.cmp_results import CMP_RESULTS as CMP_RESULTS
from llm_blender_ray.pipelines.quality.cmp_results import read_pairs
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, Verdict, name_of, parsed_side, read_vote, side_text
from llm_blender_ray.pipelines.rows.user_columns import column

JUDGEMENTS = "judgements"  # the column
PEOPLE = "people"  # the judge of votes without a voter's name
MIXINSTRUCT = "cmp_results"  # the judge of MixInstruct's comparisons
DATASET_PREFERENCE = "chosen"  # the judge of the columns `chosen` and `rejected`
ARENA_WINNERS: dict[str, Preferred] = {  # values of `winner`: of MT-bench's human judgments, of the arena's files
    "model_a": "left",
    "model_b": "right",
    "tie": "tie",
    "tie (inconsistent)": "tie",
    "tie (bothbad)": "both_bad",
}
ARENA_PEOPLE = ("expert", "author", "arena_user")  # beginnings of the `judge` that is a person in those files
SIGNS: dict[Preferred, int] = {"left": 1, "right": -1, "tie": 0, "both_good": 0, "both_bad": 0}
SWAPPED: dict[Preferred, Preferred] = {
    "left": "right",
    "right": "left",
    "tie": "tie",
    "both_good": "both_good",
    "both_bad": "both_bad",
}


class Judgement(Verdict):
    """One judgement of a row: two of its answers, by index or `fused`, as they were shown. Other keys are ignored.

    Attributes:
        judge: Name of the LLM judge, or of the person.
        preferred: `tie`, or MixInstruct's finer `both_good` and `both_bad`.
        reply: What the judge wrote, where it is kept.
        at: When, in ISO 8601, where it is kept.
        person: Whether the judge is a person.
    """

    model_config = ConfigDict(extra="ignore")

    left: Annotated[Side, BeforeValidator(parsed_side)]
    right: Annotated[Side, BeforeValidator(parsed_side)]
    preferred: Preferred  # type: ignore[assignment]
    judge: str
    reply: str | None = None
    at: str | None = None
    person: bool = False

    @property
    def sign(self) -> int:
        """1: left is better, -1: right is, 0: neither."""
        return SIGNS[self.preferred]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judgement between two contestants, in the order in which the judge saw them.

    Attributes:
        row: Id of the row, the unit that bootstraps draw.
        judge: Name of the judge.
        left: Contestant: a model's name, `BLEND_CONTESTANT` or `RANKER_CONTESTANT`.
        right: The other one.
        left_text: Answer of `left`, from which its length and style follow.
        right_text: Answer of `right`.
        slice: Values of the columns that results are sliced by.
        probability: Probability that `left` is better, where the judge gave one; it decides `left_wins`.
    """

    row: str
    judge: str
    left: str
    right: str
    preferred: Preferred
    left_text: str = ""
    right_text: str = ""
    slice: tuple[str, ...] = ()
    probability: float | None = None

    @property
    def sign(self) -> int:
        """1: left is better, -1: right is, 0: neither."""
        return SIGNS[self.preferred]

    @property
    def left_wins(self) -> float:
        """Share of a win that is left's: 1, 0, a half, or the judge's probability."""
        return (self.sign + 1) / 2 if self.probability is None else self.probability

    def swapped(self) -> "Outcome":
        """The same judgement with the sides exchanged."""
        return Outcome(
            self.row,
            self.judge,
            self.right,
            self.left,
            SWAPPED[self.preferred],
            self.right_text,
            self.left_text,
            self.slice,
            None if self.probability is None else 1 - self.probability,
        )


def read_judgements(row: Mapping[str, Any]) -> list[Judgement]:
    """All judgements of a row of `read_rows`, of each column that this module's docstring names, in that order.

    What has not the form of a judgement, or is about an answer that the row lacks, is left out: such a column is
    the user's own. Comparisons in `cmp_results` of a judge that `judgements` has are a copy, and left out, too.
    """
    found = _given(row)
    if (vote := read_vote(row)) is not None:
        found.append(
            Judgement(judge=PEOPLE, left=vote.left, right=vote.right, preferred=vote.preferred, person=True)
        )
    judges = {one.judge for one in found}
    found += [one for one in _mixinstruct(row) if one.judge not in judges]
    found += [*_preference_pair(row), *_arena(row)]
    return [one for one in found if all(side_text(row, side) is not None for side in one.sides)]


def read_llm_judgements(row: Mapping[str, Any]) -> list[Judgement]:
    """Judgements of a row's column `judgements` that are no person's."""
    found = [one for one in _given(row) if not one.person]
    return [one for one in found if all(side_text(row, side) is not None for side in one.sides)]


def _given(row: Mapping[str, Any]) -> list[Judgement]:
    given = column(row, JUDGEMENTS)
    return [one for one in map(_judgement, given if isinstance(given, list) else ()) if one is not None]


def _judgement(value: Any) -> Judgement | None:
    if not isinstance(value, Mapping):
        return None
    try:  # in a column of Parquet, every judgement has the keys of all, null where it has none
        return Judgement.model_validate({name: item for name, item in value.items() if item is not None})
    except ValidationError:
        return None


def _mixinstruct(row: Mapping[str, Any]) -> Iterator[Judgement]:
    """Judgements of `cmp_results` (`quality.cmp_results`)."""
    named = column(row, "cmp_results_judge")
    judge = named if isinstance(named, str) and named else MIXINSTRUCT
    for left, right, preferred in read_pairs(column(row, "cmp_results"), row["candidates"] or ()):
        yield Judgement(judge=judge, left=left, right=right, preferred=preferred)


def _preference_pair(row: Mapping[str, Any]) -> Iterator[Judgement]:
    """The judgement that `chosen` and `rejected` are, about the candidates with these texts."""
    try:
        pair = [read_answer(column(row, name), name) for name in ("chosen", "rejected")]
    except FieldError:
        return
    texts = [one["text"] for one in row["candidates"] or ()]
    left, right = (texts.index(text) if text is not None and text in texts else None for text in pair)
    if left is not None and right is not None and left != right:
        yield Judgement(judge=DATASET_PREFERENCE, left=left, right=right, preferred="left")


def _arena(row: Mapping[str, Any]) -> Iterator[Judgement]:
    """The judgement that `winner` is, about the candidates of `model_a` and `model_b`."""
    winner, judge = column(row, "winner"), column(row, "judge")
    preferred = ARENA_WINNERS.get(winner) if isinstance(winner, str) else None
    names = [one["model"] for one in row["candidates"] or ()]
    pair = [column(row, name) for name in ("model_a", "model_b")]
    if preferred and pair[0] != pair[1] and all(isinstance(one, str) and one in names for one in pair):
        name = judge if isinstance(judge, str) and judge else PEOPLE
        left, right = map(names.index, pair)
        is_person = name == PEOPLE or name.startswith(ARENA_PEOPLE)
        yield Judgement(judge=name, left=left, right=right, preferred=preferred, person=is_person)


def read_outcomes(
    rows: Iterable[Mapping[str, Any]],
    slice_by: Sequence[str] = (),
    read: Callable[[Mapping[str, Any]], Iterable[Judgement]] = read_judgements,
) -> Iterator[Outcome]:
    """Outcomes of the judgements of rows; rows with an error are left out, and answers of one model to itself.

    Args:
        rows: Rows of `rows.readers.read_rows`.
        slice_by: Columns whose values go into `Outcome.slice`.
        read: Gives the judgements of a row, for example those that given scores imply.

    Yields:
        One outcome for each judgement, and for one about the ranker's first candidate a second, with
        `RANKER_CONTESTANT` in that candidate's place.
    """
    for row in rows:
        if row["error"] is not None:
            continue
        values = tuple(str(column(row, name)) for name in slice_by)
        first = row["ranking"][0] if row["ranking"] else None
        for one in read(row):
            texts = [side_text(row, side) or "" for side in one.sides]
            names = [contestant_of(row, side) for side in one.sides]
            as_ranker = [
                RANKER_CONTESTANT if side == first else name for side, name in zip(one.sides, names, strict=True)
            ]
            for left, right in dict.fromkeys(((names[0], names[1]), (as_ranker[0], as_ranker[1]))):
                if left != right:
                    yield Outcome(str(row["id"]), one.judge, left, right, one.preferred, texts[0], texts[1], values)


def contestant_of(row: Mapping[str, Any], side: Side) -> str:
    """Contestant that an answer of a row of `read_rows` is of."""
    return BLEND_CONTESTANT if side == FUSED else name_of(row["candidates"][side], int(side))
