"""Memory of a process that prepares and reads the training data of a ranker, by number of rows. JSON comes last.

For each number (`python -m llm_blender_ray.pipelines.bench.training_memory --rows 20000 --rows 200000`) a process
of its own prepares generated rows (four answers of some 300 characters each, scored) and reads random pairs. Its
private (anonymous) memory is read from Linux every 20 ms; mapped files are the system's to keep or drop.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from llm_blender_ray.configs.training import Optimization, RankerTraining
from llm_blender_ray.pipelines.train.prepare import Preparation
from llm_blender_ray.pipelines.train.ranker import prepare_pairs

_SAMPLE_S = 0.02
_READS = 5000
_WORDS = ("acorn", "badge", "candle", "desert", "engine", "feather", "garden", "hammer", "island", "jacket")


def write_scored_rows(file: Path, count: int) -> None:
    """Write rows with four scored answers each."""
    rng = random.Random(0)
    with file.open("w") as out:
        for i in range(count):
            candidates = [
                {"model": model, "text": " ".join(rng.choices(_WORDS, k=45)), "scores": {"quality": rng.random()}}
                for model in "abcd"
            ]
            out.write(json.dumps({"id": str(i), "instruction": f"Say {i}.", "candidates": candidates}) + "\n")


def private_mb() -> float:
    """Private memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure_reading(file: Path, folder: Path) -> dict[str, float]:
    """Prepare the rows and read pairs of them, in this process.

    Args:
        file: The rows.
        folder: Output of the training.
    """
    config = RankerTraining(
        backbone="none",
        train=str(file),
        output=str(folder),
        metrics=("quality",),
        optimization=Optimization(learning_rate=1e-5),
    )
    before, peaks, done = private_mb(), [0.0], threading.Event()

    def watch() -> Iterator[None]:
        while not done.wait(_SAMPLE_S):
            peaks[0] = max(peaks[0], private_mb())
            yield

    watcher = threading.Thread(target=lambda: list(watch()))
    watcher.start()
    try:
        split = prepare_pairs(config, Preparation(config.output)).train
        rows, pairs = split.rows(), split.pairs()
        rng = random.Random(0)
        for _ in range(_READS):
            pair = pairs[rng.randrange(len(pairs))]
            assert rows[pair.row].texts[pair.left] != rows[pair.row].texts[pair.right]
    finally:
        done.set()
        watcher.join()
    return {
        "rows": len(rows),
        "pairs": len(pairs),
        "input_mb": round(file.stat().st_size / 1e6, 1),
        "before_mb": round(before, 1),
        "peak_mb": round(peaks[0], 1),
        "grown_mb": round(peaks[0] - before, 1),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="number of rows; repeatable")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure_reading(*given.measure)))
        return
    found = []
    for count in given.rows or (20_000, 200_000):
        with tempfile.TemporaryDirectory(prefix="training-memory-") as scratch:
            file = Path(scratch) / "rows.jsonl"
            write_scored_rows(file, count)
            command = [sys.executable, "-m", __spec__.name, "--measure", str(file), f"{scratch}/out"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
