"""Simulated annotators: votes until the order of contestants is right, and who of several annotators is bad.

`order`: contestants of known strengths are compared by votes of Davidson's model, on pairs at random, on all pairs
in turns, and on the pair that tells most (`campaign.active`). For each way: the number of votes from which on the
order is right in half, and in 80%, of the simulations.

`annotators`: annotators of known error vote in a campaign of a run's rows with references (`make demo` writes such
into out/demo); the truth is which answer has more parts right. Dawid and Skene's figures against the true ones.

    python -m llm_blender_ray.pipelines.bench.campaign order
    python -m llm_blender_ray.pipelines.bench.campaign annotators --rows out/demo

The last line is JSON. Exit code 1: active choice needs as many votes as random pairs, or the bad one isn't found.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llm_blender_ray.pipelines.campaign.active import Belief, Pairing, believe, most_telling
from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.creation import create_campaign
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.consensus import Label, dawid_skene, majority
from llm_blender_ray.pipelines.quality.judgements import SIGNS, Preferred
from llm_blender_ray.pipelines.quality.metrics import parts_right
from llm_blender_ray.pipelines.quality.votes import side_text

SIMULATED_TIE = -0.7  # of the simulated votes: between equals, a fifth are ties
CHOICES = ("random", "turns", "active")
RIGHT_SHARES = (0.5, 0.8)
STEP = 5  # votes after which the order is looked at
ANNOTATOR_ERRORS = {"ann": 0.05, "ben": 0.1, "cat": 0.2, "dan": 0.3, "eve": 0.75}  # 2/3 is chance
_BY_SIGN: dict[int, Preferred] = {1: "left", 0: "tie", -1: "right"}


def order_is_right(choice: str, strengths: np.ndarray, votes: int, *, seed: int) -> np.ndarray:
    """Simulate votes one by one.

    Args:
        choice: One of `CHOICES`.
        strengths: C, in logits.
        votes: How many.
        seed: Of the simulation.

    Returns:
        For every `STEP` votes, whether the order by the belief is the true one.
    """
    rng, size = np.random.default_rng(seed), len(strengths)
    strengths = rng.permutation(strengths)
    truth = [int(one) for one in np.argsort(-strengths)]
    contests: list[Pairing] = list(combinations(range(size), 2))
    wins, ties = np.zeros((size, size)), np.zeros((size, size))
    waiting, right = list[Pairing](), list[bool]()
    for at in range(1, votes + 1):
        if choice == "active":
            best = most_telling(believe(wins, ties), contests)
            i, j = best[int(rng.integers(len(best)))]
        elif choice == "random":
            i, j = contests[int(rng.integers(len(contests)))]
        else:
            waiting = waiting or [contests[one] for one in rng.permutation(len(contests))]
            i, j = waiting.pop()
        chances = Belief(strengths, SIMULATED_TIE, np.empty(0)).chances(_lead(i, j, size))[:, 0]
        match int(rng.choice(3, p=chances)):
            case 0:
                wins[i, j] += 1
            case 1:
                ties[i, j] += 1
                ties[j, i] += 1
            case _:
                wins[j, i] += 1
        if at % STEP == 0:
            right.append(believe(wins, ties).order == truth)
    return np.array(right)


def votes_needed(right: Sequence[np.ndarray], share: float) -> int | None:
    """Least number of votes from which on the order is right in this share of the simulations; None: more."""
    enough = np.mean(np.array(right), axis=0) >= share
    if not enough[-1]:
        return None
    wrong = np.flatnonzero(~enough)
    return STEP * (int(wrong[-1]) + 2 if len(wrong) else 1)


def measure_order(strengths: np.ndarray, votes: int, simulations: int) -> dict[str, Any]:
    """Votes needed by each choice for each of `RIGHT_SHARES`, and how many times as many random pairs need."""
    found: dict[str, dict[str, int | None]] = {}
    for choice in CHOICES:
        right = [order_is_right(choice, strengths, votes, seed=seed) for seed in range(simulations)]
        found[choice] = {f"{share:.0%}": votes_needed(right, share) for share in RIGHT_SHARES}
    factors = {}
    for share, random in found["random"].items():
        active = found["active"][share]
        factors[share] = random / active if random and active else None
    return {"votes": found, "factor": factors, "simulations": simulations, "most_votes": votes}


def measure_annotators(rows: str, items: int, seed: int = 0) -> dict[str, Any]:
    """Let annotators of known error vote in a campaign of these rows; see `judge_annotators`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = CampaignSettings(overlap=len(ANNOTATOR_ERRORS), items=items, seed=seed)
        store = create_campaign([rows], str(Path(folder) / "campaign"), settings).store
        truth = _truth(store)
        first = {item.item: item.sides[0] for item in store.items()}
        assignments, rng = Assignments(store), np.random.default_rng(seed)
        for name, error in ANNOTATOR_ERRORS.items():
            while (shown := assignments.next_item(name)) is not None:
                sign = with_error(truth[shown.item], error, rng)
                preferred = _BY_SIGN[sign if shown.left == first[shown.item] else -sign]
                assignments.answer(name, shown.item, preferred, None, None)
        labels = [Label(vote.item, vote.annotator, _BY_SIGN[SIGNS[vote.unswapped]]) for vote in store.votes()]
    return judge_annotators(labels, truth)


