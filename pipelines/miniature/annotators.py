"""Simulated annotators of the miniature: votes of a known taste and a known share of errors.

They read the first answer first: of two answers they prefer the one that is right in the first part in which the
other is not. The shipped ranker counts correct parts, so it has to learn this taste from votes.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from llm_blender_ray.pipelines.miniature.world import LLM_NAMES, Beliefs, Task
from llm_blender_ray.pipelines.quality.metrics import numbered_parts

_AT = "2026-11-28T12:00:00+00:00"


def right_parts(task: Task, text: str) -> list[bool]:
    """Which parts of an answer are right, in the order of the questions: of two lists the larger is preferred."""
    parts = numbered_parts(text) or []
    return [part == question.answer for part, question in zip(parts, task.questions, strict=False)]


def voted_rows(
    tasks: Sequence[Task], error: float, rng: random.Random, *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Endless rows with two base LLMs' answers and a vote, as the service writes them.

    Args:
        tasks: Prompts to draw from.
        error: Share of votes for the worse answer.
        rng: Decides prompts, answers, sides and errors.
        seed: Of the miniature, whose base LLMs believe what `Beliefs` has.
    """
    llms = {name: Beliefs(name, seed) for name in LLM_NAMES}
    while True:
        task = rng.choice(tasks)
        names = rng.sample(LLM_NAMES, 2)
        texts = [llms[name].answers(task) for name in names]
        left, right = (right_parts(task, text) for text in texts)
        if left == right:
            continue
        preferred = ("left", "right")[(left < right) != (rng.random() < error)]
        yield {
            **task.to_row(),
            "candidates": [{"model": name, "text": text} for name, text in zip(names, texts, strict=True)],
            "vote": {"left": 0, "right": 1, "preferred": preferred, "at": _AT},
        }
