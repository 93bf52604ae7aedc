"""Numbers of a report: one pass over a run's rows, which may be millions, in little memory.

Counts and means cover all rows. What is expensive (comparing texts with references) or must be held in memory
(lengths, for their quantiles; example rows) covers a random sample once there are more than `SAMPLE` rows. Hashes
of ids choose the sample, so the same rows give the same report, however they are split into files.
"""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Self

from llm_blender_ray.pipelines.quality.contest import Contest
from llm_blender_ray.pipelines.quality.error_kinds import ErrorKinds
from llm_blender_ray.pipelines.quality.evaluation import Quality, name_of
from llm_blender_ray.pipelines.quality.judgements import Outcome, read_llm_judgements, read_outcomes
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.metrics import Metric

SAMPLE = 5_000  # most rows of the sample; of more rows it holds at least about half as many
EXAMPLES = 3


@dataclass
class ModelNumbers:
    """One LLM. Shares are counted per row, and split among tied answers.

    Attributes:
        answers: Candidates with a text.
        failed: Candidates with an error.
        finish: Answers by finish_reason, '' if unknown.
        characters: Length of an answer.
        tokens: Length of an answer.
        rank: 1 is the best.
        first: Share of the rows that rank it in which it is the best.
        fused: Share of the fused rows with an answer of this LLM in which the fuser got that answer.
        errors: Errors by kind.
    """

    answers: int = 0
    failed: int = 0
    finish: Counter[str] = field(default_factory=Counter)
    characters: Mean = field(default_factory=Mean)
    tokens: Mean = field(default_factory=Mean)
    rank: Mean = field(default_factory=Mean)
    first: Mean = field(default_factory=Mean)
    fused: Mean = field(default_factory=Mean)
    errors: ErrorKinds = field(default_factory=ErrorKinds)


@dataclass
class OrderAgreement:
    """Pairs of different answers with a logit in both orders.

    Attributes:
        pairs: Number of pairs.
        agreeing: Pairs of which both orders prefer the same answer (a tie must be one in both).
        mirrored: Pairs whose two logits are each other's negative: one forward gave both, as for a reward model.
        bias: Half of logit(i, j) + logit(j, i), the advantage of the left position.
        margin: Half of |logit(i, j) - logit(j, i)|, the difference of the answers.
    """

    pairs: int = 0
    agreeing: int = 0
    mirrored: int = 0
    bias: Mean = field(default_factory=Mean)
    margin: Mean = field(default_factory=Mean)