def with_error(sign: int, error: float, rng: np.random.Generator) -> int:
    """The right sign, or by chance one of the two others."""
    return int(rng.choice([one for one in (-1, 0, 1) if one != sign])) if rng.random() < error else sign


def judge_annotators(labels: Sequence[Label], truth: Mapping[int, int]) -> dict[str, Any]:
    """Find out from their labels how good annotators are.

    Args:
        labels: Of the annotators of `ANNOTATOR_ERRORS`.
        truth: The right sign of each item.

    Returns:
        {"items", "right": {"majority", "dawid_skene"} (shares of the items), "annotators": {name: {"error",
        "right", "reliability"}}, "worst"}: true share of right votes, and the share by Dawid and Skene.
    """
    expected = {item: _BY_SIGN[sign] for item, sign in truth.items()}
    by_all = dawid_skene(labels)
    reliability = by_all.accuracy()
    return {
        "items": len(expected),
        "right": {
            "majority": _share_right(majority(labels), expected),
            "dawid_skene": _share_right(by_all.labels(), expected),
        },
        "annotators": {
            name: {
                "error": error,
                "right": float(
                    np.mean([expected[one.item] == one.value for one in labels if one.annotator == name])
                ),
                "reliability": reliability[name],
            }
            for name, error in ANNOTATOR_ERRORS.items()
        },
        "worst": min(reliability, key=lambda name: reliability[name]),
    }


def _truth(store: CampaignStore) -> dict[int, int]:
    """Which side of each item is right, as a sign: the one with more parts right."""
    rows, truth = store.rows(), {}
    for item in store.items():
        row = rows[item.prompt]
        first, second = (parts_right(row["output"], side_text(row, side) or "") for side in item.sides)
        truth[item.item] = (first > second) - (first < second)
    return truth


def _share_right(found: Mapping[int, str | None], expected: Mapping[int, str]) -> float:
    return sum(found[item] == label for item, label in expected.items()) / len(expected)


def _lead(i: int, j: int, size: int) -> np.ndarray:
    lead = np.zeros((1, size))
    lead[0, i], lead[0, j] = 1, -1
    return lead


def main() -> None:
    """Measure, print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("order", "annotators"))
    parser.add_argument("--contestants", type=int, default=11)
    parser.add_argument("--gap", type=float, default=0.5, help="between neighbours in strength, in logits")
    parser.add_argument("--votes", type=int, default=1500)
    parser.add_argument("--simulations", type=int, default=40)
    parser.add_argument("--rows", default="out/demo", help="rows with candidates and references")
    parser.add_argument("--items", type=int, default=200)
    given = parser.parse_args()
    table = Table()
    if given.what == "order":
        report = measure_order(given.gap * np.arange(given.contestants), given.votes, given.simulations)
        for heading in ("pairs", *report["factor"]):
            table.add_column(heading)
        for choice, needed in report["votes"].items():
            table.add_row(choice, *(str(number or f"> {given.votes}") for number in needed.values()))
        good = all(factor is None or factor > 1 for factor in report["factor"].values())
    else:
        report = measure_annotators(given.rows, given.items)
        for heading in ("annotator", "error", "right", "right, Dawid-Skene"):
            table.add_column(heading)
        for name, one in report["annotators"].items():
            table.add_row(name, *(f"{one[key]:.3f}" for key in ("error", "right", "reliability")))
        good = report["worst"] == max(ANNOTATOR_ERRORS, key=lambda name: ANNOTATOR_ERRORS[name])
    Console().print(table)
    print(json.dumps(report))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
