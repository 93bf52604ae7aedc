"""Pairs that judgements decide: votes, verdicts of LLM judges, `cmp_results`, preference data sets."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Prompt, digest, read_prompt
from llm_blender_ray.configs.training import JudgementPairs
from llm_blender_ray.pipelines.quality.judgements import read_judgements
from llm_blender_ray.pipelines.quality.votes import side_text
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.user_columns import column
from llm_blender_ray.pipelines.train.pairs import TrainingPair
from llm_blender_ray.pipelines.train.rows import TrainingRow


@dataclass
class _JudgedPrompt:
    """Answers to one prompt and how often each of two was preferred."""

    prompt: Prompt
    reference: str | None
    texts: dict[str, int] = field(default_factory=dict)
    wins: dict[tuple[int, int], float] = field(default_factory=dict)  # weight for the first over the second

    def add(self, texts: tuple[str, str], shares: tuple[float, float], weight: float) -> None:
        """Add a judgement of two different texts."""
        left, right = (self.texts.setdefault(text, len(self.texts)) for text in texts)
        for pair, share in (((left, right), shares[0]), ((right, left), shares[1])):
            self.wins[pair] = self.wins.get(pair, 0.0) + weight * share


def read_judged_pairs(
    uri: str, settings: JudgementPairs, seed: int, limit: int | None = None
) -> tuple[list[TrainingRow], list[TrainingPair]]:
    """Read the judged pairs of the rows at `uri`, each on random sides.

    Rows with the same prompt are one, and the judgements of one pair are one training pair: `lead` is the share of
    its weight for left less that for right, from -1 to 1.

    Args:
        uri: The rows.
        settings: Which judgements count, and how much.
        seed: Of the sides.
        limit: Rows to read.

    Returns:
        Rows whose texts are the judged ones, and pairs of them. Weights of pairs have the mean 1.

    Raises:
        BlendError: A row has an error or no usable weight, or there are no judgements.
    """
    prompts: dict[bytes, _JudgedPrompt] = {}
    count = 0
    for count, row in enumerate(read_rows(uri, limit), 1):  # noqa: B007 (used in the message below)
        if row["error"] is not None:
            raise BlendError(row["error"])
        prompt, weight = read_prompt(row), _row_weight(row, settings.weight_column)
        for one in read_judgements(row):
            texts = (side_text(row, one.left) or "", side_text(row, one.right) or "")
            wanted = settings.judges is None or one.judge in settings.judges
            of_one = weight * settings.weights.get(one.judge, 1.0)
            if not wanted or texts[0] == texts[1] or not of_one or (settings.ties == "drop" and not one.sign):
                continue
            judged = prompts.setdefault(digest(prompt), _JudgedPrompt(prompt, row["output"]))
            judged.add(texts, ((1 + one.sign) / 2, (1 - one.sign) / 2), of_one)
    rng = random.Random(seed)
    pairs = [pair for number, judged in enumerate(prompts.values()) for pair in _pairs(number, judged.wins, rng)]
    if not pairs:
        of = f" of {', '.join(settings.judges)}" if settings.judges else ""
        raise BlendError(f"{uri}: no judgements{of} of two different answers in {count} rows")
    mean = sum(pair.weight for pair in pairs) / len(pairs)
    rows = [
        TrainingRow(one.prompt, tuple(one.texts), ({},) * len(one.texts), one.reference, None)
        for one in prompts.values()
    ]
    return rows, [replace(pair, weight=pair.weight / mean) for pair in pairs]


def _pairs(row: int, wins: Mapping[tuple[int, int], float], rng: random.Random) -> list[TrainingPair]:
    found = []
    for left, right in wins:
        if left < right:
            for_left, for_right = wins[left, right], wins[right, left]
            weight = for_left + for_right
            lead = (for_left - for_right) / weight
            swap = rng.random() < 0.5
            sides = (right, left) if swap else (left, right)
            found.append(TrainingPair(row, *sides, (-lead if swap else lead,), weight))
    return found


def _row_weight(row: Mapping[str, Any], name: str | None) -> float:
    if name is None:
        return 1.0
    value = column(row, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BlendError(f"row {row['id']}: {name}: expected a weight >= 0, got {value!r}")
    return float(value)