class Sample:
    """Quality and lengths of some rows; lengths in characters by LLM, of the fused answers under None."""

    def __init__(self, metrics: Sequence[Metric] | None = None, order_by: Metric | None = None) -> None:
        """Start without rows; the metrics are those of `Quality`."""
        self.rows = 0
        self.quality = Quality(metrics, order_by)
        self.lengths: dict[str | None, list[int]] = defaultdict(list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self.rows += 1
        self.quality.add(row)
        for index, one in enumerate(row["candidates"] or ()):
            if one["text"] is not None:
                self.lengths[name_of(one, index)].append(len(one["text"]))
        if row["fused"] is not None:
            self.lengths[None].append(len(row["fused"]))

    def merge(self, other: Self) -> None:
        """Add the rows of another sample."""
        self.rows += other.rows
        self.quality.merge(other.quality)
        for name, lengths in other.lengths.items():
            self.lengths[name] += lengths


class RowSampling:
    """Sample of a stream of unknown length.

    Every row has a level: half of them 0, a quarter 1, an eighth 2, ... Each level is summed up by itself. When
    together they hold too many rows, the lowest is dropped, and its rows are skipped from then on.
    """

    def __init__(self, most: int, start: Callable[[], Sample] = Sample) -> None:
        """Sample at most so many rows; `start` makes a sample without rows."""
        self._most, self._floor, self._start = most, 0, start
        self._levels: dict[int, Sample] = defaultdict(start)

    def add(self, row: Mapping[str, Any], key: int) -> None:
        """Add one row.

        Args:
            row: The row.
            key: 64 random bits, the same for the same row.
        """
        level = 64 - key.bit_length()
        if level < self._floor:
            return
        self._levels[level].add(row)
        while sum(sample.rows for sample in self._levels.values()) > self._most and len(self._levels) > 1:
            lowest = min(self._levels)
            del self._levels[lowest]
            self._floor = lowest + 1

    def result(self) -> Sample:
        """Sample of all remaining levels."""
        whole = self._start()
        for _, sample in sorted(self._levels.items()):
            whole.merge(sample)
        return whole


@dataclass
class Numbers:
    """All numbers of a run's rows.

    Attributes:
        above: How often an answer of the first LLM is ranked above one of the second, ties not counted.
        met: How often both are ranked.
        compared: Rows with a number of forwards.
        forwards: Sum of these numbers.
        full: Forwards that comparing all pairs of their different answers in both orders would take.
        longest_first: Share of rows in which the best answer is the longest.
        by_chance: The same share if length did not matter.
        longer_above: Share of pairs in which the longer answer is ranked above.
        contest: Judgements of all rows.
        by_llms: Outcomes of LLM judges in `judgements`.
    """

    rows: int = 0
    errors: ErrorKinds = field(default_factory=ErrorKinds)
    models: dict[str, ModelNumbers] = field(default_factory=lambda: defaultdict(ModelNumbers))
    with_candidates: int = 0
    ranked: int = 0
    fused: int = 0
    fused_characters: Mean = field(default_factory=Mean)
    above: Counter[tuple[str, str]] = field(default_factory=Counter)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: int = 0
    forwards: int = 0
    full: int = 0
    orders: OrderAgreement = field(default_factory=OrderAgreement)
    longest_first: Mean = field(default_factory=Mean)
    by_chance: Mean = field(default_factory=Mean)
    longer_above: Mean = field(default_factory=Mean)
    sample: Sample = field(default_factory=Sample)
    examples: list[dict[str, Any]] = field(default_factory=list)
    contest: Contest = field(default_factory=Contest)
    by_llms: list[Outcome] = field(default_factory=list)

    def share_above(self, one: str, other: str) -> float | None:
        """Share of the rows that rank both in which `one` is above `other`; None if there are none."""
        met = self.met[one, other]
        return self.above[one, other] / met if met else None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row of `read_rows`, to all numbers but the sample."""
        self.rows += 1
        if row["error"] is not None:
            self.errors.add(row["error"])
        candidates = row["candidates"] or []
        names = [name_of(one, index) for index, one in enumerate(candidates)]
        self.with_candidates += bool(candidates)
        for name, one in zip(names, candidates, strict=True):
            self._answer(self.models[name], one)
        if row["fused"] is not None:
            self.fused += 1
            self.fused_characters.add(len(row["fused"]))
            taken = {names[index] for index in row["fused_from"] or ()}
            for name in {name for name, one in zip(names, candidates, strict=True) if one["text"] is not None}:
                if row["fused_from"]:
                    self.models[name].fused.add(name in taken)
        if row["ranking"]:
            self.ranked += 1
            self._ranking(names, [one["text"] or "" for one in candidates], row["ranking"], row["scores"])
        if row["comparisons"] is not None:
            different = len({one["text"] for one in candidates if one["text"] is not None})
            self.compared += 1
            self.forwards += row["comparisons"]
            self.full += different * (different - 1)
        if row["logits"]:
            self._orders([one["text"] for one in candidates], row["logits"])

    def _answer(self, model: ModelNumbers, candidate: Mapping[str, Any]) -> None:
        if candidate["text"] is None:
            model.failed += 1
            model.errors.add(candidate["error"] or "no text given")
            return
        model.answers += 1
        model.finish[candidate["finish_reason"] or ""] += 1
        model.characters.add(len(candidate["text"]))
        if candidate["completion_tokens"] is not None:
            model.tokens.add(candidate["completion_tokens"])

    def _ranking(
        self,
        names: Sequence[str],
        texts: Sequence[str],
        order: Sequence[int],
        scores: Sequence[float | None] | None,
    ) -> None:
        """Count which LLM is above which. Equal answers and equal scores tie, whatever their order."""
        rank = dict.fromkeys(order, 1.0)
        for i, j in combinations(order, 2):  # i stands before j
            tied = texts[i] == texts[j] or (scores is not None and scores[i] is not None and scores[i] == scores[j])
            rank[i] += 0.5 * tied
            rank[j] += 0.5 if tied else 1.0
            if names[i] != names[j]:
                self.met[names[i], names[j]] += 1
                self.met[names[j], names[i]] += 1
                self.above[names[i], names[j]] += not tied
            if not tied and len(texts[i]) != len(texts[j]):
                self.longer_above.add(len(texts[i]) > len(texts[j]))
        best = min(rank.values())
        first = [i for i in order if rank[i] == best]
        share: dict[str, float] = dict.fromkeys((names[i] for i in order), 0.0)
        for i in order:
            self.models[names[i]].rank.add(rank[i])
            share[names[i]] += (i in first) / len(first)
        for name, value in share.items():
            self.models[name].first.add(value)
        length = max(len(texts[i]) for i in order)
        longest = [i for i in order if len(texts[i]) == length]
        if len(longest) < len(order):
            self.longest_first.add(sum(i in first for i in longest) / len(first))
            self.by_chance.add(len(longest) / len(order))

    def _orders(self, texts: Sequence[str | None], logits: Sequence[Sequence[float | None]]) -> None:
        players = {text: index for index, text in reversed(list(enumerate(texts))) if text is not None}
        for i, j in combinations(players.values(), 2):  # the first candidate of each text
            forth, back = logits[i][j], logits[j][i]
            if forth is None or back is None:
                continue
            self.orders.pairs += 1
            self.orders.agreeing += forth * back < 0 or forth == back == 0
            self.orders.mirrored += forth == -back
            self.orders.bias.add((forth + back) / 2)
            self.orders.margin.add(abs(forth - back) / 2)


def count(
    rows: Iterable[Mapping[str, Any]],
    sample: int = SAMPLE,
    metrics: Sequence[Metric] | None = None,
    order_by: Metric | None = None,
) -> Numbers:
    """Numbers of rows as `read_rows` gives them.

    Args:
        rows: The rows.
        sample: Most rows of the sample.
        metrics: See `Quality`.
        order_by: See `Quality`.
    """
    numbers, sampling = Numbers(), RowSampling(sample, functools.partial(Sample, metrics, order_by))
    examples: list[tuple[int, dict[str, Any]]] = []
    for row in rows:
        key = int.from_bytes(hashlib.blake2b(row["id"].encode(), digest_size=8).digest(), "big")
        numbers.add(row)
        numbers.contest.add(row)
        numbers.by_llms += read_outcomes([row], read=read_llm_judgements)
        sampling.add(row, key)
        if row["error"] is None and row["candidates"] and (len(examples) < EXAMPLES or key < examples[-1][0]):
            examples = sorted([*examples, (key, dict(row))], key=lambda item: item[0])[:EXAMPLES]
    numbers.contest.finish()
    numbers.sample = sampling.result()
    numbers.examples = [row for _, row in examples]
    return numbers


def by_standing(numbers: Numbers) -> list[str]:
    """Names of the LLMs, best mean rank first; those never ranked last, by name."""

    def standing(name: str) -> tuple[float, str]:
        rank = numbers.models[name].rank.value
        return (float("inf") if rank is None else rank), name

    return sorted(numbers.models, key=standing)


def errors_of_models(numbers: Numbers) -> Iterator[tuple[str, str, int]]:
    """(LLM, kind of error, count), most frequent first."""
    found = [(name, kind, n) for name, model in numbers.models.items() for kind, n in model.errors.counts.items()]
    yield from sorted(found, key=lambda item: (-item[2], item[0], item[1]))
