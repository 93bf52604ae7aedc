"""Quality of the miniature: base LLMs, oracle, PairRanker's choice, and fusions of good and bad candidates."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import read_prompt
from llm_blender_ray.configs import schema
from llm_blender_ray.pipelines.miniature.data import METRIC
from llm_blender_ray.pipelines.miniature.world import LLM_NAMES
from llm_blender_ray.pipelines.quality.metrics import parts_right

_Row = Mapping[str, Any]

# lines of the table, in addition to one per LLM
RANDOM, ORACLE, RANKED = "random choice", "best candidate (oracle)", "PairRanker's choice"
FUSE_TOP, FUSE_RANDOM, FUSE_BOTTOM = "fuse PairRanker's top 3", "fuse random 3", "fuse PairRanker's bottom 3"
FUSE_ONE = "fuse PairRanker's choice given 3 times"
MINIATURE_TOP_K = 3


def choose(rows: Sequence[_Row], orders: Sequence[Sequence[int]], seed: int) -> dict[str, list[list[str]]]:
    """The candidates to fuse in each of the four ways, row by row.

    Args:
        rows: The rows.
        orders: Each row's candidate indexes, best first.
        seed: Decides the random choice.
    """
    rng = random.Random(seed)
    texts = [[candidate["text"] for candidate in row["candidates"]] for row in rows]
    ranked = [[row[i] for i in order] for row, order in zip(texts, orders, strict=True)]
    return {
        FUSE_TOP: [row[:MINIATURE_TOP_K] for row in ranked],
        FUSE_RANDOM: [rng.sample(row, MINIATURE_TOP_K) for row in texts],
        FUSE_BOTTOM: [row[-MINIATURE_TOP_K:] for row in ranked],
        FUSE_ONE: [row[:1] * MINIATURE_TOP_K for row in ranked],
    }


def rank_heldout(ranker: Path, rows: Sequence[_Row]) -> list[tuple[int, ...]]:
    """Each row's candidate indexes, best first."""
    model = Ranker(schema.PairRanker(model=str(ranker), device="cpu"))
    orders = []
    for ranking in asyncio.run(model.rank([(read_prompt(row), read_candidates(row)) for row in rows])):
        if isinstance(ranking, Exception):
            raise ranking
        orders.append(ranking.order)
    return orders


def fuse_heldout(fuser: Path, rows: Sequence[_Row], texts: Sequence[Sequence[str]], *, num_beams: int) -> list[str]:
    """One fused answer a row."""
    settings = schema.GenFuser(
        model=str(fuser), device="cpu", num_beams=num_beams, max_new_tokens=32, max_batch_size=64
    )
    items = [(read_prompt(row), row_texts) for row, row_texts in zip(rows, texts, strict=True)]
    return GenFuserModel(settings).fuse_all(items)


def score(texts: Sequence[str], rows: Sequence[_Row]) -> dict[str, float]:
    """Mean share of correct parts (`parts`), and share of rows with every part correct (`exact`)."""
    right = [parts_right(row["output"], text) for text, row in zip(texts, rows, strict=True)]
    return {"parts": mean(right), "exact": mean(share == 1 for share in right)}


def best_shares(rows: Sequence[_Row]) -> dict[str, float]:
    """Share of the rows in which each LLM's answer is the best; a tie of n counts 1/n for each."""
    shares = dict.fromkeys(LLM_NAMES, 0.0)
    for row in rows:
        given = {candidate["model"]: candidate["scores"][METRIC] for candidate in row["candidates"]}
        winners = [name for name, value in given.items() if value == max(given.values())]
        for name in winners:
            shares[name] += 1 / len(winners) / len(rows)
    return shares


def evaluate_miniature(
    rows: Sequence[_Row], ranker: Path, fuser: Path, seed: int, *, num_beams: int = 4
) -> dict[str, Any]:
    """Measure everything.

    Returns:
        `lines`: label to parts and exact; `best_share`: per LLM; `prompts`: how many were measured.
    """
    orders = rank_heldout(ranker, rows)
    lines = {name: score([row["candidates"][i]["text"] for row in rows], rows) for i, name in enumerate(LLM_NAMES)}
    scores = [[candidate["scores"][METRIC] for candidate in row["candidates"]] for row in rows]
    lines[RANDOM] = {
        "parts": mean(mean(row) for row in scores),
        "exact": mean(mean(share == 1 for share in row) for row in scores),
    }
    lines[ORACLE] = {"parts": mean(map(max, scores)), "exact": mean(max(row) == 1 for row in scores)}
    lines[RANKED] = score([row["candidates"][o[0]]["text"] for row, o in zip(rows, orders, strict=True)], rows)
    for label, texts in choose(rows, orders, seed).items():
        lines[label] = score(fuse_heldout(fuser, rows, texts, num_beams=num_beams), rows)
    return {"prompts": len(rows), "lines": lines, "best_share": best_shares(rows)}


def quality_table(results: Mapping[str, Any]) -> str:
    """The results as plain text."""
    shares = results["best_share"]
    width = max(map(len, results["lines"]))
    text = [f"{'':{width}}  parts  exact  best of its row"]
    for label, line in results["lines"].items():
        share = f"  {shares[label]:>6.1%}" if label in shares else ""
        text.append(f"{label:{width}}  {line['parts']:.3f}  {line['exact']:.3f}{share}")
    return "\n".join(text)
