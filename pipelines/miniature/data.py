"""Rows for the ranker and the fuser: the base LLMs' real answers, and counterfactual copies of them."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from llm_blender_ray.pipelines.miniature.world import SORT, TABLES, Question, Task, numbered
from llm_blender_ray.pipelines.quality.metrics import numbered_parts, parts_right

METRIC = "parts"  # key of candidates[].scores


def candidate_rows(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The rows with every LLM's answer and the share of its correct parts.

    Args:
        rows: The rows.
        answers: Each LLM's answers, in the order of `rows`.
    """
    return [
        {
            **row,
            "candidates": [
                {"model": name, "text": texts[i], "scores": {METRIC: parts_right(row["output"], texts[i])}}
                for name, texts in answers.items()
            ],
        }
        for i, row in enumerate(rows)
    ]


def fuser_rows(
    tasks: Sequence[Task], rows: Sequence[Mapping[str, Any]], rng: random.Random, *, top_k: int, copies: int
) -> Iterator[dict[str, Any]]:
    """Counterfactual rows with the `top_k` best candidates, best first: `copies` of every row.

    A fuser that sees only true references learns the facts by heart and ignores its candidates. So in half of the
    parts the true value is swapped with another of its kind, in reference and candidates alike: there memory is
    wrong, and only the candidates and their agreement lead to the reference.
    """
    for _ in range(copies):
        for task, row in zip(tasks, rows, strict=True):
            swaps = [
                {} if rng.random() < 0.5 else _swap(question.answer, _another_value(question, rng))
                for question in task.questions
            ]
            candidates = rng.sample(row["candidates"], len(row["candidates"]))  # random order of equal scores
            candidates.sort(key=lambda candidate: candidate["scores"][METRIC], reverse=True)
            yield {
                **row,
                "output": _swapped(row["output"], swaps),
                "candidates": [c | {"text": _swapped(c["text"], swaps)} for c in candidates[:top_k]],
            }


def _swap(one: str, other: str) -> dict[str, str]:
    return {one: other, other: one}


def _another_value(question: Question, rng: random.Random) -> str:
    """A wrong answer of the question's kind."""
    if question.skill == SORT:
        values: Iterable[str] = (" ".join(order) for order in permutations(sorted(question.keys)))
    else:
        values = sorted(TABLES[question.skill].values())
    return rng.choice([value for value in values if value != question.answer])


def _swapped(text: str, swaps: Sequence[Mapping[str, str]]) -> str:
    """The text with the swaps of its parts; a text without all parts stays unchanged."""
    given = numbered_parts(text)
    if given is None or len(given) != len(swaps):
        return text
    return numbered([swap.get(part, part) for part, swap in zip(given, swaps, strict=True)])


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one JSON object a line; the file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


def read_data(path: Path) -> list[dict[str, Any]]:
    """Read the rows of `write_rows`."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
