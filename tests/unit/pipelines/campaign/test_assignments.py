"""Items go to annotators one by one: exact overlap, nobody twice, abandoned ones return, undo, balanced sides."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from campaigns import run_rows, small_campaign, vote_all
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.records import (
    AnsweredBeforeError,
    CampaignError,
    ItemLostError,
    UnknownItemError,
)
from llm_blender_ray.pipelines.campaign.store import CampaignStore, add_event
from llm_blender_ray.pipelines.quality.votes import side_text

GOLD = [{**row, "id": f"gold-{at}", "judgements": [{"judge": "us", "left": 0, "right": 1, "preferred": "left"}]}
        for at, row in enumerate(run_rows(3))]  # fmt: skip


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reopened(store: CampaignStore, clock: Clock) -> CampaignStore:
    return CampaignStore(store.folder, clock)


def test_an_item_gets_exactly_as_many_votes_as_the_overlap(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=5, overlap=2)
    done = [vote_all(store, name) for name in ("ann", "ben", "cat")]
    assert sum(done) == 10
    assert set(Counter(vote.item for vote in store.votes()).values()) == {2}
    assert store.progress() == (10, 10)


def test_annotators_at_once_never_exceed_the_overlap(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=6, overlap=2)
    begin = threading.Barrier(5)

    def annotate(name: str) -> None:
        begin.wait()
        vote_all(CampaignStore(store.folder), name)

    threads = [threading.Thread(target=annotate, args=(name,)) for name in "abcde"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = list(store.votes())
    assert set(Counter(vote.item for vote in votes).values()) == {2}
    assert max(Counter((vote.item, vote.annotator) for vote in votes).values()) == 1


def test_the_same_item_comes_until_it_is_answered(tmp_path: Path) -> None:
    items = Assignments(small_campaign(tmp_path))
    assert items.next_item("ann") == items.next_item("ann")


def test_an_abandoned_item_returns(tmp_path: Path, clock: Clock) -> None:
    store = reopened(small_campaign(tmp_path, count=1, lease_s=60), clock)
    items = Assignments(store)
    first = items.next_item("ann")
    assert first is not None
    assert items.next_item("ben") is None
    clock.now += 61
    second = items.next_item("ben")
    assert second is not None and second.item == first.item
    with pytest.raises(ItemLostError, match="another annotator has got it"):
        items.answer("ann", first.item, "left", None, None)
    items.answer("ben", second.item, "right", None, None)
    assert items.next_item("ann") is None
    assert [vote.annotator for vote in store.votes()] == ["ben"]


def test_a_late_vote_counts_while_nobody_else_has_the_item(tmp_path: Path, clock: Clock) -> None:
    store = reopened(small_campaign(tmp_path, count=1, lease_s=60), clock)
    items = Assignments(store)
    shown = items.next_item("ann")
    assert shown is not None
    clock.now += 3600
    items.answer("ann", shown.item, "left", None, None)
    assert store.progress() == (1, 1)


def test_the_same_answer_again_changes_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=1)
    items = Assignments(store)
    shown = items.next_item("ann")
    assert shown is not None
    for _ in range(2):
        items.answer("ann", shown.item, "left", "clear", 3.0)
    with pytest.raises(AnsweredBeforeError):
        items.answer("ann", shown.item, "right", "clear", 3.0)
    assert [(vote.preferred, vote.comment) for vote in store.votes()] == [("left", "clear")]


def test_only_what_is_shown_can_be_answered(tmp_path: Path) -> None:
    items = Assignments(small_campaign(tmp_path))
    with pytest.raises(ItemLostError):
        items.answer("ann", 1, "left", None, None)
    with pytest.raises(UnknownItemError):
        items.answer("ann", 99, "left", None, None)


def test_the_database_itself_refuses_a_second_vote_and_any_change_of_an_event(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=1)
    vote_all(store, "ann")
    with pytest.raises(CampaignError, match="UNIQUE constraint"), store.changing() as database:
        add_event(database, "now", "ann", 1, "vote", 0, "right")
    for statement in ("UPDATE events SET preferred = 'right'", "DELETE FROM events"):
        with pytest.raises(CampaignError, match="only added"), store.changing() as database:
            database.execute(statement)
    assert [vote.preferred for vote in store.votes()] == ["left"]


def test_a_skipped_item_goes_to_another_annotator(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=1)
    items = Assignments(store)
    shown = items.next_item("ann")
    assert shown is not None
    items.answer("ann", shown.item, None, "no idea", None)
    assert items.next_item("ann") is None
    assert store.progress() == (0, 1)
    assert vote_all(store, "ben") == 1


def test_undo_brings_the_item_back_as_it_was_and_keeps_history(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=3)
    items = Assignments(store)
    first = items.next_item("ann")
    assert first is not None
    items.answer("ann", first.item, "left", None, None)
    second = items.next_item("ann")
    assert second is not None and second.item != first.item
    assert items.undo("ann", items.last_answered("ann") or 0)
    assert not items.undo("ann", first.item)
    assert items.next_item("ann") == first
    assert list(store.votes()) == []
    items.answer("ann", first.item, "right", None, None)
    assert [vote.preferred for vote in store.votes()] == ["right"]
    assert items.next_item("ben") is not None
    with store.reading() as database:
        kinds = [kind for (kind,) in database.execute("SELECT kind FROM events ORDER BY event")]
    assert kinds == ["vote", "undo", "vote"]


def test_an_undone_skip_takes_no_place_that_others_have_got(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=1)
    items = Assignments(store)
    shown = items.next_item("ann")
    assert shown is not None
    items.answer("ann", shown.item, None, None, None)
    assert items.next_item("ben") is not None
    assert items.undo("ann", shown.item)
    assert items.next_item("ann") is None


def test_undo_is_of_ones_own_answers(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=1)
    vote_all(store, "ann")
    assert not Assignments(store).undo("ben", 1)
    assert store.progress() == (1, 1)


def test_each_side_is_on_the_left_equally_often(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=6, overlap=2)
    for name in ("ann", "ben"):
        vote_all(store, name)
    sides = Counter((vote.item, vote.swapped) for vote in store.votes())
    assert set(sides.values()) == {1}, "each item was shown once either way"
    first = [vote.swapped for vote in store.votes() if vote.annotator == "ann"]
    assert {*first} == {True, False}, "and by chance first"


def test_the_shown_texts_are_those_of_the_vote(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=4)
    items = Assignments(store)
    while (shown := items.next_item("ann")) is not None:
        left = side_text(shown.row, shown.left) or ""
        items.answer("ann", shown.item, "left" if "alder" in left else "right", None, None)
    rows = store.rows()
    for vote in store.votes():
        left, right = (side_text(rows[vote.prompt], side) or "" for side in vote.shown)
        assert (vote.preferred == "left") == ("alder" in left), (left, right)


def test_gold_items_go_to_everyone_and_count_for_nothing_else(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=20, gold=GOLD, gold_every=2)
    assert store.progress() == (0, 20)
    items = Assignments(store)
    order: dict[str, list[bool]] = {}
    gold = {item.item for item in store.items() if item.gold}
    for name in ("ann", "ben"):
        order[name] = []
        while (shown := items.next_item(name)) is not None and len(order[name]) < 11:
            order[name].append(shown.item in gold)
            items.answer(name, shown.item, "left", None, None)
    assert [sum(shown) for shown in order.values()] == [3, 3]
    assert order["ann"] != order["ben"], "where they come is different for everyone"
    assert store.progress() == (16, 20)


@settings(max_examples=6, phases=[Phase.generate])  # each step is on the disk: shrinking would take minutes
@given(st.data())
def test_whatever_happens_no_item_has_more_places_than_the_overlap(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    clock = Clock()
    folder = tmp_path_factory.mktemp("campaign")
    store = reopened(small_campaign(folder, count=2, overlap=2, lease_s=10), clock)
    items = Assignments(store)
    for _ in range(data.draw(st.integers(5, 25))):
        name = data.draw(st.sampled_from("abc"))
        match data.draw(st.sampled_from(["vote", "skip", "undo", "leave", "late"])):
            case "undo":
                items.undo(name, items.last_answered(name) or 0)
            case "leave":
                clock.now += data.draw(st.sampled_from([1, 11]))
            case "late":
                shown = items.next_item(name)
                clock.now += 11
                items.next_item(data.draw(st.sampled_from("abc")))
                if shown:
                    try:
                        items.answer(name, shown.item, "left", None, None)
                    except ItemLostError:
                        assert clock.now > 1000
            case kind:
                if shown := items.next_item(name):
                    items.answer(name, shown.item, "left" if kind == "vote" else None, None, None)
        votes = Counter(vote.item for vote in store.votes())
        with store.reading() as database:
            query = "SELECT item, count(*) FROM leases WHERE expires > ? GROUP BY item"
            places = votes + Counter(dict(database.execute(query, (clock.now,)).fetchall()))
        assert max(places.values(), default=0) <= 2
