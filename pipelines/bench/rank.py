"""`blend bench rank`: speed of a ranker on this machine, and the savings and losses of strategies.

Every pair of every row is scored once, timed. Strategies are then replayed on these scores, so that measuring their
agreement with the full comparison takes no more forwards; the default one is run and timed as well.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.ranker import CandidateRow
from llm_blender_ray.actors.ranker import Ranker as RowRanker
from llm_blender_ray.actors.records import Matchup, Ranking, read_prompt
from llm_blender_ray.actors.scorers import Score, Scorer, Traits, load_scorer
from llm_blender_ray.actors.scorers.pairwise import PairwiseScorer
from llm_blender_ray.configs.schema import RankerSettings
from llm_blender_ray.configs.strategies import Full, Strategy
from llm_blender_ray.pipelines.bench.machine import matrix_rate
from llm_blender_ray.pipelines.quality.answer_scores import given_scores
from llm_blender_ray.pipelines.rows.readers import read_rows

ROWS_AT_ONCE = 32
STRATEGIES = (
    "full:orders=one",
    "sparse:degree=6",
    "sparse:degree=4",
    "sparse-refine",
    "focus",
    "focus:width=1",
    "swiss",
    "knockout",
    "bubble:passes=1",
    "bubble",
    "reference",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows to rank, and the given scores of their candidates by row and metric."""

    rows: list[CandidateRow]
    scores: list[dict[str, list[float | None]]]


def read_workload(uri: str, limit: int | None) -> Workload:
    """Read the rows of a URI that have at least two candidates.

    Raises:
        BlendError: There are none.
    """
    rows: list[CandidateRow] = []
    scores: list[dict[str, list[float | None]]] = []
    for row in read_rows(uri):
        if limit is not None and len(rows) == limit:
            break
        if row["error"] is None:
            candidates = read_candidates(row)
            if sum(candidate.text is not None for candidate in candidates) > 1:
                rows.append((read_prompt(row), candidates))
                scores.append(given_scores(row["candidates"]))
    if not rows:
        raise BlendError(f"{uri}: no row with two candidates or more")
    return Workload(rows, scores)


class CountingScorer:
    """Scorer that passes calls on, and counts calls and matchups."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.traits = replace(scorer.traits, identity=None)
        self.matchups: list[Matchup] = []
        self.calls = 0

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        self.matchups += matchups
        self.calls += 1
        return await self._scorer.score(matchups)

    async def check_health(self) -> None:
        """See `actors.scorers.Scorer`."""
        await self._scorer.check_health()

    async def close(self) -> None:
        """See `actors.scorers.Scorer`."""
        await self._scorer.close()


class ReplayScorer:
    """Scorer that gives the scores of a full comparison again."""

    def __init__(self, traits: Traits, rows: Sequence[CandidateRow], rankings: Sequence[Ranking]) -> None:
        self.traits = replace(traits, identity=None)
        self._scores = {
            (prompt.texts(), left.text, right.text): logit
            for (prompt, candidates), ranking in zip(rows, rankings, strict=True)
            for left, logits in zip(candidates, ranking.logits, strict=True)
            for right, logit in zip(candidates, logits, strict=True)
            if logit is not None
        }

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        return [self._scores[matchup.prompt.texts(), matchup.left, matchup.right] for matchup in matchups]

    async def check_health(self) -> None:
        """Always healthy."""

    async def close(self) -> None:
        """Nothing to free."""


def measure_ranker(
    settings: RankerSettings, workload: Workload, *, top_k: int, strategies: Iterable[Strategy]
) -> dict[str, Any]:
    """Do all measurements (docs/ranking.md).

    Returns:
        Plain data.

    Raises:
        BlendError: A row cannot be ranked.
    """
    settings = settings.model_copy(update={"top_k": top_k, "cache": None})
    scorer = load_scorer(settings)
    warm_up(scorer, workload.rows)
    full = play(settings, Full(), scorer, workload.rows)
    default = play(settings, None, scorer, workload.rows)
    replay = ReplayScorer(scorer.traits, workload.rows, full.rankings)
    replayed = {describe_rank(strategy): play(settings, strategy, replay, workload.rows) for strategy in strategies}
    return {
        "rows": len(workload.rows),
        "candidates": mean(len(ranking.order) for ranking in full.rankings),
        "top_k": top_k,
        "threads": torch.get_num_threads(),
        "full": speed(scorer, full),
        "default": speed(scorer, default),
        "strategies": {
            name: quality(played, full, workload, top_k)
            for name, played in {"full": full, "default": default, **replayed}.items()
        },
    }


@dataclass(frozen=True, slots=True)
class StrategyRun:
    """Rankings, and the work for them."""

    rankings: list[Ranking]
    matchups: list[Matchup]
    rounds: float  # mean over batches of rows
    seconds: float

    @property
    def forwards(self) -> int:
        """Forwards of all rankings."""
        return sum(ranking.comparisons for ranking in self.rankings)


def play(
    settings: RankerSettings, strategy: Strategy | None, scorer: Scorer, rows: Sequence[CandidateRow]
) -> StrategyRun:
    """Rank the rows, in batches of the size of a bulk run's first blocks.

    Raises:
        Exception: A row cannot be ranked.
    """
    watch = CountingScorer(scorer)
    ranker = RowRanker(settings.model_copy(update={"strategy": strategy}), watch)
    batches = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]

    async def all_batches() -> list[Ranking | Exception]:
        return [ranking for batch in batches for ranking in await ranker.rank(batch)]

    begin = time.perf_counter()
    given = asyncio.run(all_batches())
    seconds = time.perf_counter() - begin
    for ranking in given:
        if isinstance(ranking, Exception):
            raise ranking
    rankings = [ranking for ranking in given if isinstance(ranking, Ranking)]
    return StrategyRun(rankings, watch.matchups, watch.calls / len(batches), seconds)


def warm_up(scorer: Scorer, rows: Sequence[CandidateRow]) -> None:
    """Let kernels be chosen and memory be allocated before anything is timed."""
    prompt, candidates = rows[0]
    texts = [candidate.text for candidate in candidates if candidate.text is not None][:2]
    asyncio.run(scorer.score([Matchup(prompt, texts[0], texts[1])] * 8))


def speed(scorer: Scorer, played: StrategyRun) -> dict[str, float | None]:
    """Rates of a run; of a PairRanker also tokens read, and the share of the machine's FLOP/s used."""
    rates: dict[str, float | None] = {
        "forwards_per_s": played.forwards / played.seconds,
        "prompts_per_s": len(played.rankings) / played.seconds,
    }
    if isinstance(scorer, PairwiseScorer):
        work = scorer.work(played.matchups)
        rate = matrix_rate(scorer.dtype, scorer.device)
        rates |= {
            "tokens_per_s": work.tokens / played.seconds,
            "tokens_per_forward": work.tokens / len(played.matchups),
            "padding_share": 1 - work.tokens / work.positions,
            "matrix_gflops": rate / 1e9,
            "matrix_rate_share": None if work.flops is None else work.flops / played.seconds / rate,
        }
    return rates


