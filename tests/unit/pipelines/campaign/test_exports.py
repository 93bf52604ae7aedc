"""Votes as files and back: rows, TRL preferences, battles, Argilla records."""

import json
import uuid
from pathlib import Path

import pytest
from campaigns import read_lines, run_rows, small_campaign, vote_all, write_lines

from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.creation import create_campaign
from llm_blender_ray.pipelines.campaign.exports import export_campaign
from llm_blender_ray.pipelines.campaign.imports import ImportCount, import_votes
from llm_blender_ray.pipelines.campaign.records import CampaignError
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.judgements import read_outcomes
from llm_blender_ray.pipelines.quality.votes import side_text
from llm_blender_ray.pipelines.rows.readers import read_rows


def prefer(store: CampaignStore, annotator: str, best: str, comment: str | None = None) -> None:
    """Prefer a model's answers wherever they are shown; else both are bad."""
    items = Assignments(store)
    while (shown := items.next_item(annotator)) is not None:
        left, right = (side_text(shown.row, side) or "" for side in (shown.left, shown.right))
        preferred = "left" if best in left else "right" if best in right else "both_bad"
        items.answer(annotator, shown.item, preferred, comment, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CampaignStore:
    """Three prompts, all pairs: ann and ben prefer alder, cat prefers birch."""
    gold = [
        {
            **run_rows(1)[0],
            "id": "gold",
            "judgements": [{"judge": "us", "left": 0, "right": 1, "preferred": "left"}],
        }
    ]
    folder = tmp_path_factory.mktemp("exports")
    made = small_campaign(folder, count=3, gold=gold, gold_every=1, pairs="all", overlap=3)
    for name, best in (("ann", "alder"), ("ben", "alder"), ("cat", "birch")):
        prefer(made, name, best, comment="clear" if name == "ann" else None)
    return made


def exported(store: CampaignStore, shape: str, name: str = "out.jsonl") -> list[dict]:
    file = store.folder.parent / name
    count = export_campaign(str(store.folder), shape, str(file))
    records = read_lines(file)
    assert len(records) == count
    return records


def test_rows_have_judgements_with_the_annotators_names(store: CampaignStore) -> None:
    records = exported(store, "rows")
    assert [row["id"] for row in records] == ["row-0", "row-1", "row-2"], "gold is left out"
    assert all(len(row["judgements"]) == 9 for row in records)
    outcomes = list(read_outcomes(read_rows(str(store.folder.parent / "out.jsonl"))))
    assert {outcome.judge for outcome in outcomes} == {"ann", "ben", "cat"}
    for outcome in outcomes:
        if outcome.judge != "cat" and "alder" in (outcome.left, outcome.right):
            assert outcome.sign == (1 if outcome.left == "alder" else -1)
    assert {one.get("reply") for row in records for one in row["judgements"] if one["judge"] == "ann"} == {"clear"}
    assert all(one["person"] for row in records for one in row["judgements"])


def test_judgements_that_rows_came_with_stay(tmp_path: Path) -> None:
    rows = run_rows(1)
    given = {"judge": "gpt-4", "left": 0, "right": 1, "preferred": "tie"}
    rows[0]["judgements"] = [given]
    write_lines(tmp_path / "rows.jsonl", rows)
    store = create_campaign([str(tmp_path / "rows.jsonl")], str(tmp_path / "campaign"), CampaignSettings()).store
    vote_all(store, "ann")
    (row,) = exported(store, "rows")
    assert [one["judge"] for one in row["judgements"]] == ["gpt-4", "ann"]
    assert row["judgements"][0] == given


def test_preferences_are_the_majoritys_with_its_share(store: CampaignStore) -> None:
    records = exported(store, "trl")
    by_pair = {(one["chosen_model"], one["rejected_model"]): one for one in records if one["id"] == "row-1"}
    assert set(by_pair) == {("alder", "birch"), ("alder", "cedar"), ("birch", "cedar")}
    one = by_pair["alder", "birch"]
    assert one["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert one["chosen"] == [{"role": "assistant", "content": "alder says 1"}]
    assert one["rejected"] == [{"role": "assistant", "content": "birch says 1"}]
    assert (round(one["score_chosen"], 3), round(one["score_rejected"], 3), one["votes"]) == (0.667, 0.333, 3)
    assert by_pair["birch", "cedar"]["score_chosen"] == pytest.approx(2 / 3), "two ties and one vote"


def test_battles_are_the_arenas(store: CampaignStore) -> None:
    records = exported(store, "arena")
    assert len(records) == 27
    for one in records:
        models = {one["model_a"], one["model_b"]}
        if one["judge"] != "cat" and "alder" in models:
            assert one["winner"] == ("model_a" if one["model_a"] == "alder" else "model_b")
        elif one["judge"] != "cat":
            assert one["winner"] == "tie (bothbad)"
        assert one["conversation_a"][-1]["content"].startswith(one["model_a"])
        assert (one["turn"], one["anony"]) == (1, True)


def test_argilla_records_have_a_response_for_each_vote(store: CampaignStore) -> None:
    records = exported(store, "argilla")
    assert len(records) == 9
    one = next(one for one in records if one["metadata"]["model_b"] == "birch")
    assert one["fields"]["response_a"].startswith(one["metadata"]["model_a"])
    by_name = dict(zip(one["metadata"]["annotators"], one["responses"]["preferred"], strict=True))
    assert {name: response["value"] for name, response in by_name.items()} == {"ann": "a", "ben": "a", "cat": "b"}
    assert len({uuid.UUID(response["user_id"]) for response in by_name.values()}) == 3, "Argilla takes UUIDs only"
    assert one["suggestions"]["preferred"] == {"value": "a", "score": pytest.approx(2 / 3), "agent": "majority"}


def test_a_json_list_and_no_other_ending(store: CampaignStore) -> None:
    file = store.folder.parent / "out.json"
    assert export_campaign(str(store.folder), "argilla", str(file)) == 9
    assert file.read_text().startswith("[\n{")
    with pytest.raises(CampaignError, match=r"expected a file that ends in \.jsonl or \.json"):
        export_campaign(str(store.folder), "rows", "out.csv")


@pytest.mark.parametrize("shape", ["rows", "arena"])
def test_votes_of_a_file_are_added_once(store: CampaignStore, tmp_path: Path, shape: str) -> None:
    exported(store, shape)
    (folder := tmp_path / "other").mkdir()
    other = small_campaign(folder, count=3, pairs="all" if shape == "rows" else "active")
    file = str(store.folder.parent / "out.jsonl")
    assert import_votes(str(other.folder), file) == ImportCount(added=27)
    assert import_votes(str(other.folder), file) == ImportCount(known=27)
    facts = [{(one.annotator, one.prompt, one.names, one.unswapped) for one in made.votes() if one.gold is None}
             for made in (store, other)]  # fmt: skip
    assert facts[0] == facts[1]
    assert Assignments(other).last_answered("ann") is None, "what was imported can't be undone on the page"


def test_argilla_shows_instruction_and_input_on_lines_of_their_own(tmp_path: Path) -> None:
    row = {**run_rows(1)[0], "instruction": "Answer.", "input": "1 + 1?"}
    file = write_lines(tmp_path / "rows.jsonl", [row])
    store = create_campaign([file], str(tmp_path / "campaign"), CampaignSettings(overlap=1)).store
    prefer(store, "ann", "birch")
    export_campaign(str(store.folder), "argilla", str(tmp_path / "out.json"))
    (record,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["fields"]["prompt"] == "Answer.\n1 + 1?"


@pytest.mark.parametrize("shape", ["rows", "arena"])
def test_votes_come_back_to_the_item_that_they_were_on_where_models_share_a_text(
    tmp_path: Path, shape: str
) -> None:
    rows = run_rows(1)
    rows[0]["candidates"][2]["text"] = rows[0]["candidates"][0]["text"]  # cedar answers as alder does
    settings = CampaignSettings(pairs="all", overlap=1)
    store = create_campaign(
        [write_lines(tmp_path / "rows.jsonl", rows)], str(tmp_path / "campaign"), settings
    ).store
    assert len(store.items()) == 2, "alder or cedar against birch"
    prefer(store, "ann", "birch")
    file = str(tmp_path / "out.jsonl")
    export_campaign(str(store.folder), shape, file)  # type: ignore[arg-type]
    assert import_votes(str(store.folder), file) == ImportCount(known=2)
    rows[0]["candidates"].reverse()  # the same answers in another order
    rows[0]["judgements"] = [{"judge": "eve", "left": at, "right": 1, "preferred": "tie"} for at in (0, 2)]
    assert import_votes(str(store.folder), write_lines(tmp_path / "votes.jsonl", rows)) == ImportCount(added=2)


def test_votes_on_other_answers_are_counted_as_unknown(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=3, pairs="all")
    rows = run_rows(5)
    for row in rows:
        row["judgements"] = [{"judge": "eve", "left": 0, "right": 1, "preferred": "left"}]
    rows[0]["candidates"][1]["text"] = "another answer"
    assert import_votes(str(store.folder), write_lines(tmp_path / "votes.jsonl", rows)) == ImportCount(
        added=2, unknown=3
    )
