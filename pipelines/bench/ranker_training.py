"""What it takes to train a PairRanker on real text: backbones, losses, samplings and steps against simple rules.

    python -m llm_blender_ray.pipelines.bench.ranker_training rows.jsonl --config trials.yaml --output result.json

Rows have scored candidates, as MixInstruct's. Prompts are split by a hash, so that none is in both parts. Every
number of steps is a training of its own with a whole schedule, by `blend train ranker`'s code; the saved ranker
then compares held-out pairs in both orders. Intervals are of a bootstrap over prompts. Progress goes to stderr;
JSON comes last.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
from pydantic import Field
from safetensors import safe_open

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.configs.loading import ConfigError, load
from llm_blender_ray.configs.losses import PairwiseLoss
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.training import Optimization, PairSampling, RankerTraining
from llm_blender_ray.pipelines.bench.bag_of_words import train_bag_of_words
from llm_blender_ray.pipelines.bench.workload import train_tokenizer
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder, save_blank_modernbert
from llm_blender_ray.pipelines.quality.pair_accuracy import PairAccuracy, pair_accuracy
from llm_blender_ray.pipelines.train.heldout import heldout_pairs, measure_heldout
from llm_blender_ray.pipelines.train.pairs import TrainingPair, scored_pairs
from llm_blender_ray.pipelines.train.ranker import run_ranker_training
from llm_blender_ray.pipelines.train.rows import TrainingRow, read_training_rows

# Backbones with random weights and a tokenizer made of the training rows
RANDOM_BACKBONES = {"blank": save_blank_encoder, "blank-modernbert": save_blank_modernbert}
TRIALS = Path(__file__).with_suffix(".yaml")


class Trial(Settings):
    """A backbone and how it is trained."""

    name: str
    backbone: str  # folder, or one of `RANDOM_BACKBONES`
    learning_rate: float
    steps: Annotated[tuple[int, ...], Field(min_length=1)]  # each a training of its own
    batch_size: int = 32  # pairs a step
    source_max_length: int
    candidate_max_length: int
    pairs: PairSampling = PairSampling(sampling="all_pair", per_row=55)
    loss: PairwiseLoss | None = None
    seed: int | None = None  # of the training; None: that of the split
    dropout: float = 0.05
    bf16: bool | Literal["auto"] = "auto"  # see `Optimization`


class Trials(Settings):
    """What is tried on one file of rows."""

    metric: str  # key of candidates[].scores
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the prompts
    heldout_per_row: int = 30  # pairs of each held-out row
    clear: float = 0.1  # least difference of the scores of a clear pair
    seed: int = 0
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of a file in two parts, as written and as read."""

    train: Path
    heldout: Path
    train_rows: tuple[Mapping[str, Any], ...]
    heldout_rows: tuple[Mapping[str, Any], ...]


