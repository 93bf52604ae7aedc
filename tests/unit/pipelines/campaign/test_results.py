"""Results: the leaderboard by votes, and annotators against gold, the rest and Dawid and Skene's estimate."""

import json
from pathlib import Path

import pytest
from campaigns import run_rows, small_campaign, vote_all, write_lines
from commands import InProcess

from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.records import CampaignError
from llm_blender_ray.pipelines.campaign.results import campaign_results
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.votes import side_text

GOLD = [
    {**row, "id": f"gold-{at}", "judgements": [{"judge": "us", "left": 0, "right": 1, "preferred": "left"}]}
    for at, row in enumerate(run_rows(4))
]
ORDER = ("alder", "birch", "cedar")  # best first


def judge(store: CampaignStore, name: str, *, wrong: bool = False) -> None:
    """Prefer the better model, or always the worse one."""
    items = Assignments(store)
    while (shown := items.next_item(name)) is not None:
        names = [(side_text(shown.row, side) or "").split()[0] for side in (shown.left, shown.right)]
        is_left = ORDER.index(names[0]) < ORDER.index(names[1])
        items.answer(name, shown.item, "left" if is_left != wrong else "right", None, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six prompts, all pairs, gold items; ann and ben are always right, liar never is."""
    store = small_campaign(
        tmp_path_factory.mktemp("results"), count=6, gold=GOLD, gold_every=2, pairs="all", overlap=3
    )
    for name in ("ann", "ben", "liar"):
        judge(store, name, wrong=name == "liar")
    return str(store.folder)


def test_annotators_are_held_against_gold_the_rest_and_the_estimate(folder: str) -> None:
    report = campaign_results(folder)
    assert (report["votes"], report["items"]) == (54, 18)
    ann, liar = (report["annotators"][name] for name in ("ann", "liar"))
    assert (ann["gold"]["agrees"], ann["gold"]["of"]) == (4, 4)
    assert (liar["gold"]["agrees"], liar["gold"]["share"]) == (0, 0)
    assert liar["rest"]["value"] == 0 and liar["rest"]["n"] == 18
    assert ann["seconds"] == 2
    assert ann["reliability"] > 0.99 and liar["reliability"] < 0.01
    assert report["alpha"]["value"] < 0.1
    assert report["consensus"] == {"majority": 18, "drawn": 0, "differ": 0}


@pytest.mark.parametrize("aggregation", ["votes", "dawid-skene"])
def test_the_leaderboard_is_of_the_votes_or_their_consensus(folder: str, aggregation: str) -> None:
    report = campaign_results(folder, aggregation)  # type: ignore[arg-type]
    board = report["leaderboard"]
    assert board["comparisons"] == (54 if aggregation == "votes" else 18)
    wins = {
        name: one["means"]["win_rate"]["mean"] for name, one in board["table"]["systems"].items() if name in ORDER
    }
    expected = {"alder": 2 / 3, "birch": 1 / 2, "cedar": 1 / 3} if aggregation == "votes" else dict(
        zip(ORDER, (1, 1 / 2, 0), strict=True))  # fmt: skip
    assert wins == pytest.approx(expected)


def test_votes_of_the_online_page_enter_the_same_table(folder: str, tmp_path: Path) -> None:
    rows = run_rows(2)
    for row in rows:
        row |= {
            "id": f"online-{row['id']}",
            "vote": {"left": 1, "right": 0, "preferred": "left", "at": "2026-01-01"},
        }
    file = write_lines(tmp_path / "votes.jsonl", rows)
    assert campaign_results(folder, more=[file])["leaderboard"]["comparisons"] == 56


def test_without_votes_there_are_no_results(tmp_path: Path) -> None:
    store = small_campaign(tmp_path)
    vote_all(store, "ann", None)
    with pytest.raises(CampaignError, match="no votes yet"):
        campaign_results(str(store.folder))


def test_the_tables_say_the_same(folder: str, blend_here: InProcess) -> None:
    shown = blend_here("campaign", "results", folder).stdout
    assert "54 votes on 18 items" in shown and "Krippendorff's alpha" in shown
    assert "100%" in shown and "liar" in shown
    report = json.loads(blend_here("campaign", "results", folder, "--json", "--aggregate", "majority").stdout)
    assert (report["aggregation"], report["leaderboard"]["comparisons"]) == ("majority", 18)
