"""A ranker before and after it learns from votes: the miniature's, and simulated annotators with another taste.

    python -m llm_blender_ray.pipelines.bench.ranker_votes --votes 500 --error 0.1

For each seed the shipped ranker is trained on votes (`blend train ranker` with `judgements`) and measured on those
of other prompts, before and after. Progress goes to stderr; JSON comes last.
"""

import contextlib
import json
import random
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.training import JudgementPairs, Optimization, RankerTraining
from llm_blender_ray.pipelines.miniature.annotators import voted_rows
from llm_blender_ray.pipelines.miniature.data import write_rows
from llm_blender_ray.pipelines.miniature.world import random_tasks
from llm_blender_ray.pipelines.train.heldout import HeldoutResult, measure_heldout
from llm_blender_ray.pipelines.train.judged_pairs import read_judged_pairs
from llm_blender_ray.pipelines.train.ranker import run_ranker_training

SHIPPED_RANKER = PRESETS / "miniature" / "ranker"
HELDOUT_VOTES = 400
_PROMPTS = (1000, 500)  # to learn from, to measure on


def train_on_votes(
    folder: Path, votes: int, error: float, seed: int, *, steps: int, heldout_votes: int = HELDOUT_VOTES
) -> tuple[HeldoutResult, HeldoutResult]:
    """Train the shipped ranker on simulated votes.

    Args:
        folder: For votes and ranker.
        votes: How many to learn from.
        error: Share of votes for the worse answer, also of those that it is measured on.
        seed: Of prompts, votes and training.
        steps: Updates of 16 pairs.
        heldout_votes: How many to measure on, of other prompts.

    Returns:
        The held-out votes before and after.
    """
    tasks = list(islice(random_tasks(random.Random(f"votes {seed}"), heldout=True), sum(_PROMPTS)))
    files = {}
    for name, some, count in (
        ("train", tasks[: _PROMPTS[0]], votes),
        ("heldout", tasks[_PROMPTS[0] :], heldout_votes),
    ):
        files[name] = str(folder / f"{name}.jsonl")
        write_rows(islice(voted_rows(some, error, random.Random(f"{name} {seed}")), count), Path(files[name]))
    config = RankerTraining(
        backbone=str(SHIPPED_RANKER),
        train=files["train"],
        output=str(folder / "ranker"),
        judgements=JudgementPairs(),
        source_max_length=128,
        candidate_max_length=64,
        dropout=0.0,
        optimization=Optimization(
            learning_rate=3e-4,
            max_steps=steps,
            batch_size=16,
            schedule="cosine",
            warmup_share=0.1,
            seed=seed,
            log_every=20,
        ),
    )
    rows, pairs = read_judged_pairs(files["heldout"], JudgementPairs(), seed)
    decided = [pair for pair in pairs if pair.lead[0]]
    before = measure_heldout(config.backbone, rows, decided)
    with contextlib.redirect_stdout(sys.stderr):
        run_ranker_training(config)
    return before, measure_heldout(config.output, rows, decided)


def main(
    votes: Annotated[int, typer.Option(min=1, help="Votes to learn from.")] = 500,
    error: Annotated[float, typer.Option(min=0, max=0.5, help="Share of votes for the worse answer.")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Updates of 16 pairs.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings, each with prompts and votes of its own.")] = 3,
) -> None:
    """Print accuracies on held-out votes before and after, for each seed."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            before, after = train_on_votes(Path(folder), votes, error, seed, steps=steps)
        seconds = time.process_time() - began
        print(f"seed {seed}: before {before.line()}", file=sys.stderr)
        print(f"seed {seed}: after {after.line()}; {after.gain_line(before)}", file=sys.stderr)
        found.append(
            {
                "seed": seed,
                "before": before.accuracy.accuracy,
                "after": after.accuracy.accuracy,
                "gain": after.gain_over(before),
                "cpu_seconds": round(seconds, 1),
            }
        )
    print(json.dumps({"votes": votes, "error": error, "steps": steps, "trainings": found}))


if __name__ == "__main__":
    typer.run(main)