def quality(played: StrategyRun, full: StrategyRun, workload: Workload, top_k: int) -> dict[str, Any]:
    """A strategy's forwards, its agreement with the full comparison's top k, and the given scores of its choice.

    same_best: share of rows with the same first. scores: by metric the mean score of the first, of the top k.
    """
    pairs = list(zip(played.rankings, full.rankings, strict=True))
    return {
        "forwards": played.forwards / len(pairs),
        "rounds": played.rounds,
        "agreement": agreement(played, full, top_k),
        "same_best": mean(ours.order[0] == theirs.order[0] for ours, theirs in pairs),
        "scores": _by_given_scores(played.rankings, workload, top_k),
    }


def agreement(played: StrategyRun, full: StrategyRun, top_k: int) -> float:
    """Share of the full comparison's top k that is in the other's, mean over rows."""
    return mean(
        len(set(ours.order[:top_k]) & set(theirs.order[:top_k])) / min(top_k, len(theirs.order))
        for ours, theirs in zip(played.rankings, full.rankings, strict=True)
    )


def _by_given_scores(rankings: Sequence[Ranking], workload: Workload, top_k: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for ranking, metrics in zip(rankings, workload.scores, strict=True):
        for metric, values in metrics.items():
            known = [value for i in ranking.order[:top_k] if (value := values[i]) is not None]
            first = values[ranking.order[0]]
            if known and first is not None:
                found.setdefault(metric, []).append((first, mean(known)))
    return {
        metric: {"first": mean(first for first, _ in values), "top_k": mean(top for _, top in values)}
        for metric, values in found.items()
    }


def describe_rank(strategy: Strategy) -> str:
    """A strategy in the syntax of the command line: fields that differ from the defaults of its kind."""
    options = strategy.model_dump(exclude_defaults=True, exclude={"kind"})
    return strategy.kind + "".join(
        f"{',' if i else ':'}{name}={value}" for i, (name, value) in enumerate(options.items())
    )


def main(
    settings: RankerSettings, uri: str, *, limit: int | None, top_k: int, strategies: Sequence[Strategy]
) -> None:
    """Measure; print tables, and everything as JSON in the last line."""
    strategies = strategies or TypeAdapter(list[Strategy]).validate_python(STRATEGIES)
    result = measure_ranker(settings, read_workload(uri, limit), top_k=top_k, strategies=strategies)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # of a file or pipe, for which rich takes 80
    console.print(speed_table(result))
    console.print(strategy_table(result))
    print(json.dumps(result))


def speed_table(result: dict[str, Any]) -> Table:
    """Rates of the two runs that were timed."""
    names = list(result["full"])
    table = Table("", "full", "default", title=f"{result['rows']} rows, {result['threads']} threads")
    for name in names:
        table.add_row(name.replace("_", " "), *(_figure(result[run][name]) for run in ("full", "default")))
    return table


def strategy_table(result: dict[str, Any]) -> Table:
    """A line per strategy."""
    metrics = sorted({metric for line in result["strategies"].values() for metric in line["scores"]})
    table = Table("", "forwards", "rounds", f"top {result['top_k']} agreement", "same best", *metrics)
    for name, line in result["strategies"].items():
        scores = [line["scores"].get(metric, {}).get("first") for metric in metrics]
        table.add_row(
            name,
            f"{line['forwards']:.1f}",
            f"{line['rounds']:.1f}",
            *map(_figure, (line["agreement"], line["same_best"], *scores)),
        )
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