def split_rows(file: Path, folder: Path, *, share: float, seed: int, limit: int | None = None) -> Split:
    """Split rows by their prompts.

    Args:
        file: JSON lines with scored candidates.
        folder: Where both parts are written.
        share: Of held-out prompts.
        seed: Decides which.
        limit: Number of rows to read; None: all.

    Returns:
        The parts; rows of one prompt are in one of them.

    Raises:
        BlendError: A part has no row.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {"train": [], "heldout": []}
    for line in file.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        prompt = " ".join(f"{row.get('instruction') or ''} {row.get('input') or ''}".lower().split())
        digest = hashlib.blake2b(f"{seed} {prompt}".encode(), digest_size=8).digest()
        heldout = int.from_bytes(digest) < share * 2**64
        parts["heldout" if heldout else "train"].append(row)
    for name, rows in parts.items():
        if not rows:
            raise BlendError(f"{file}: no row for {name}; give more rows, or another heldout_share")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Split(folder / "train.jsonl", folder / "heldout.jsonl", tuple(parts["train"]), tuple(parts["heldout"]))


def accuracies(
    pairs: Sequence[TrainingPair], leads: Sequence[float], clear: float
) -> dict[str, dict[str, float] | None]:
    """Accuracy of leads on all pairs and on the clear ones; None where there are none."""

    def over(chosen: Sequence[int]) -> dict[str, float] | None:
        if not chosen:
            return None
        accuracy: PairAccuracy = pair_accuracy(
            [pairs[i].row for i in chosen], [leads[i] for i in chosen], [sum(pairs[i].lead) for i in chosen]
        )
        return asdict(accuracy)

    return {
        "all": over(range(len(pairs))),
        "clear": over([i for i, pair in enumerate(pairs) if abs(sum(pair.lead)) >= clear]),
    }


def baselines(
    split: Split, rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair], trials: Trials
) -> dict[str, Any]:
    """Accuracies of rules: the longer answer; the model that is better on the training rows; a bag of words."""
    scores: dict[str, list[float]] = {}
    for row in split.train_rows:
        for candidate in row["candidates"]:
            scores.setdefault(candidate["model"], []).append(candidate["scores"][trials.metric])
    means = {model: sum(values) / len(values) for model, values in scores.items()}
    models = [[c["model"] for c in row["candidates"] if c["text"] is not None] for row in split.heldout_rows]

    def length(pair: TrainingPair) -> float:
        left, right = (rows[pair.row].texts[i] for i in (pair.left, pair.right))
        return float(len(left) - len(right))

    def prior(pair: TrainingPair) -> float:
        left, right = (means.get(models[pair.row][i], 0.0) for i in (pair.left, pair.right))
        return left - right

    train_rows = read_training_rows(str(split.train))
    sampling = PairSampling(sampling="all_pair", per_row=10)
    bag = train_bag_of_words(train_rows, list(scored_pairs(train_rows, (trials.metric,), sampling, trials.seed)))

    def words(pair: TrainingPair) -> float:
        left, right = (rows[pair.row].texts[i] for i in (pair.left, pair.right))
        return bag.score(left) - bag.score(right)

    rules: dict[str, Callable[[TrainingPair], float]] = {
        "the longer answer": length,
        "order of the models": prior,
        "bag of words": words,
    }
    return {name: accuracies(pairs, [rule(pair) for pair in pairs], trials.clear) for name, rule in rules.items()}


def run_trial(
    trial: Trial,
    steps: int,
    backbone: str,
    split: Split,
    heldout: tuple[Sequence[TrainingRow], Sequence[TrainingPair]],
    trials: Trials,
    folder: Path,
) -> dict[str, Any]:
    """Train one ranker and measure it.

    Args:
        trial: What is tried.
        steps: Of the training.
        backbone: Folder of the backbone.
        split: The rows.
        heldout: Rows and pairs to measure on.
        trials: Metric and seed.
        folder: For the ranker; it may be large.

    Returns:
        Figures of one training.

    Raises:
        BlendError: It can't be trained.
    """
    begin = time.monotonic()
    run_ranker_training(
        RankerTraining(
            backbone=backbone,
            train=str(split.train),
            output=str(folder),
            metrics=(trials.metric,),
            source_max_length=trial.source_max_length,
            candidate_max_length=trial.candidate_max_length,
            dropout=trial.dropout,
            pairs=trial.pairs,
            loss=trial.loss,
            optimization=Optimization(
                learning_rate=trial.learning_rate,
                max_steps=steps,
                batch_size=trial.batch_size,
                schedule="cosine",
                warmup_share=0.1,
                weight_decay=0.01,
                seed=trials.seed if trial.seed is None else trial.seed,
                log_every=max(1, steps // 10),
                save_every=steps,
                bf16=trial.bf16,
            ),
        )
    )
    trained_s = time.monotonic() - begin
    rows, pairs = heldout
    result = measure_heldout(str(folder), rows, pairs)
    return {
        "name": trial.name,
        "parameters": count_parameters(folder / "model.safetensors"),
        "steps": steps,
        "pairs_seen": steps * trial.batch_size,
        "train_s": round(trained_s, 1),
        "measure_s": round(time.monotonic() - begin - trained_s, 1),
        "both_orders_agree": result.agreeing / len(pairs),
        **accuracies(pairs, result.margins, trials.clear),
        "warnings": result.warnings(),
        "beats_chance": result.accuracy.low > 0.5,
    }


def count_parameters(file: Path) -> int:
    """Number of weights in a safetensors file."""
    with safe_open(file, "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def run_trials(
    file: Path,
    trials: Trials,
    *,
    limit: int | None = None,
    seconds: float | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Run all trials, as far as the time allows.

    Args:
        file: The rows.
        trials: What is tried.
        limit: Number of rows to read; None: all.
        seconds: No training begins that would probably end later; None: all are run.
        output: File that has the results so far at any time.

    Returns:
        Figures of the split, the baselines and every training.

    Raises:
        BlendError: The rows or a backbone can't be used.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ranker-training-") as scratch:
        folder = Path(scratch)
        split = split_rows(file, folder, share=trials.heldout_share, seed=trials.seed, limit=limit)
        rows = read_training_rows(str(split.heldout))
        pairs = heldout_pairs(rows, (trials.metric,), trials.heldout_per_row, trials.seed)
        found: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "metric": trials.metric,
            "seed": trials.seed,
            "train_prompts": len(split.train_rows),
            "heldout_prompts": len(rows),
            "heldout_pairs": len(pairs),
            "baselines": baselines(split, rows, pairs, trials),
            "trainings": [],
            "skipped": [],
        }
        for trial in trials.trials:
            per_step = 0.0
            for steps in trial.steps:
                left = None if seconds is None else seconds - (time.monotonic() - begin)
                if left is not None and (left <= 0 or per_step * steps > left):
                    found["skipped"].append({"name": trial.name, "steps": steps, "reason": "out of time"})
                    continue
                try:
                    backbone = _backbone(trial, split, folder, trials.seed)
                    output_folder = folder / f"{len(found['trainings'])}"
                    done = run_trial(trial, steps, backbone, split, (rows, pairs), trials, output_folder)
                except (BlendError, torch.OutOfMemoryError) as error:
                    found["skipped"].append({"name": trial.name, "steps": steps, "reason": one_line(error)})
                    continue
                per_step = (done["train_s"] + done["measure_s"]) / steps
                found["trainings"].append(done)
                print(json.dumps(done), file=sys.stderr, flush=True)
                if output:
                    output.write_text(json.dumps(found, indent=2) + "\n")
    found["seconds"] = round(time.monotonic() - begin, 1)
    if output:
        output.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _backbone(trial: Trial, split: Split, folder: Path, seed: int) -> str:
    """Folder of the trial's backbone."""
    if trial.backbone not in RANDOM_BACKBONES:
        return trial.backbone
    blank = folder / trial.backbone
    if not blank.exists():
        texts = [text for row in split.train_rows for text in (row["instruction"], *_answers(row))]
        RANDOM_BACKBONES[trial.backbone](blank, seed, train_tokenizer(texts))
    return str(blank)


def _answers(row: Mapping[str, Any]) -> list[str]:
    return [candidate["text"] for candidate in row["candidates"] if candidate["text"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials of a config; print JSON last."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_blender_ray.pipelines.bench.ranker_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", type=Path, help="JSON lines with scored candidates")
    parser.add_argument("--config", type=Path, default=TRIALS, help="the trials (default: beside this module)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="change a setting")
    parser.add_argument("--only", help="only trials whose name contains this")
    parser.add_argument("--limit", type=int, help="number of rows to read")
    parser.add_argument("--seconds", type=float, help="begin no training that would probably end later")
    parser.add_argument("--output", type=Path, help="file for the results so far")
    given = parser.parse_args(arguments)
    try:
        trials = load(given.config, Trials, given.set)
        if given.only:
            chosen = tuple(trial for trial in trials.trials if given.only in trial.name)
            trials = trials.model_copy(update={"trials": chosen})
        print(
            json.dumps(
                run_trials(given.rows, trials, limit=given.limit, seconds=given.seconds, output=given.output)
            )
        )
    except (BlendError, ConfigError) as error:
        sys.exit(f"ranker_training: {one_line(error)}")


if __name__ == "__main__":
    main()
