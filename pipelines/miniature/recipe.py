"""Recipe of the miniature: base LLMs, their answers, ranker, fuser, measurement.

A step whose result exists is skipped, so a stopped recipe resumes.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers

from llm_blender_ray.configs.training import (
    AuxiliaryLosses,
    FuserTraining,
    Optimization,
    PairSampling,
    RankerTraining,
)
from llm_blender_ray.pipelines.miniature.base_llm import answer, train_base_llm
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder, save_blank_seq2seq
from llm_blender_ray.pipelines.miniature.data import METRIC, candidate_rows, fuser_rows, read_data, write_rows
from llm_blender_ray.pipelines.miniature.evaluation import MINIATURE_TOP_K, evaluate_miniature
from llm_blender_ray.pipelines.miniature.tokenizer import compact
from llm_blender_ray.pipelines.miniature.world import LLM_NAMES, Task, random_tasks
from llm_blender_ray.pipelines.train import fuser, ranker
from llm_blender_ray.pipelines.train.loop import remove_checkpoints

SPLITS = ("train", "heldout")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amount of training. Tests run the whole recipe with less than the defaults."""

    base_llm_steps: int = 600
    ranker_steps: int = 2000
    fuser_steps: int = 1400
    train_tasks: int = 16_000
    heldout_tasks: int = 1_000
    fuser_copies: int = 5  # counterfactual copies of every training row


class Miniature:
    """One miniature: a seed and the folder of everything.

    `<llm>/`, `ranker/`, `fuser/` and `heldout.jsonl` are shipped; `work/` has the intermediate results.
    """

    def __init__(self, seed: int, folder: Path, sizes: Sizes = Sizes()) -> None:
        self.seed = seed
        self.sizes = sizes
        self.folder = folder
        self.work = folder / "work"
        self.ranker, self.fuser = folder / "ranker", folder / "fuser"
        self.results = folder / "results.json"

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `heldout`, the same ones each time."""
        heldout = split == "heldout"
        count = self.sizes.heldout_tasks if heldout else self.sizes.train_tasks
        return list(islice(random_tasks(random.Random(f"{split} {self.seed}"), heldout=heldout), count))

    def rows(self, split: str) -> Path:
        """File of the split's rows with candidates."""
        return self.work / f"{split}.jsonl"

    def make_base_llm(self, name: str) -> None:
        """Train one base LLM."""
        train_base_llm(name, self.seed, self.folder / name, steps=self.sizes.base_llm_steps)

    def make_answers(self, name: str) -> None:
        """Generate one base LLM's answers to the tasks of both splits."""
        prompts = [task.prompt for split in SPLITS for task in self.tasks(split)]
        write_rows(({"text": text} for text in answer(self.folder / name, prompts)), self.answers(name))

    def answers(self, name: str) -> Path:
        """File of a base LLM's answers."""
        return self.work / f"answers-{name}.jsonl"

    def make_rows(self) -> None:
        """Combine the answers: rows to train the ranker and the fuser on, and held-out rows."""
        answers = {name: [line["text"] for line in read_data(self.answers(name))] for name in LLM_NAMES}
        begin = 0
        for split in SPLITS:
            tasks = self.tasks(split)
            end = begin + len(tasks)
            asked = [task.to_row() for task in tasks]
            rows = candidate_rows(asked, {name: texts[begin:end] for name, texts in answers.items()})
            begin = end
            rng = random.Random(f"fuser {split} {self.seed}")
            copies = self.sizes.fuser_copies if split == "train" else 1
            fused = fuser_rows(tasks, rows, rng, top_k=MINIATURE_TOP_K, copies=copies)
            write_rows(fused, self.rows(f"fuser-{split}"))
            write_rows(rows, self.rows(split))
        write_rows((task.to_row() for task in self.tasks("heldout")), self.folder / "heldout.jsonl")

    def make_ranker(self) -> None:
        """Train the ranker on the base LLMs' real answers."""
        save_blank_encoder(self.work / "blank-ranker", self.seed)
        ranker.run_ranker_training(
            RankerTraining(
                backbone=str(self.work / "blank-ranker"),
                train=str(self.rows("train")),
                heldout=str(self.rows("heldout")),
                heldout_limit=300,
                output=str(self.ranker),
                dtype="bfloat16",
                metrics=(METRIC,),
                source_max_length=128,
                candidate_max_length=64,
                dropout=0.0,
                pairs=PairSampling(sampling="all_pair", per_row=4),
                auxiliary=AuxiliaryLosses(reference_token=1.0, token_is_right=1.0),
                optimization=self._optimization(self.sizes.ranker_steps),
            )
        )
        compact(self.ranker)
        remove_checkpoints(self.ranker)

    def make_fuser(self) -> None:
        """Train the fuser on counterfactual rows."""
        save_blank_seq2seq(self.work / "blank-fuser", self.seed)
        fuser.run_fuser_training(
            FuserTraining(
                model=str(self.work / "blank-fuser"),
                train=str(self.rows("fuser-train")),
                heldout=str(self.rows("fuser-heldout")),
                heldout_limit=300,
                output=str(self.fuser),
                dtype="bfloat16",
                top_k=MINIATURE_TOP_K,
                max_length=512,
                candidate_max_length=64,
                output_max_length=64,
                optimization=self._optimization(self.sizes.fuser_steps),
            )
        )
        compact(self.fuser)
        remove_checkpoints(self.fuser)

    def _optimization(self, steps: int) -> Optimization:
        return Optimization(
            learning_rate=1e-3,
            max_steps=steps,
            batch_size=32,
            schedule="cosine",
            warmup_share=0.1,
            weight_decay=0.01,
            seed=self.seed,
            log_every=100,
            evaluate_every=200,
        )

    def measure(self) -> None:
        """Measure the shipped weights on the held-out rows."""
        results = {"seed": self.seed} | evaluate_miniature(
            read_data(self.rows("heldout")), self.ranker, self.fuser, self.seed
        )
        self.results.write_text(json.dumps(results, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One step; it is done when the last file that it writes exists."""

    make: Callable[..., object]
    arguments: tuple[str, ...]
    result: Path

    def __call__(self) -> None:
        """Run the step and print its duration."""
        begin = time.monotonic()
        self.make(*self.arguments)
        name = " ".join((self.make.__name__, *self.arguments)).replace("_", " ")
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def stages(miniature: Miniature) -> list[list[RecipeStep]]:
    """Stages of steps: a step needs the steps of earlier stages, not those of its own."""
    last = "tokenizer.json"
    return [
        [RecipeStep(miniature.make_base_llm, (name,), miniature.folder / name / last) for name in LLM_NAMES],
        [RecipeStep(miniature.make_answers, (name,), miniature.answers(name)) for name in LLM_NAMES],
        [RecipeStep(miniature.make_rows, (), miniature.folder / "heldout.jsonl")],
        [
            RecipeStep(miniature.make_fuser, (), miniature.fuser / last),
            RecipeStep(miniature.make_ranker, (), miniature.ranker / last),
        ],
        [RecipeStep(miniature.measure, (), miniature.results)],
    ]


def make(miniature: Miniature, *, workers: int) -> dict[str, Any]:
    """Run all steps, those of a stage in parallel in `workers` processes of one thread each.

    Returns:
        The result of `evaluate_miniature`, and the seed.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet_worker) as pool:
        for stage in stages(miniature):
            for running in [pool.submit(step) for step in stage if not step.result.exists()]:
                running.result()
    return json.loads(miniature.results.read_text())


def _quiet_worker() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
