"""What one row's judgements and scores say about each of its answers, and which answers a system would have given.

GPT-Rank is LLM-Blender's (`gpt_eval/utils.py`): an answer gets +1 for each comparison won and -1 for each lost;
"same good" and "same bad" change neither's points. Its rank is 1 + the number of answers with more points: ties
share the better rank. In ">= model", a win counts 1, "same good" and a plain tie 1/2, "same bad" and a loss 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from llm_blender_ray.pipelines.quality.judgements import (
    BLEND_CONTESTANT,
    RANKER_CONTESTANT,
    SWAPPED,
    Judgement,
    Preferred,
)
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, name_of

RANDOM_CHOICE = "random choice"
AT_LEAST: dict[Preferred, float] = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_good": 0.5, "both_bad": 0.0}
"""What a judgement counts for its left answer in ">="."""
WINS: dict[Preferred, float] = AT_LEAST | {"both_bad": 0.5}
"""The same in a win rate."""


def oracle_of(score: str) -> str:
    """Name of the system that takes a row's best candidate by a score."""
    return f"oracle by {score}"


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One row's answers, judgements and scores.

    Attributes:
        names: Model of each answer; `blend` for the fused one.
        chosen: The ranker's first candidate.
        scores: For each score or metric, its value for the answers that have one.
        slice: Values of the columns that results are sliced by.
        prompt: Index of its prompt, the unit that means and bootstraps are over.
        count: Number of given rows that it is made of.
    """

    names: Mapping[Side, str]
    judgements: Sequence[Judgement]
    chosen: Side | None = None
    scores: Mapping[str, Mapping[Side, float]] = field(default_factory=dict)
    slice: tuple[str, ...] = ()
    prompt: int = 0
    count: int = 1

    def contestants(self) -> dict[str, list[Side]]:
        """Answers of each model, of the blend and of the ranker's choice."""
        found: dict[str, list[Side]] = {}
        for side, name in self.names.items():
            found.setdefault(name, []).append(side)
        return found | ({} if self.chosen is None else {RANKER_CONTESTANT: [self.chosen]})

    def systems(self, signs: Mapping[str, int]) -> dict[str, list[Side]]:
        """The contestants' answers, those that random choice is among, and those with the best value of each score.

        Args:
            signs: -1 for a score of which lower is better.
        """
        candidates: list[Side] = [side for side in self.names if side != FUSED]
        found = self.contestants() | {RANDOM_CHOICE: candidates}
        for name, values in self.scores.items():
            known = {side: signs.get(name, 1) * values[side] for side in candidates if side in values}
            found[oracle_of(name)] = [side for side, value in known.items() if value == max(known.values())]
        return found

    def ranks(self) -> dict[Side, int]:
        """GPT-Rank of each answer that is judged."""
        points: dict[Side, int] = defaultdict(int)
        for one in self.judgements:
            points[one.left] += one.sign
            points[one.right] -= one.sign
        return {side: 1 + sum(other > own for other in points.values()) for side, own in points.items()}

    def shares(self, opponent: str | None, counts: Mapping[Preferred, float]) -> dict[Side, float]:
        """Mean of what the judgements of each answer count.

        Args:
            opponent: Count judgements against this model's answers; None: against any. The opponent's own answer,
                which a ranker may have chosen, counts 1/2.
            counts: What a judgement counts for its left answer.
        """
        found: dict[Side, list[float]] = defaultdict(list)
        for one in self.judgements:
            for side, other, preferred in (
                (one.left, one.right, one.preferred),
                (one.right, one.left, SWAPPED[one.preferred]),
            ):
                if opponent is None or self.names[other] == opponent != self.names[side]:
                    found[side].append(counts[preferred])
        own = {} if opponent is None else {side: 0.5 for side, name in self.names.items() if name == opponent}
        return own | {side: fmean(values) for side, values in found.items()}


def answers_of(row: Mapping[str, Any]) -> dict[Side, str]:
    """Contestant that each answer of a row of `rows.readers.read_rows` is of."""
    names: dict[Side, str] = {at: name_of(one, at) for at, one in enumerate(row["candidates"] or ())}
    return names | ({FUSED: BLEND_CONTESTANT} if row["fused"] is not None else {})


def implied_judgements(score: str, values: Mapping[Side, float], sign: int = 1) -> list[Judgement]:
    """Judgements of all pairs of answers that a score makes; equal scores are ties.

    Args:
        score: Name of the score, which is the judge.
        values: Its values.
        sign: -1 where lower is better.
    """
    found = []
    for left, right in combinations(values, 2):
        lead = sign * (values[left] - values[right])
        preferred: Preferred = "left" if lead > 0 else "right" if lead < 0 else "tie"
        found.append(Judgement(judge=score, left=left, right=right, preferred=preferred))
    return found


def systems_of(rows: Iterable[JudgedRow]) -> list[str]:
    """Models in the order of their appearance, then the ranker's choice and the blend where there is one."""
    models: dict[str, None] = {}
    chosen = fused = False
    for row in rows:
        models |= dict.fromkeys(name for side, name in row.names.items() if side != FUSED)
        chosen |= row.chosen is not None
        fused |= FUSED in row.names
    return [*models, *[RANKER_CONTESTANT] * chosen, *[BLEND_CONTESTANT] * fused]
