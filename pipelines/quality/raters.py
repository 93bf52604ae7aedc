"""Raters of answers: the ranker, judges, given scores, metrics and people, in one form by prompt.

Rows with the same prompt and the same values of the sliced columns are one prompt: preference sets have a row for
each vote, and two raters often rate the same answers in different rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from llm_blender_ray.actors.records import digest, read_prompt
from llm_blender_ray.pipelines.quality.agreement import Array, PairedRatings, coincidences
from llm_blender_ray.pipelines.quality.answer_scores import given_fused_scores, given_scores, score_answers
from llm_blender_ray.pipelines.quality.judgements import (
    BLEND_CONTESTANT,
    DATASET_PREFERENCE,
    read_judgements,
)
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, margin_between, name_of, was_compared
from llm_blender_ray.pipelines.rows.user_columns import column, references_of

RANKER_RATER = "ranker"
PEOPLE_TOGETHER = "people"  # the majority of all people
KINDS = (RANKER_RATER, "judge", "score", "metric", DATASET_PREFERENCE, "person", PEOPLE_TOGETHER)  # in this order
_METRIC_ROWS = 64  # whose texts a metric scores at once
_Pair = tuple[int, int]


@dataclass
class Rating:
    """Verdicts of a rater on one prompt's answers.

    Attributes:
        signs: For pairs of answers i < j: the sum of its verdicts, 1 for i, -1 for j, 0 for a tie. Verdicts that
            contradict each other, as in the two orders of a pair, are a tie.
        scores: Its scores of answers, higher is better; None for a rater that compares pairs only.
    """

    signs: dict[_Pair, int] = field(default_factory=dict)
    scores: dict[int, float] | None = None

    def add(self, left: int, right: int, sign: int) -> None:
        """Add a verdict: 1 for left, -1 for right, 0 for a tie."""
        pair, sign = ((left, right), sign) if left < right else ((right, left), -sign)
        self.signs[pair] = self.signs.get(pair, 0) + sign

    def sign(self, pair: _Pair) -> int:
        """Verdict on one of its pairs."""
        return _sign(self.signs[pair])

    def rated(self) -> set[int]:
        """Answers that it has rated."""
        return {*self.scores} if self.scores is not None else {one for pair in self.signs for one in pair}

    def ranks(self, answers: Sequence[int]) -> list[int] | None:
        """Ranks of answers: 1 is the best, equal ones share the better rank, as in the original.

        A rater without scores ranks by wins less losses, where it has compared every pair of the answers.
        """
        if self.scores is not None:
            values = [self.scores[one] for one in answers]
        else:
            pairs = list(combinations(answers, 2))
            if any(pair not in self.signs for pair in pairs):
                return None
            of_each: Counter[int] = Counter()
            for left, right in pairs:
                of_each[left] += self.sign((left, right))
                of_each[right] -= self.sign((left, right))
            values = [float(of_each[one]) for one in answers]
        return [1 + sum(other > value for other in values) for value in values]


@dataclass
class RatedPrompt:
    """Answers to one prompt, and every rater's verdicts on them.

    Attributes:
        contestants: Contestant of each answer; a model's second answer is "MODEL #2".
        ratings: By rater.
    """

    contestants: list[str] = field(default_factory=list)
    ratings: dict[str, Rating] = field(default_factory=dict)
    _indexes: dict[tuple[str, str], int] = field(default_factory=dict)
    _texts: list[str] = field(default_factory=list)

    def answer(self, contestant: str, text: str) -> int:
        """Index of an answer, which is added where it is new."""
        if (contestant, text) not in self._indexes:
            of_same = sum(name == contestant for name, _ in self._indexes)
            self.contestants.append(f"{contestant} #{of_same + 1}" if of_same else contestant)
            self._indexes[contestant, text] = len(self._texts)
            self._texts.append(text)
        return self._indexes[contestant, text]

    def same_text(self, pair: _Pair) -> bool:
        """Whether two answers have the same text: a verdict on them says nothing."""
        return self._texts[pair[0]] == self._texts[pair[1]]

    def rating(self, rater: str) -> Rating:
        """Rating of a rater, empty at first."""
        return self.ratings.setdefault(rater, Rating())

    def add_scores(self, rater: str, scores: Mapping[int, float]) -> None:
        """Add scores that are comparable between rows."""
        rating = self.rating(rater)
        rating.scores = {**(rating.scores or {}), **scores}
        for i, j in combinations(sorted(rating.scores), 2):
            rating.signs[i, j] = _sign(rating.scores[i] - rating.scores[j])


_Slice = tuple[str, ...]
_Answered = tuple[RatedPrompt, dict[Side, int], Mapping[str, Any]]  # with the answers' indexes, and the row


class RatedPrompts:
    """Prompts of rows with the verdicts of all raters.

    Attributes:
        slices: Prompts by the values of the sliced columns, in the rows' order.
        rows: Number of rows.
        errors: Number of rows with an error, which are left out.
        unknown: Columns to slice by of which no row has a value.
    """

    def __init__(self, metrics: Sequence[Metric] = (), slice_by: Sequence[str] = ()) -> None:
        """Start without rows.

        Args:
            metrics: Metrics against references, each a rater of the rows that it applies to.
            slice_by: Columns that slice the rows.
        """
        self.slices: dict[_Slice, list[RatedPrompt]] = {}
        self._metrics = metrics
        self._slice_by = slice_by
        self.unknown = list(slice_by)
        self._prompts: dict[tuple[_Slice, bytes], RatedPrompt] = {}
        self.rows = self.errors = 0

    def add_all(self, rows: Iterable[Mapping[str, Any]]) -> "RatedPrompts":
        """Add rows of `rows.readers.read_rows`."""
        pending: list[_Answered] = []
        for row in rows:
            self.rows += 1
            if row["error"] is not None:
                self.errors += 1
                continue
            prompt, answers = self._add(row)
            if self._metrics and answers and references_of(row):
                pending.append((prompt, answers, row))
            if len(pending) == _METRIC_ROWS:
                self._score(pending)
                pending = []
        self._score(pending)
        return self

    def _add(self, row: Mapping[str, Any]) -> tuple[RatedPrompt, dict[Side, int]]:
        given = {name: column(row, name) for name in self._slice_by}
        self.unknown = [name for name in self.unknown if given[name] is None]
        values = tuple(map(str, given.values()))
        key = (values, digest(read_prompt(row)))
        if key not in self._prompts:
            self._prompts[key] = RatedPrompt()
            self.slices.setdefault(values, []).append(self._prompts[key])
        prompt, candidates = self._prompts[key], row["candidates"] or ()
        answers: dict[Side, int] = {
            at: prompt.answer(name_of(one, at), one["text"])
            for at, one in enumerate(candidates)
            if one["text"] is not None
        }
        self._add_ranker(prompt, row, {at: index for at, index in answers.items() if at != FUSED})
        if row["fused"] is not None:
            answers[FUSED] = prompt.answer(BLEND_CONTESTANT, row["fused"])
        for one in read_judgements(row):
            left, right = (answers[side] for side in one.sides)
            if left != right:
                prompt.rating(rater_name(one.judge, person=one.person)).add(left, right, one.sign)
        of_fused = given_fused_scores(row)
        for name, values_of in given_scores(candidates).items():
            known = {
                answers[at]: value for at, value in enumerate(values_of) if value is not None and at in answers
            }
            known |= {answers[FUSED]: of_fused[name]} if FUSED in answers and name in of_fused else {}
            prompt.add_scores(f"score:{name}", known)
        return prompt, answers

    def _add_ranker(self, prompt: RatedPrompt, row: Mapping[str, Any], answers: Mapping[Side, int]) -> None:
        """Add the ranker's margins, and the scores of a prompt of one row: those of two rows can't be compared."""
        margins = {
            (i, j): margin
            for i, j in combinations(sorted(at for at in answers if isinstance(at, int)), 2)
            if answers[i] != answers[j] and (margin := _margin(row, i, j)) is not None
        }
        if not margins:
            return
        rating = prompt.rating(RANKER_RATER)
        is_first = not rating.signs
        for (i, j), margin in margins.items():
            rating.add(answers[i], answers[j], _sign(margin))
        scores = row["scores"] or [None] * len(row["candidates"])
        known = {index: scores[at] for at, index in answers.items() if isinstance(at, int)}
        whole = {index: score for index, score in known.items() if score is not None}
        rating.scores = whole if len(whole) == len(known) and (is_first or rating.scores == whole) else None

    def _score(self, pending: Sequence[_Answered]) -> None:
        """Add the scores of all metrics; of each for the rows that it applies to."""
        for metric in self._metrics:
            chosen = [one for one in pending if metric.applies(references_of(one[2]))]
            found = score_answers([row for _, _, row in chosen], {metric.key: metric}) if chosen else []
            sign = 1 if metric.higher_is_better else -1
            for (prompt, answers, _), of_row in zip(chosen, found, strict=True):
                scores = of_row[metric.key]
                of_side = {at: scores.fused if at == FUSED else scores.candidates[int(at)] for at in answers}
                known = {answers[at]: sign * value for at, value in of_side.items() if value is not None}
                prompt.add_scores(f"metric:{metric.key}", known)


def rater_name(judge: str, *, person: bool) -> str:
    """Name of the rater that a judge is."""
    if judge == DATASET_PREFERENCE:
        return judge
    return f"person:{judge}" if person else f"judge:{judge}"


def rater_kind(rater: str) -> str:
    """Kind of a rater, one of `KINDS`."""
    return rater.partition(":")[0]


def raters_of(prompts: Iterable[RatedPrompt]) -> Counter[str]:
    """All raters with the number of prompts that each has rated, in the order of `KINDS`."""
    found = Counter(rater for prompt in prompts for rater, rating in prompt.ratings.items() if rating.signs)
    return Counter(
        {name: found[name] for name in sorted(found, key=lambda one: (KINDS.index(rater_kind(one)), one))}
    )


def paired_ratings(prompts: Sequence[RatedPrompt], rater: str, other: str) -> PairedRatings:
    """Verdicts of two raters. `people` against a person is the majority of the other people."""
    columns: dict[str, int] = {}
    tables, ranks = [], []
    for prompt in prompts:
        left, right = _rating_of(prompt, rater, other), _rating_of(prompt, other, rater)
        if left is None or right is None:
            continue
        table = np.zeros((3, 3))
        for pair in left.signs.keys() & right.signs.keys():
            if not prompt.same_text(pair):
                table[1 + left.sign(pair), 1 + right.sign(pair)] += 1
        common = sorted(left.rated() & right.rated())
        of_names: dict[str, tuple[int, int]] = {}
        if len(common) > 1 and (by_left := left.ranks(common)) and (by_right := right.ranks(common)):
            names = [prompt.contestants[index] for index in common]
            of_names = dict(zip(names, zip(by_left, by_right, strict=True), strict=True))
        tables.append(table)
        ranks.append(of_names)
        for name in of_names:
            columns.setdefault(name, len(columns))
    both = np.full((2, len(tables), len(columns)), np.nan)
    for row, of_names in enumerate(ranks):
        for name, values in of_names.items():
            both[:, row, columns[name]] = values
    return PairedRatings(np.array(tables).reshape(-1, 3, 3), both[0], both[1])


def group_tables(prompts: Sequence[RatedPrompt], raters: Iterable[str]) -> tuple[Array, Array]:
    """Verdicts of every two of several raters.

    Returns:
        The number of pairs by both verdicts, summed over pairs of raters, and the coincidence matrices
        (`agreement.coincidences`), each prompts x 3 x 3.
    """
    wanted = set(raters)
    tables: list[Array] = []
    coincident: list[Array] = []
    for prompt in prompts:
        counts: dict[_Pair, Array] = {}
        for name in prompt.ratings.keys() & wanted:
            rating = prompt.ratings[name]
            for pair in rating.signs:
                if not prompt.same_text(pair):
                    counts.setdefault(pair, np.zeros(3))[1 + rating.sign(pair)] += 1
        several = [one for one in counts.values() if one.sum() > 1]
        if several:
            tables.append(sum((np.outer(one, one) - np.diag(one) for one in several), np.zeros((3, 3))) / 2)
            coincident.append(sum(map(coincidences, several), np.zeros((3, 3))))
    return np.array(tables).reshape(-1, 3, 3), np.array(coincident).reshape(-1, 3, 3)


def _rating_of(prompt: RatedPrompt, rater: str, other: str) -> Rating | None:
    if rater != PEOPLE_TOGETHER:
        return prompt.ratings.get(rater)
    together = Rating()
    for name, rating in prompt.ratings.items():
        if rater_kind(name) == "person" and name != other:
            for pair in rating.signs:
                together.add(*pair, rating.sign(pair))
    return together if together.signs else None


def _margin(row: Mapping[str, Any], i: int, j: int) -> float | None:
    """The ranker's margin; of rows of `blend compare` their own, which `preference` tells from another's column."""
    margin = margin_between(row, i, j) if was_compared(row) else None
    given = column(row, "margin")
    if margin is None and len(row["candidates"]) == 2 and isinstance(given, int | float):
        preferred = column(row, "preference")
        if preferred == (int(given < 0) if given else None):
            return float(given)
    return margin


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
