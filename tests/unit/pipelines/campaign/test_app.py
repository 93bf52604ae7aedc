"""The HTTP API of a campaign on a real server: keys, blindness, votes, refusals, limits."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from campaigns import MODELS, run_rows, small_campaign, write_lines
from serving import refused, served

from llm_blender_ray.pipelines.campaign.app import campaign_service
from llm_blender_ray.pipelines.campaign.creation import KEYS, add_annotators, annotator_keys, create_campaign
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore


class Person:
    """An annotator's client."""

    def __init__(self, url: str, key: str) -> None:
        self.client = httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)

    def next(self) -> dict:
        return self.client.post("/api/next", json={}).raise_for_status().json()

    def answer(self, item: int, preferred: str | None = "left", **more: object) -> httpx2.Response:
        return self.client.post("/api/answers", json={"item": item, "preferred": preferred, **more})


@pytest.fixture
def store(tmp_path: Path) -> CampaignStore:
    return small_campaign(tmp_path, count=3, title="<b>Which?</b>", criteria=("true",), instructions="Be fair.")


@pytest.fixture
def keys(store: CampaignStore) -> dict[str, str]:
    return add_annotators(store.folder, ["ann", "ben"])


@pytest.fixture
def url(store: CampaignStore, keys: dict[str, str]) -> Iterator[str]:
    with served(campaign_service(store, annotator_keys(store.folder))) as url:
        yield url


def test_a_vote_is_kept_and_brings_the_next_item(url: str, keys: dict[str, str], store: CampaignStore) -> None:
    ann = Person(url, keys["ann"])
    about = ann.client.get("/api/campaign").json()
    assert about == {"title": "<b>Which?</b>", "instructions": "Be fair.", "criteria": ["true"], "annotator": "ann"}
    first = ann.next()
    assert first["progress"] == {"answered": 0, "votes": 0, "wanted": 3, "last": None}
    item = first["item"]["item"]
    voted = ann.answer(item, "both_bad", comment="  poor  ", seconds=2.5)
    assert voted.status_code == 201
    assert voted.json()["item"]["item"] != item
    assert voted.json()["progress"] == {"answered": 1, "votes": 1, "wanted": 3, "last": item}
    (vote,) = store.votes()
    assert (vote.annotator, vote.preferred, vote.comment, vote.seconds) == ("ann", "both_bad", "poor", 2.5)
    undone = ann.client.post("/api/undo", json={"item": item}).json()
    assert undone["item"] == first["item"] and undone["progress"]["last"] is None
    assert list(store.votes()) == []


def test_no_response_names_a_model(url: str, keys: dict[str, str]) -> None:
    ann = Person(url, keys["ann"])
    while (state := ann.next())["item"]:
        shown = json.dumps({**state["item"], "left": "", "right": ""})
        assert not any(name in shown for name in MODELS)
        ann.answer(state["item"]["item"])


def test_outer_space_tells_no_model_apart(tmp_path: Path) -> None:
    rows = run_rows(1, models=["a", "b"])
    rows[0]["candidates"][0]["text"] = " \n one answer\n\n  of two lines \n"
    uri = write_lines(tmp_path / "rows.jsonl", rows)
    store = create_campaign([uri], str(tmp_path / "campaign"), CampaignSettings()).store
    key = add_annotators(store.folder, ["ann"])["ann"]
    with served(campaign_service(store, annotator_keys(store.folder))) as url:
        item = Person(url, key).next()["item"]
    assert {item["left"], item["right"]} == {"one answer\n\n  of two lines", "b says 0"}


def test_a_key_is_needed_and_kept_as_a_digest(url: str, keys: dict[str, str], store: CampaignStore) -> None:
    refused(httpx2.post(f"{url}/api/next", json={}), 401, "invalid_api_key")
    refused(Person(url, "blend-wrong").client.post("/api/next", json={}), 401, "invalid_api_key")
    refused(httpx2.get(f"{url}/nowhere"), 401, "invalid_api_key")
    kept = (store.folder / KEYS).read_text()
    assert all(key not in kept for key in keys.values())
    assert (store.folder / KEYS).stat().st_mode & 0o077 == 0
    (store.folder / KEYS).write_text("".join(line for line in kept.splitlines(True) if line.startswith("ben ")))
    refused(Person(url, keys["ann"]).client.post("/api/next", json={}), 401, "invalid_api_key")
    Person(url, keys["ben"]).next()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"item": 99, "preferred": "left"}, 404, "unknown_item"),
        ({"item": 3, "preferred": "left"}, 409, "item_lost"),
        ({"item": 1, "preferred": "alder"}, 400, "invalid_value"),
        ({"item": 0, "preferred": "left"}, 400, "invalid_value"),
        ({"item": 10**30, "preferred": "left"}, 400, "invalid_value"),
        ({"item": 1}, 400, "missing_required_parameter"),
        ({"item": 1, "preferred": None, "annotator": "ben"}, 400, "unsupported_parameter"),
        ({"item": 1, "preferred": None, "comment": "x" * 5001}, 400, "invalid_value"),
        ({"item": 1, "preferred": None, "comment": "x" * (1 << 17)}, 413, "too_large"),
    ],
)
def test_a_wrong_answer_is_refused(url: str, keys: dict[str, str], body: object, status: int, code: str) -> None:
    response = Person(url, keys["ann"]).client.post("/api/answers", json=body)
    assert response.status_code == status, response.text
    assert code in ("unsupported_parameter", response.json()["error"]["code"])


def test_another_vote_on_the_item_is_refused_and_the_same_is_not(url: str, keys: dict[str, str]) -> None:
    ann = Person(url, keys["ann"])
    item = ann.next()["item"]["item"]
    assert [ann.answer(item).status_code for _ in range(2)] == [201, 201]
    refused(ann.answer(item, "right"), 409, "answered_before")


def test_the_page_loads_nothing_and_runs_its_own_script_only(url: str) -> None:
    page = httpx2.get(f"{url}/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "innerHTML" not in page.text and "insertAdjacentHTML" not in page.text


@pytest.mark.slow
def test_acknowledged_votes_survive_a_killed_server(tmp_path: Path) -> None:
    store = small_campaign(tmp_path, count=40)
    key = add_annotators(store.folder, ["ann"])["ann"]
    command = [sys.executable, "-m", "llm_blender_ray", "campaign", "serve", str(store.folder), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    acknowledged = []
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert "serving the campaign at http://127.0.0.1:" in line, line
        ann = Person(line.split(" at ")[1].strip(), key)
        item = ann.next()["item"]
        for count in range(12):
            if count == 8:
                server.send_signal(signal.SIGKILL)
            try:
                voted = ann.answer(item["item"], comment=f"vote {count}")
            except httpx2.TransportError:
                break
            acknowledged.append((item["item"], f"vote {count}"))
            item = voted.json()["item"]
    finally:
        server.kill()
        errors = server.communicate()[1]
    assert key not in errors
    assert len(acknowledged) >= 8
    kept = [(vote.item, vote.comment) for vote in CampaignStore(store.folder).votes()]
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1, "the one whose acknowledgement got lost"
