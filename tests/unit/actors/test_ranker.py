"""Rows' tournaments played together: what a cache saves, and that one row's failure stays its own."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from paths import GOLDEN

from llm_blender_ray.actors.cache import CacheError
from llm_blender_ray.actors.ranker import CandidateRow, Ranker, blanks_last
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt, Ranking
from llm_blender_ray.actors.scorers import Score, ScoringError, Traits, UnpaidScoringError
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import PairRanker
from llm_blender_ray.configs.strategies import Full, Knockout, ToReference

MINIATURE = str(PRESETS / "miniature" / "ranker")


def settings(**changes: object) -> PairRanker:
    return PairRanker.model_validate({"model": MINIATURE, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def rows() -> list[CandidateRow]:
    lines = (PRESETS / "miniature" / "heldout.jsonl").read_text().splitlines()[:6]
    texts = ["1) Rome", "1) Rome 2) cold", "1) Rome 2) cold 3) went", "Rome", "nothing"]
    given = [json.loads(line) for line in lines]
    return [
        (Prompt(row["id"], row["instruction"], row["input"]), [Candidate(None, text) for text in texts])
        for row in given
    ]


def rank(ranker: Ranker, rows: Sequence[CandidateRow]) -> list[Ranking]:
    rankings = asyncio.run(ranker.rank(rows))
    assert all(isinstance(ranking, Ranking) for ranking in rankings), rankings
    return [ranking for ranking in rankings if isinstance(ranking, Ranking)]


class TestCache:
    def test_a_second_run_makes_no_comparison_and_gives_the_same(
        self, rows: list[CandidateRow], tmp_path: Path
    ) -> None:
        cached = settings(cache=str(tmp_path / "cache"), top_k=2)
        first = rank(Ranker(cached), rows)
        again = rank(Ranker(cached), rows)
        assert all(ranking.comparisons > 0 for ranking in first)
        assert all(ranking.comparisons == 0 for ranking in again)
        assert [(r.order, r.scores, r.logits) for r in first] == [(r.order, r.scores, r.logits) for r in again]

    def test_another_strategy_and_one_more_candidate_use_what_is_there(
        self, rows: list[CandidateRow], tmp_path: Path
    ) -> None:
        cached = settings(cache=str(tmp_path / "cache"), strategy=Full())
        rank(Ranker(cached), rows)
        assert all(
            ranking.comparisons == 0
            for ranking in rank(Ranker(settings(cache=cached.cache, strategy="focus", top_k=2)), rows)
        )
        more = [(prompt, [*candidates, Candidate(None, "one more")]) for prompt, candidates in rows]
        assert all(ranking.comparisons == 2 * 5 for ranking in rank(Ranker(cached), more))

    @pytest.mark.parametrize(
        "other",
        [{"model": str(GOLDEN / "checkpoints" / "PairRM")}, {"dtype": "bfloat16"}, {"source_max_length": 9}],
    )
    def test_another_ranker_finds_nothing(self, rows: list[CandidateRow], tmp_path: Path, other: dict) -> None:
        cache = str(tmp_path / "cache")
        rank(Ranker(settings(cache=cache)), rows[:1])
        (ranking,) = rank(Ranker(settings(cache=cache, **other)), rows[:1])
        assert ranking.comparisons == 20

    def test_a_cache_that_cant_be_used_is_told_before_anything_is_ranked(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x" * 5000)
        with pytest.raises(CacheError):
            Ranker(settings(cache=str(tmp_path / "file")))


class Moody:
    """A scorer at the public seam that prefers longer texts, and fails on some in one of three ways."""

    traits = Traits(pointwise=False)

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        self.calls.append(len(matchups))
        if any("explode" in matchup.left for matchup in matchups):
            raise RuntimeError("out of memory")
        return [self._one(matchup) for matchup in matchups]

    def _one(self, matchup: Matchup) -> Score:
        if "mute" in matchup.left:
            return ScoringError("no verdict")
        if "unpaid" in matchup.left:
            return UnpaidScoringError("budget spent")
        return float("nan") if "nan" in matchup.left else float(len(matchup.left) - len(matchup.right))

    async def check_health(self) -> None:
        """Always."""


def row(*texts: str) -> CandidateRow:
    return Prompt("", "q"), [Candidate(None, text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("a", "explode", "ccc"), "out of memory"),
        (("mute", "mute twice"), "no verdict"),
        (("nan", "nan twice"), "is nan"),
    ],
)
def test_one_rows_failure_stays_its_own(texts: tuple[str, ...], told: str) -> None:
    fine = row("a", "bb", "ccc")
    results = asyncio.run(Ranker(settings(), Moody()).rank([fine, row(*texts), fine]))
    assert [isinstance(result, Ranking) for result in results] == [True, False, True]
    assert told in str(results[1])
    assert results[0].order == results[2].order == (2, 1, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", ["reading", "writing"])
def test_a_cache_that_fails_later_costs_no_ranking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    file = tmp_path / "cache"
    scorer = Moody()
    scorer.traits = Traits(pointwise=False, identity="moody")  # type: ignore[misc]
    ranker = Ranker(settings(cache=str(file)), scorer)
    if fails == "reading":
        file.write_text("x" * 5000)
    else:  # as on a full disk
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(
                "CREATE TRIGGER full BEFORE INSERT ON sealed_comparisons "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
    for _ in range(2):
        (ranking,) = asyncio.run(ranker.rank([row("a", "bb", "ccc")]))
        assert isinstance(ranking, Ranking) and ranking.order == (2, 1, 0)
    assert scorer.calls == [6, 6]
    (warning,) = caplog.messages
    assert str(file) in warning


def test_rounds_of_all_rows_are_scored_in_one_call() -> None:
    scorer = Moody()
    asyncio.run(Ranker(settings(strategy=Knockout(), top_k=1), scorer).rank([row("a", "bb", "ccc", "dddd")] * 10))
    assert scorer.calls == [40, 20]  # two matches in both orders in each row, then one


def test_what_a_strategy_names_and_a_row_lacks_is_that_rows_error() -> None:
    strategy = ToReference(reference=3)
    results = asyncio.run(Ranker(settings(strategy=strategy), Moody()).rank([row("a", "bb"), row(*"abcd")]))
    assert "no candidate 3" in str(results[0]) and isinstance(results[1], Ranking)


def test_without_a_number_of_places_all_pairs_are_compared_with_one_fewer() -> None:
    texts = ["x" * length for length in range(1, 12)]
    (full,) = rank(Ranker(settings(), Moody()), [row(*texts)])
    (focused,) = rank(Ranker(settings(top_k=3), Moody()), [row(*texts)])
    assert full.comparisons == 110
    assert focused.comparisons <= 50 and focused.order[:3] == full.order[:3] == (10, 9, 8)


@pytest.mark.parametrize("strategy", ["full", "focus", "swiss", "knockout", "bubble", "sparse", "sparse-refine"])
@pytest.mark.parametrize("bad", ["mute", "nan", "unpaid"])
def test_a_comparison_without_a_score_is_left_out(strategy: str, bad: str) -> None:
    """The candidate that fails on the left is compared on the right; the others as ever."""
    chosen = settings(strategy=strategy, top_k=2)
    (ranking,) = rank(Ranker(chosen, Moody()), [row("dddd" * 9, bad, "b" * 9, "c" * 20, "a")])
    assert [at for at in ranking.order if at != 1] == [0, 3, 2, 4]
    assert 0 < ranking.unreadable <= 4 and all(logit is None for logit in ranking.logits[1])
    assert ranking.unpaid == (ranking.unreadable if bad == "unpaid" else 0)


def test_a_round_without_any_score_is_no_ranking_yet() -> None:
    async def rounds() -> list[Ranking]:
        ranker = Ranker(settings(strategy=Knockout()), Moody())
        return [ranking async for ranking in ranker.rounds(*row("mute", "mute twice", "nan", "nan twice"))]

    with pytest.raises(ScoringError, match=r"no verdict|is nan"):
        asyncio.run(rounds())


def test_blank_candidates_stand_behind_those_with_text() -> None:
    candidates = [Candidate("m", text) for text in (" " * 9, "a", "", "bbb", "\u200b\n")]
    ranking = rank(Ranker(settings(), Moody()), [(Prompt("", "q"), candidates)])[0]
    assert ranking.order == (0, 3, 4, 1, 2)  # as the scorer has it
    last = blanks_last(ranking, candidates)
    assert last.order == (3, 1, 0, 4, 2)
    scores = [last.scores[at] or 0.0 for at in last.order]
    assert scores == sorted(scores, reverse=True) and scores[2] < scores[1] == ranking.scores[1]
    assert (last.logits, last.comparisons) == (ranking.logits, ranking.comparisons)


def test_blank_candidates_alone_keep_their_ranking() -> None:
    candidates = [Candidate("m", text) for text in ("", "  ", " ")]
    (ranking,) = rank(Ranker(settings(), Moody()), [(Prompt("", "q"), candidates)])
    assert blanks_last(ranking, candidates) is ranking and ranking.order == (1, 2, 0)


def test_equal_texts_of_several_models_are_not_ordered_by_the_list() -> None:
    candidates = [Candidate(model, "same") for model in "abcdef"]
    first, turned = (
        rank(Ranker(settings(), Moody()), [(Prompt("", "q"), given)])[0] for given in (candidates, candidates[::-1])
    )
    assert [candidates[at] for at in first.order] == [candidates[::-1][at] for at in turned.order]


class Leftist(Moody):
    """A judge that prefers what stands on the left."""

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        return [1.0 for _ in matchups]


@pytest.mark.parametrize("strategy", ["full", "focus", "swiss", "knockout", "bubble", "sparse", "sparse-refine"])
def test_a_scorer_that_cannot_tell_makes_no_place_in_the_list_the_best(strategy: str) -> None:
    """Also where each model answers all prompts alike."""
    rows = [(Prompt("", f"q {i}"), row("first", "second", "third")[1]) for i in range(90)]
    rankings = rank(Ranker(settings(strategy=strategy, top_k=1), Leftist()), rows)
    firsts = [ranking.order[0] for ranking in rankings]
    assert min(firsts.count(at) for at in range(3)) >= 15
