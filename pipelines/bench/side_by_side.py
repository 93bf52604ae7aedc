"""`make bench-original`: the original package and this one rank the same rows with the same weights, in turns.

A machine's speed drifts, so every round measures both sides and the machine's own matrix rate. The original runs in
a process and an environment of its own (`original.py`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llm_blender_ray.actors.dtypes import times_float32
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.ranker import CandidateRow
from llm_blender_ray.actors.scorers.pairwise import PairwiseScorer
from llm_blender_ray.configs.parts import Dtype
from llm_blender_ray.configs.schema import PairRanker
from llm_blender_ray.configs.strategies import Full, default_strategy
from llm_blender_ray.pipelines.bench.rank import ReplayScorer, agreement, play, speed, warm_up
from llm_blender_ray.pipelines.bench.workload import as_original, copy_ranker, make_ranker, make_rows, take_rows

_TOP_K = 3
CALIBRATION_ROWS = 32  # far more than the original's best batch
_BUSY = 0.85  # of the threads' time; a round with less for the original was disturbed
WORKER = Path(__file__).parent / "original.py"

_Ask = Callable[..., dict[str, Any]]


@contextmanager
def original(python: str, threads: int) -> Iterator[_Ask]:
    """The original as a function of requests (see `original.py`).

    Raises:
        BlendError: A request fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [python, "-I", str(WORKER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdin is not None and run.stdout is not None
        requests, answers = run.stdin, run.stdout

        def ask(**request: Any) -> dict[str, Any]:
            print(json.dumps(request), file=requests, flush=True)
            line = answers.readline()
            answer = json.loads(line) if line else {"error": "its process ended"}
            if "error" in answer:
                raise BlendError(f"the original: {answer['error']}")
            return answer

        try:
            yield ask
        finally:
            requests.close()


def compare_side_by_side(
    ask: _Ask,
    folder: Path,
    rows: Sequence[CandidateRow],
    calibration_rows: Sequence[CandidateRow],
    *,
    rounds: int,
    threads: int,
    dtypes: Sequence[Dtype],
) -> dict[str, Any]:
    """Measure the rates of both sides.

    Args:
        ask: The original.
        folder: The ranker.
        rows: What both rank.
        calibration_rows: What the original finds its best batch size with.
        rounds: Most parts that the rows are cut into; each fills the original's batches.
        threads: Of each side.
        dtypes: Of ours; the last one with the default strategy too.

    Returns:
        Rates by side.
    """
    torch.set_num_threads(threads)
    versions = ask(do="load", ranker=str(folder), threads=threads)
    calibration = ask(do="calibrate", rows=as_original(calibration_rows))
    rounds = max(1, min(rounds, len(rows) // calibration["batch_size"]))
    settings = PairRanker(model=str(folder), device="cpu", top_k=_TOP_K)
    scorers = {dtype: PairwiseScorer(settings.model_copy(update={"dtype": dtype})) for dtype in dtypes}
    for scorer in scorers.values():
        warm_up(scorer, rows)
    lines: list[dict[str, dict[str, float]]] = []
    for part in (rows[start::rounds] for start in range(rounds)):
        theirs = ask(do="rank", rows=as_original(part), batch_size=calibration["batch_size"])
        if theirs["cpu_seconds"] < _BUSY * theirs["seconds"] * threads:
            print("other processes use the machine: this round is unreliable", file=sys.stderr, flush=True)
        ours = {dtype: speed(scorer, play(settings, Full(), scorer, part)) for dtype, scorer in scorers.items()}
        default = play(settings, None, scorers[dtypes[-1]], rows)  # all rows at once: a bulk run has 32 in hand
        lines.append(
            {
                "forwards_per_s": {
                    "original": theirs["forwards"] / theirs["seconds"],
                    **_each(ours, "forwards_per_s"),
                },
                "prompts_per_s": {
                    "original": len(part) / theirs["seconds"],
                    **_each(ours, "prompts_per_s"),
                    "default": len(rows) / default.seconds,
                },
                "matrix_rate_share": _each(ours, "matrix_rate_share"),
                "padding_share": {
                    "original": 1 - theirs["tokens"] / theirs["positions"],
                    **_each(ours, "padding_share"),
                },
                "tokens_per_s": {"original": theirs["tokens"] / theirs["seconds"], **_each(ours, "tokens_per_s")},
                "forwards_per_prompt": {
                    "original": theirs["forwards"] / len(part),
                    "default": default.forwards / len(rows),
                },
            }
        )
        print(f"round {len(lines)} of {rounds}: {json.dumps(lines[-1])}", file=sys.stderr, flush=True)
    return {
        **{measure: _over_rounds(measure, [line[measure] for line in lines]) for measure in lines[0]},
        "calibration": calibration,
        "versions": versions,
        "rounds": rounds,
    }


def _over_rounds(measure: str, lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """Harmonic mean of rates, which is all work over all time, since rounds are of one size; else the mean."""
    mean = statistics.harmonic_mean if measure.endswith("_per_s") else statistics.mean
    return {side: mean([line[side] for line in lines]) for side in lines[0]}


def _each(rates: Mapping[Dtype, dict[str, float | None]], name: str) -> dict[str, float]:
    return {dtype: value for dtype, rate in rates.items() if (value := rate[name]) is not None}


def logit_difference(ask: _Ask, folder: Path, row: CandidateRow) -> float:
    """The largest difference between both sides' float32 logits of one row, ranked by itself.

    In a batch the original cuts candidates by the longest source of the batch, so that a row's logits differ from
    those that it gets alone.
    """
    theirs = ask(do="rank", rows=as_original([row]), batch_size=1)["logits"][0]
    settings = PairRanker(model=str(folder), device="cpu", dtype="float32")
    (ours,) = play(settings, Full(), PairwiseScorer(settings), [row]).rankings
    return max(
        abs(a - b)
        for our_logits, their_logits in zip(ours.logits, theirs, strict=True)
        for a, b in zip(our_logits, their_logits, strict=True)
        if a is not None
    )


def top3_agreement(folder: Path, rows: Sequence[CandidateRow], dtype: Dtype) -> dict[str, float]:
    """Agreement of others with the full comparison's top 3, replayed on the scores of one."""
    settings = PairRanker(model=str(folder), device="cpu", dtype=dtype, top_k=_TOP_K)
    scorer = PairwiseScorer(settings)
    full = play(settings, Full(), scorer, rows)
    replay = ReplayScorer(scorer.traits, rows, full.rankings)
    strategies = {"default": default_strategy(_TOP_K), "one_random_order": Full(orders="one")}
    return {
        name: agreement(play(settings, strategy, replay, rows), full, _TOP_K)
        for name, strategy in strategies.items()
    }


def main() -> None:
    """Print the measurements as JSON, the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="interpreter of the original's environment")
    parser.add_argument("--rows", help="rows with candidates (MixInstruct's layout); default: made on the spot")
    parser.add_argument("--ranker", help="a PairRanker; default: random weights, 12 layers, 384 wide")
    parser.add_argument("--limit", type=int, default=10, help="rows that both sides rank")
    parser.add_argument("--agreement-rows", type=int, default=100, help="rows for the agreement of strategies")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the rows are cut into")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    has_bfloat16 = times_float32(torch.bfloat16) < 1  # else it would measure an emulation, for minutes
    dtypes: list[Dtype] = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    count = max(given.limit, given.agreement_rows, CALIBRATION_ROWS)
    rows = take_rows(given.rows, count) if given.rows else make_rows(count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "ranker"
        folder = copy_ranker(given.ranker, folder) if given.ranker else make_ranker(rows, folder)
        with original(given.python, given.threads) as ask:
            timed = rows[: given.limit]
            result = compare_side_by_side(
                ask,
                folder,
                timed,
                rows[:CALIBRATION_ROWS],
                rounds=given.rounds,
                threads=given.threads,
                dtypes=dtypes,
            )
            result["logit_difference"] = logit_difference(ask, folder, rows[0])
        result["top3_agreement"] = top3_agreement(folder, rows[: given.agreement_rows], dtypes[-1])
    result |= {"rows": len(timed), "agreement_rows": len(rows[: given.agreement_rows]), "threads": given.threads}
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except BlendError as error:
        sys.exit(f"bench-original: {error}")
