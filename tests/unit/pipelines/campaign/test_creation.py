"""New campaigns: contestants, balanced pairs, gold items, and the command line."""

from collections import Counter
from pathlib import Path

import pytest
from campaigns import MODELS, run_rows, small_campaign, vote_all, write_lines
from commands import InProcess

from llm_blender_ray.pipelines.campaign.creation import create_campaign
from llm_blender_ray.pipelines.campaign.records import CampaignError
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.status import campaign_status


def pairs_of(folder: Path, rows: list, **settings: object) -> list[tuple[str, str]]:
    uri = write_lines(folder / "rows.jsonl", rows)
    made = create_campaign([uri], str(folder / "campaign"), CampaignSettings.model_validate(settings))
    return [item.names for item in made.store.items()]


def test_every_two_contestants_meet_equally_often(tmp_path: Path) -> None:
    met = Counter(pairs_of(tmp_path, run_rows(10), items=12))
    assert met == {("alder", "birch"): 4, ("alder", "cedar"): 4, ("birch", "cedar"): 4}


def test_all_pairs_of_all_prompts(tmp_path: Path) -> None:
    assert len(pairs_of(tmp_path, run_rows(4), pairs="all")) == 12


def test_the_blend_and_the_rankers_choice_are_contestants(tmp_path: Path) -> None:
    assert Counter(pairs_of(tmp_path, run_rows(3, fused=True), contestants=("blend", "ranker"))) == {
        ("blend", "ranker"): 3
    }


def test_the_blend_takes_part_where_there_is_one(tmp_path: Path) -> None:
    names = {name for pair in pairs_of(tmp_path, run_rows(3, fused=True), pairs="all") for name in pair}
    assert names == {*MODELS, "blend"}


def test_the_rankers_choice_is_not_compared_twice(tmp_path: Path) -> None:
    """It is an answer of alder: one judgement is about both."""
    rows = run_rows(1, fused=True)
    assert len(pairs_of(tmp_path, rows, pairs="all", contestants=("alder", "birch", "ranker"))) == 1


def test_equal_answers_are_not_compared(tmp_path: Path) -> None:
    rows = run_rows(1)
    rows[0]["candidates"][1]["text"] = " alder says 0\n"
    assert pairs_of(tmp_path, rows, pairs="all") == [("alder", "cedar"), ("birch", "cedar")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contestants": ("alder", "oak")}, "--contestant oak: there is none in the rows, but alder, birch, cedar"),
        ({"contestants": ("alder",)}, "one alone can't be compared"),
    ],
)
def test_unknown_contestants_are_named(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        pairs_of(tmp_path, run_rows(1), **settings)


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="no row has two different answers"):
        pairs_of(tmp_path, run_rows(2, models=["alder"]))


def test_an_active_campaign_opens_as_many_items_as_it_may(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=6, pairs="active", items=7, overlap=2)
    assert sum(vote_all(store, name) for name in ("ann", "ben", "cat")) == 14
    assert store.progress() == (14, 14)


def test_an_active_campaign_is_the_same_by_seed(tmp_path: Path) -> None:
    asked = []
    for at, seed in enumerate((1, 1, 2)):
        (folder := tmp_path / str(at)).mkdir()
        store = small_campaign(folder, count=6, pairs="active", items=6, seed=seed)
        vote_all(store, "ann", "tie")
        asked.append([vote.item for vote in store.votes()])
    assert asked[0] == asked[1] != asked[2]


def test_the_command_line(tmp_path: Path, blend_here: InProcess) -> None:
    rows, folder = write_lines(tmp_path / "rows.jsonl", run_rows(4)), tmp_path / "campaign"
    blend_here("campaign", "create", rows, "--output", tmp_path / "nobody")
    assert "0 of 4 votes" in blend_here("campaign", "status", tmp_path / "nobody").stdout
    assert "nobody may vote" in blend_here("campaign", "serve", tmp_path / "nobody", code=1).stderr
    made = blend_here(
        "campaign", "create", rows, "--output", folder, "--annotator", "ann", "--url", "https://a.org/"
    )
    assert "4 items of 4 prompts, 0 gold items; contestants: alder, birch, cedar" in made.stderr
    assert "ann: https://a.org/#blend-" in made.stdout
    again = blend_here("campaign", "create", rows, "--output", folder, code=1)
    assert "a campaign is there already" in again.stderr
    invited = blend_here("campaign", "invite", folder, "ben")
    assert "ben: http://127.0.0.1:8000/#blend-" in invited.stdout
    assert set(campaign_status(str(folder)).annotators) == {"ann", "ben"}
    shown = blend_here("campaign", "status", folder)
    assert "0 of 4 votes, 0 items complete" in shown.stdout.splitlines()[0] and "ben" in shown.stdout
    assert "no campaign is there" in blend_here("campaign", "status", tmp_path, code=1).stderr
    wrong = blend_here(
        "campaign", "create", rows, "--output", tmp_path / "b", "--pairs", "all", "--items", "2", code=2
    )
    assert "`--pairs all` has every pair" in wrong.stderr
    assert "a key's name has" in blend_here("campaign", "create", rows, "--output", tmp_path / "c",
                                            "--annotator", "a b", code=1).stderr  # fmt: skip
    assert not (tmp_path / "c").exists()
