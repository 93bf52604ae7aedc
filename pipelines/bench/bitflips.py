"""Effect of flipped bits in a work folder; JSON in the last line.

    python -m llm_blender_ray.pipelines.bench.bitflips --flips 1500

A small run is completed: two echoes, a ranker, an output in one file. Then single bits are flipped, drawn with a
seed over all bytes of all stored files and of the output, and everything is read as the next session of the run
would read it: the record, the manifest, the index, all rows, all results, and the output. A flip is noticed when
the session's own checks name the file, and silent when something read differs from before. Finally some flips are
left in, together, and the same command must produce the same output.
"""

import argparse
import bisect
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.rows.outputs import Output

_ROWS = 96


def finished_run(folder: Path, *, seed: int = 0) -> BlendConfig:
    """Complete the run in an empty folder; returns its config."""
    draw = random.Random(seed)
    source, words = folder / "in.jsonl", ["one", "two", "three", "four", "five", "six"]
    lines = [{"id": f"r{i}", "prompt": f"{i} {' '.join(draw.choices(words, k=6))}"} for i in range(_ROWS)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings: dict[str, Any] = {
        "models": [
            {"name": f"echo-{number}", "engine": "echo", "model": "none", "sampling": {"max_tokens": number}}
            for number in (3, 5)
        ],
        "ranker": {"model": str(PRESETS / "miniature" / "ranker"), "device": "cpu", "num_cpus": 0.1},
        "rows_per_block": 32,
        "ray": {"num_cpus": 2},
        "input": str(source),
        "output": str(folder / "out.jsonl"),
    }
    config = BlendConfig.model_validate(settings)
    run_blend(config)
    return config


class Session:
    """Everything that a session of the run reads, without Ray and models."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.store = CheckpointStore(Output(str(output)).work_folder)
        self.work = Path(self.store.root)
        self.files = sorted(file for file in [*self.work.rglob("*"), output] if file.is_file())
        text, index = self.store.manifest(), self.store.index()
        assert text is not None and index is not None
        self._manifest, self._index = Manifest.parse(text), index
        self._stages = sorted(self.store.stages())

    def noticed(self) -> list[str]:
        """Files that the checks of a session name."""
        results = [f"results/{s}/{digest}.parquet" for s in self._stages for digest in self.store.done(s)]
        found = [*self.store.damaged(), *self.store.lost_rows(self._index), *self.store.damaged(results)]
        return [*found, *Output(str(self.output)).damaged(self._manifest.output.files)]

    def read(self) -> dict[str, Any]:
        """Everything stored, by name; missing and damaged parts are left out."""
        store = self.store
        found: dict[str, Any] = {"record": store.run(), "manifest": store.manifest(), "index": store.index()}
        for name, block in zip(self._index.names, self._index.blocks, strict=True):
            try:
                found[block.file] = store.rows(self._index.fingerprint, block.file)
            except BlendError:
                found[block.file] = None
            for stage in self._stages:
                found[f"{stage}/{name}"] = store.result(stage, name)
        if not Output(str(self.output)).damaged(self._manifest.output.files):
            found["output"] = self.output.read_bytes()
        return {name: value for name, value in found.items() if value is not None}


def flip(file: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def draw_flips(files: Sequence[Path], flips: int, seed: int) -> list[tuple[Path, int]]:
    """Draw files and bits, each bit with the same probability."""
    draw = random.Random(seed)
    ends = list(accumulate(8 * file.stat().st_size for file in files))
    found = []
    for _ in range(flips):
        at = draw.randrange(ends[-1])
        number = bisect.bisect_right(ends, at)
        found.append((files[number], at - (ends[number - 1] if number else 0)))
    return found


def measure_bitflips(config: BlendConfig, flips: int, seed: int, left_in: int) -> dict[str, Any]:
    """Flip a bit, read, and flip it back; finally leave some flips in and repeat the command.

    Args:
        config: Of a completed run.
        flips: Number of bits, one at a time.
        seed: Seed of the draw.
        left_in: How many of them are left in together.

    Returns:
        The counts. silent: flips after which something read differed; unnoticed: those that no check named.
    """
    output = Path(config.output or "")
    session, expected = Session(output), output.read_bytes()
    before = session.read()
    counted = Counter({"silent": 0, "unnoticed": 0})
    parts: Counter[str] = Counter()
    begin = time.perf_counter()
    choices = draw_flips(session.files, flips, seed)
    for file, bit in choices:
        flip(file, bit)
        now = session.read()
        counted["silent"] += any(value != before[name] for name, value in now.items())
        counted["unnoticed"] += not session.noticed()
        inside = file.relative_to(session.work).parts if file.is_relative_to(session.work) else ("output",)
        parts[inside[0]] += 1
        flip(file, bit)
    seconds = time.perf_counter() - begin
    for file, bit in dict(choices[:left_in]).items():
        flip(file, bit)
    run_blend(config)
    same = output.read_bytes() == expected
    return {
        "flips": flips,
        "seed": seed,
        **counted,
        "by_part": dict(parts),
        "files": len(session.files),
        "bytes": sum(file.stat().st_size for file in session.files),
        "seconds": round(seconds, 1),
        "left_in": left_in,
        "output_after": "the same" if same else "different",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts, JSON last. Exit code 1: a flip was silent or unnoticed, or the output differs."""
    parser = argparse.ArgumentParser(prog="python -m llm_blender_ray.pipelines.bench.bitflips", description=__doc__)
    parser.add_argument("--flips", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--left-in", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bits") as name:
        report = measure_bitflips(finished_run(Path(name)), given.flips, given.seed, given.left_in)
    print(json.dumps(report))
    if report["silent"] or report["unnoticed"] or report["output_after"] != "the same":
        sys.exit(1)


if __name__ == "__main__":
    main()
