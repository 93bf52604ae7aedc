"""The original package as a worker: ranks rows with llm-blender 0.0.2, timed.

Run by the interpreter of an environment of its own (`requirements-original.txt`), since the original imports only
under transformers 4; so this file imports nothing of this project. What is timed is the original's own
`Blender.rank`: its collator, its batching over rows, its n(n-1) comparisons.

One JSON object a line on stdin, one on stdout for each; the original's own prints go to stderr. The response to a
request that failed is `{"error": text}`.

    {"do": "load", "ranker": folder, "threads": 2}      -> {"llm_blender", "transformers", "torch"}
    {"do": "calibrate", "rows": rows}                   -> {"batch_size", "forwards_per_s": {"1": ..., ...}}
    {"do": "rank", "rows": rows, "batch_size": 4}       -> Measured

Rows are `{"source": text, "candidates": [texts]}`, the same number of candidates in each, two at least. A ranker's
folder is in the original's layout, its `model_name` a path relative to the folder.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, TypedDict

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # rows, as the original counts them
PASSES = 2
AS_FAST = 0.97  # of the best rate: closer ones are within noise


class ComparedRow(TypedDict):
    """A source and its candidates."""

    source: str
    candidates: list[str]


@dataclass(frozen=True)
class Measured:
    """One call of the original's `rank`.

    Attributes:
        seconds: Of the whole call.
        network_seconds: Of it, without tokenization and collation.
        cpu_seconds: Of all threads; much less than seconds x threads if other processes had the CPUs.
        forwards: Pairs read.
        tokens: Of these pairs.
        positions: Tokens and padding.
        logits: Rows x n x n, the left candidate first, zeros on the diagonal.
        scores: Rows x n, higher is better.
    """

    seconds: float
    network_seconds: float
    cpu_seconds: float
    forwards: int
    tokens: int
    positions: int
    logits: list[list[list[float]]]
    scores: list[list[float]]


class Original:
    """The original's Blender with a ranker, on CPU, where it computes in float32."""

    def __init__(self, ranker: Path, threads: int) -> None:
        import llm_blender  # type: ignore[import-not-found]  # here: it is in the worker's environment only
        import torch

        torch.set_num_threads(threads)
        # The original reads a relative model_name from the working directory, and chooses a tokenizer's settings by
        # words in the name ("phi", "llama"), which a whole path could contain.
        os.chdir(ranker)
        self._blender = llm_blender.Blender()
        self._blender.loadranker(".", device="cpu")
        self._ranker = self._blender.ranker
        self._ranker.pretrained_model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._predict = self._ranker._full_predict
        self._ranker._full_predict = self._watch
        self._reset()

    def _reset(self) -> None:
        self._forwards = self._tokens = self._positions = 0
        self._network_seconds = 0.0
        self._logits: list[list[list[float]]] = []

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask_BL = kwargs["attention_mask"]
        self._forwards += len(mask_BL)
        self._tokens += int(mask_BL.sum())
        self._positions += mask_BL.numel()

    def _watch(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        outputs = self._predict(*args, **kwargs)
        self._network_seconds += time.perf_counter() - begin
        self._logits += outputs["logits"].tolist()
        return outputs

    def rank(self, rows: Sequence[ComparedRow], batch_size: int) -> Measured:
        """Rank the rows with every pair in both orders, `batch_size` rows at a time."""
        self._reset()
        sources, candidates = [row["source"] for row in rows], [row["candidates"] for row in rows]
        begin, cpu_begin = time.perf_counter(), time.process_time()
        scores = self._blender.rank(
            sources, candidates, return_scores=True, batch_size=batch_size, disable_tqdm=True
        )
        return Measured(
            seconds=time.perf_counter() - begin,
            network_seconds=self._network_seconds,
            cpu_seconds=time.process_time() - cpu_begin,
            forwards=self._forwards,
            tokens=self._tokens,
            positions=self._positions,
            logits=self._logits,
            scores=scores.tolist(),
        )


def one_pair_each(rows: Sequence[ComparedRow]) -> list[ComparedRow]:
    """The rows with two neighbouring candidates of each, another two in each row."""
    pairs: list[ComparedRow] = []
    for i, row in enumerate(rows):
        at = i % (len(row["candidates"]) - 1)
        pairs.append({"source": row["source"], "candidates": row["candidates"][at : at + 2]})
    return pairs


def best_of(rates: dict[int, float]) -> int:
    """The fastest size, or the smallest within noise: it pads least, and larger ones cut candidates shorter."""
    return min(size for size, rate in rates.items() if rate >= AS_FAST * max(rates.values()))


def calibrate(
    rank: Callable[[Sequence[ComparedRow], int], Measured], rows: Sequence[ComparedRow]
) -> dict[str, Any]:
    """The batch size with the most forwards/s, and forwards/s of each that the rows can fill.

    Each size ranks one pair of each row: a batch of them costs as much as any batch of that size, and all pairs of
    the rows would take minutes. The sizes take turns twice, and the better time of each counts, to exclude other
    load of the machine.
    """
    pairs = one_pair_each(rows)
    rank(pairs[:2], 1)  # the first calls compile parts of DeBERTa
    sizes = [size for size in BATCH_SIZES if size <= len(pairs)]
    rates: dict[int, float] = {}
    for _ in range(PASSES):
        for size in sizes:
            measured = rank(pairs, size)
            rates[size] = max(rates.get(size, 0.0), measured.forwards / measured.seconds)
            print(f"batch size {size}: {rates[size]:.2f} forwards/s", file=sys.stderr)
    return {"batch_size": best_of(rates), "forwards_per_s": rates}


def serve_original(requests: Iterable[str], answers: TextIO) -> None:
    """Answer requests until there are no more."""
    original: Original | None = None
    for line in requests:
        answer: dict[str, Any]
        try:
            request = json.loads(line)
            if request["do"] == "load":
                original = Original(Path(request["ranker"]), request["threads"])
                answer = {name: version(name) for name in ("llm_blender", "transformers", "torch")}
            elif original is None:
                raise RuntimeError("no ranker is loaded")
            elif request["do"] == "calibrate":
                answer = calibrate(original.rank, request["rows"])
            elif request["do"] == "rank":
                answer = asdict(original.rank(request["rows"], request["batch_size"]))
            else:
                raise ValueError(f"unknown request {request['do']!r}")
        except Exception as error:  # whatever the original raises; the caller reports it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve stdin and stdout, with the hub's cache in a temporary folder, since the original writes there."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on prints go to stderr
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        serve_original(sys.stdin, answers)


if __name__ == "__main__":
    main()
