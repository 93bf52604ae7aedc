"""The page for people in a real browser: headless Chromium, as the distribution ships it, driven by Playwright."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from serving import app_of, demo_blender, served

from llm_blender_ray.actors.records import Candidate, Prompt, Ranking
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.schema import SamplingOverrides
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.quality.votes import FUSED, read_vote
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.ballots import Ballots

pytestmark = pytest.mark.browser

QUESTION = "Solve these three small tasks.\n1) Spanish for black 2) opposite of win 3) capital of Japan"
MEMBERS = ("alder", "birch", "cedar", "hazel", "maple", "rowan")
expect.set_options(timeout=30_000)  # a slow machine is no failure
KEY = "a-key-for-the-tests"
DONE = re.compile(r"^Done in [\d.]+ seconds\.$")


@dataclass
class Tab:
    """A page, and what it complained of and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)  # the console's, violations of the CSP among them
    requested: list[str] = field(default_factory=list)

    def __getitem__(self, id: str) -> Locator:
        return self.page.locator(f"#{id}")

    def ask(self, question: str = QUESTION) -> None:
        self["question"].fill(question)
        self["question"].press("Enter")

    def ask_to_the_end(self, question: str = QUESTION) -> None:
        self.ask(question)
        expect(self["status"]).to_have_text(DONE, timeout=60_000)

    @property
    def cards(self) -> list[tuple[str, str]]:
        """Title and text of every answer."""
        shown = self.page.locator("#cards li").all()
        return [(one.locator("h3").inner_text(), one.locator(".text").inner_text()) for one in shown]

    @property
    def vote(self) -> Callable[[str], Locator]:
        return lambda preferred: self.page.locator(f"[data-preferred={preferred}]")

    def sideways(self) -> int:
        """CSS pixels that one could scroll to the right."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


Open = Callable[..., Tab]
Serve = Callable[[FastAPI], str]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Open]:
    """Opens a URL. In the end, whatever was opened asked one host only, and complained of nothing."""
    with contextlib.ExitStack() as stack:
        tabs: list[Tab] = []

        def open_(url: str, before: str = "", **options: object) -> Tab:
            """before: a script that runs before the page's own."""
            context: BrowserContext = browser.new_context(**options)  # type: ignore[arg-type]
            stack.callback(context.close)
            context.add_init_script(before)
            tab = Tab(context.new_page())
            tab.page.on("console", lambda said: tab.complaints.append(said.text) if said.type != "log" else None)
            tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
            tab.page.on("request", lambda request: tab.requested.append(request.url))
            tab.page.goto(url)
            tabs.append(tab)
            return tab

        yield open_
        for tab in tabs:
            assert {urlsplit(url).netloc for url in tab.requested} == {urlsplit(tab.page.url).netloc}
            assert tab.complaints == []


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def service(votes: Path) -> Iterator[str]:
    """The included miniature, keeping votes."""
    with served(app_of(ballots=Ballots(str(votes)))) as url:
        yield url


@dataclass
class Scripted:
    """A member that says what it is told to; with None in it, it says no more and waits to be cancelled."""

    name: str
    says: Sequence[str | None]
    samples: int = 1
    heard: list[Prompt] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        raise AssertionError("the page streams")

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        self.heard.append(prompt)
        try:
            for piece in self.says:
                if piece is None:
                    await asyncio.Event().wait()
                else:
                    yield piece
            yield Candidate(self.name, "".join(filter(None, self.says)), finish_reason="stop")
        finally:
            self.ended.set()


@dataclass
class Failing(Scripted):
    """A member that has no answer."""

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        yield Candidate(self.name, error="out of <b>luck</b>")


class NoRanker:
    """A ranker that can't."""

    async def rank_one(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> Ranking:
        raise AssertionError("the page follows the rounds")

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        raise RuntimeError("gone fishing")
        yield


def app_with(*members: Scripted, ranker: object = None, **options: object) -> FastAPI:
    real = demo_blender()
    return app_of(Blender(members, ranker or real.ranker, real.fuser, top_k=3), **options)  # type: ignore[arg-type]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(served(app))


def test_ask_vote_blind_and_see_who_it_was(service: str, votes: Path, open_tab: Open) -> None:
    tab = open_tab(service)
    tab.ask_to_the_end()
    blind = tab.cards
    assert [title for title, _ in blind] == [f"Answer {letter}" for letter in "ABCDEF"]
    expect(tab["judged"]).to_be_hidden()
    expect(tab["vote"]).to_be_visible()
    shown = tab["result"].inner_text()
    assert not [name for name in MEMBERS if name in shown]

    fused = tab["fused"].inner_text()
    chosen = next(place for place, (_, text) in enumerate(blind) if text != fused)  # a blend may say what one says
    tab["left"].select_option(label=blind[chosen][0])
    tab["right"].select_option(label="Blend")
    tab.vote("left").click()
    expect(tab["status"]).to_have_text("Thank you, your vote is kept.")
    expect(tab["vote"]).to_be_hidden()
    expect(tab["ranking-head"]).to_be_focused()

    row = list(read_rows(str(votes)))[-1]
    assert row["messages"] == [{"role": "user", "content": QUESTION}]
    of = {candidate["text"]: set() for candidate in row["candidates"]}
    for candidate in row["candidates"]:
        of[candidate["text"]].add(candidate["model"])
    for (letter, text), (title, again) in zip(blind, tab.cards, strict=True):
        before, name = title.split(": ")
        assert (f"Answer {before}", again) == (letter, text)
        assert name in of[text]
    vote = read_vote(row)
    assert vote is not None
    assert (vote.right, vote.preferred) == (FUSED, "left")
    assert row["candidates"][vote.left]["model"] == tab.cards[chosen][0].split(": ")[1]
    assert row["fused"] == tab["fused"].inner_text() == fused != ""

    names = [cell.inner_text().split(": ")[1] for cell in tab.page.locator("#ranking th").all()]
    assert names == [row["candidates"][at]["model"] for at in row["ranking"]]
    cells = tab.page.locator("#matrix [role=cell]")
    assert cells.count() == 36
    told = [cell.get_attribute("aria-label") for cell in cells.all()]
    assert told[::7] == ["the same"] * 6
    known = [row["logits"][i][j] for i in row["ranking"] for j in row["ranking"]]
    assert [text not in ("the same", "not compared") for text in told] == [logit is not None for logit in known]
    assert [text[0] for text in told if text[0] in "+−"] == ["−" if one < 0 else "+" for one in known if one]
    assert tab["verdict"].inner_text().startswith(f"You preferred {blind[chosen][0][-1]}: ")
    stages = [line.inner_text().split("\t")[0] for line in tab.page.locator("#stages tr").all()]
    assert stages == ["Answers", f"Ranking, {row['comparisons']} comparisons", "Blend", "In all"]


def test_by_keyboard_alone(service: str, votes: Path, open_tab: Open) -> None:
    tab = open_tab(service)
    keyboard = tab.page.keyboard
    expect(tab["question"]).to_be_focused()
    first, second = QUESTION.split("\n")
    keyboard.type(first)
    keyboard.press("Shift+Enter")
    keyboard.type(second)
    assert tab["question"].input_value() == QUESTION
    keyboard.press("Enter")
    expect(tab["status"]).to_have_text(DONE, timeout=60_000)
    before = len(list(read_rows(str(votes)))) if votes.exists() else 0
    seen = []
    while seen[-1:] != ["tie"]:
        keyboard.press("Tab")
        focused = tab.page.locator(":focus")
        seen.append(focused.get_attribute("data-preferred") or focused.get_attribute("id") or "")
        assert focused.evaluate("one => getComputedStyle(one).outlineStyle") == "solid", seen
        assert len(seen) < 12, seen
    assert seen == ["ask", "follow", "left", "right", "left", "tie"]
    keyboard.press("Enter")
    expect(tab["ranking-head"]).to_be_focused()
    assert len(list(read_rows(str(votes)))) == before + 1
    assert tab["verdict"].inner_text().endswith("equally good.")


def test_names_without_a_vote(service: str, votes: Path, open_tab: Open) -> None:
    tab = open_tab(service)
    tab.ask_to_the_end()
    before = votes.read_bytes() if votes.exists() else None
    tab["reveal"].click()
    expect(tab["judged"]).to_be_visible()
    expect(tab["vote"]).to_be_hidden()
    assert tab["verdict"].inner_text() == ""
    assert (votes.read_bytes() if votes.exists() else None) == before


def test_places_and_the_pair_that_is_proposed_are_drawn(open_tab: Open, serve: Serve, tmp_path: Path) -> None:
    members = [Scripted(name, [name[0]]) for name in ("alder", "birch", "cedar")]
    url = serve(app_with(*members, ballots=Ballots(str(tmp_path / "votes.jsonl"))))

    def drawn(number: float) -> tuple[list[str], list[str]]:
        tab = open_tab(url, before=f"Math.random = () => {number}")
        tab.ask_to_the_end()
        sides = [tab[side].locator("option:checked").inner_text() for side in ("left", "right")]
        return [text for _, text in tab.cards], sides

    assert drawn(0.0) == (["b", "c", "a"], ["Blend", "Answer B"])
    assert drawn(0.999) == (["a", "b", "c"], ["Answer A", "Answer B"])


def test_only_answers_that_differ_can_be_told_apart(open_tab: Open, serve: Serve, tmp_path: Path) -> None:
    twins = [Scripted("alder", ["red"]), Scripted("birch", ["red"]), Scripted("cedar", ["blue"])]
    tab = open_tab(serve(app_with(*twins, ballots=Ballots(str(tmp_path / "votes.jsonl")))))
    tab.ask_to_the_end()
    reds = [title for title, text in tab.cards if text == "red"]
    proposed = {tab[side].locator("option:checked").inner_text() for side in ("left", "right")}
    assert proposed != set(reds)
    tab["left"].select_option(label=reds[0])
    tab["right"].select_option(label=reds[1])
    expect(tab["same"]).to_be_visible()
    expect(tab.vote("tie")).to_be_disabled()
    tab["left"].select_option(label=reds[1])  # the other side gives way
    assert tab["right"].locator("option:checked").inner_text() != reds[1]


def test_without_votes_names_are_shown_from_the_start(open_tab: Open, serve: Serve) -> None:
    tab = open_tab(serve(app_of()))
    tab.ask_to_the_end()
    assert [title for title, _ in tab.cards] == list(MEMBERS)
    expect(tab["judged"]).to_be_visible()
    expect(tab["vote"]).to_be_hidden()


def test_pieces_are_shown_as_they_come_and_stop_stops(open_tab: Open, serve: Serve) -> None:
    members = [Scripted("alder", ["so ", "far", None]), Scripted("birch", ["all of it"])]
    tab = open_tab(serve(app_with(*members)), reduced_motion="no-preference")
    tab.ask("anything")
    expect(tab.page.locator("#cards li", has_text="alder").locator(".text")).to_have_text("so far")
    expect(tab.page.locator("#cards li", has_text="birch").locator(".text")).to_have_text("all of it")
    expect(tab["ask"]).to_be_hidden()
    assert tab.page.evaluate("document.getAnimations().length") > 0
    tab["question"].fill("another")
    tab["question"].press("Enter")  # one at a time
    assert tab["question"].input_value() == "another"
    assert not members[0].ended.is_set()
    tab["stop"].click()
    expect(tab["status"]).to_have_text("Stopped.")
    assert members[0].ended.wait(30)  # down to the model
    expect(tab["ask"]).to_be_focused()
    assert [text for _, text in tab.cards] == ["so far", "all of it"]
    expect(tab["problem"]).to_have_text("")
    assert len(members[0].heard) == 1


def test_nothing_moves_for_those_who_want_it_still(open_tab: Open, serve: Serve) -> None:
    tab = open_tab(serve(app_with(Scripted("alder", ["so far", None]))), reduced_motion="reduce")
    tab.ask("anything")
    expect(tab.page.locator("#cards .text")).to_have_text("so far")
    assert tab.page.evaluate("document.getAnimations().length") == 0
    tab["stop"].click()


def test_a_question_can_go_on_from_an_answer(open_tab: Open, serve: Serve) -> None:
    member = Scripted("alder", ["red"])
    tab = open_tab(serve(app_with(member)))
    expect(tab["follow-label"]).to_be_hidden()
    tab.ask_to_the_end("first")
    answer = tab["fused"].inner_text()
    tab["follow"].check()
    tab.ask_to_the_end("second")
    assert [(turn["role"], turn["content"]) for turn in member.heard[1].messages] == [
        ("user", "first"),
        ("assistant", answer),
        ("user", "second"),
    ]
    assert tab["asked"].inner_text() == "second"
    tab.page.locator("summary").click()
    assert tab["turns"].inner_text().splitlines() == ["You", "first", "Blend", answer]
    tab["follow"].uncheck()
    tab.ask_to_the_end("third")
    assert [turn["content"] for turn in member.heard[2].messages] == ["third"]
    expect(tab["earlier"]).to_be_hidden()


def test_what_models_say_is_text_and_what_went_wrong_is_told(open_tab: Open, serve: Serve, tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    members = [Scripted("alder", [markup]), Scripted("birch", ["plain"]), Failing("cedar", [])]
    tab = open_tab(serve(app_with(*members, ranker=NoRanker(), ballots=Ballots(str(tmp_path / "votes.jsonl")))))
    tab.ask_to_the_end(markup)
    assert {text for _, text in tab.cards} == {markup, "plain", ""}
    assert tab["asked"].inner_text() == markup
    assert "luck" not in tab["result"].inner_text()  # an error may tell who it is
    expect(tab["degraded"]).to_have_text("Something went wrong; details are shown with the names.")
    assert tab["left"].locator("option").count() == 3  # without cedar
    tab["reveal"].click()
    assert tab["degraded"].inner_text().split("\n\n") == [
        "cedar: out of <b>luck</b>",
        "ranker: RuntimeError: gone fishing; answers stand in the order of their models' record so far",
    ]
    assert "No answer: out of <b>luck</b>" in tab["cards"].inner_text()
    assert tab["matrix-note"].inner_text() == "The ranker compared nothing."
    assert tab.page.locator("img, main script, b").count() == 0


def test_a_model_that_answers_several_times(open_tab: Open, serve: Serve, tmp_path: Path) -> None:
    members = [Scripted("alder", ["red"], samples=2), Scripted("birch", ["blue"])]
    tab = open_tab(serve(app_with(*members, ballots=Ballots(str(tmp_path / "votes.jsonl")))))
    tab.ask_to_the_end()
    assert [title for title, _ in tab.cards] == ["Answer A", "Answer B", "Answer C"]
    tab["reveal"].click()
    assert sorted(title.split(": ")[1] for title, _ in tab.cards) == ["alder 1", "alder 2", "birch"]


def test_a_key_is_asked_for_and_kept_in_the_tab(open_tab: Open, serve: Serve, tmp_path: Path) -> None:
    tab = open_tab(serve(app_of(keys=Keys.load(None, {"BLEND_API_KEYS": f"me={KEY}"}))))
    expect(tab["problem"]).to_have_text("This service needs an API key.")
    expect(tab["key"]).to_be_focused()
    tab["key"].fill("a-wrong-key-of-somebody")
    tab["key"].press("Enter")
    expect(tab["problem"]).to_have_text(re.compile("^Unknown API key"))
    expect(tab["key"]).to_have_value("")
    tab["key"].fill(KEY)
    tab["key"].press("Enter")
    expect(tab["about"]).to_contain_text("alder, birch")
    expect(tab["key-form"]).to_be_hidden()
    expect(tab["problem"]).to_have_text("")
    tab.ask_to_the_end()
    assert tab.page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
    assert tab.page.evaluate("Object.values({...sessionStorage})") == [KEY]
    assert not [url for url in tab.requested if KEY in url]
    assert all("401" in said for said in tab.complaints)
    tab.complaints.clear()


def test_too_many_requests_are_told_with_their_wait(open_tab: Open, serve: Serve) -> None:
    tab = open_tab(serve(app_of(serving=Serving(requests_per_minute=1))))  # the page has asked who answers
    expect(tab["about"]).to_contain_text("alder")
    tab.ask()
    expect(tab["problem"]).to_have_text(re.compile(r"^More than 1 requests a minute.*Try again in \d+ seconds?\.$"))
    expect(tab["result"]).to_be_hidden()
    expect(tab["ask"]).to_be_visible()
    assert tab["status"].inner_text() == ""
    assert all("429" in said for said in tab.complaints)
    tab.complaints.clear()


def test_when_nobody_answers_the_service_says_why(open_tab: Open, serve: Serve) -> None:
    tab = open_tab(serve(app_with(Failing("alder", []))))
    tab.ask()
    expect(tab["problem"]).to_contain_text("out of <b>luck</b>")
    expect(tab["stop"]).to_be_hidden()


def test_who_is_left_out_is_named_with_the_cause(open_tab: Open, serve: Serve) -> None:
    real, failing = demo_blender(), Failing("birch", [])
    members = [Scripted("alder", ["An answer."]), failing]
    blender = Blender(members, real.ranker, real.fuser, top_k=3, breaker=BreakerSettings(failures=1))
    tab = open_tab(serve(app_of(blender)))
    expect(tab["about"]).to_contain_text("birch")
    expect(tab["down"]).to_be_empty()
    tab.ask_to_the_end()
    told = re.compile(r"^birch has been left out since \d\d:\d\d(.[AP]M)?, for it failed: out of <b>luck</b>$")
    expect(tab["down"]).to_have_text(told)
    again = open_tab(tab.page.url)
    expect(again["down"]).to_have_text(told)


def test_a_service_that_is_gone(open_tab: Open) -> None:
    with served(app_of()) as url:
        tab = open_tab(url)
        expect(tab["about"]).to_contain_text("alder")
    tab.ask()
    expect(tab["problem"]).to_have_text("The service can’t be reached.")
    assert all("ERR_CONNECTION_REFUSED" in said for said in tab.complaints)
    tab.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_scrolled_sideways(open_tab: Open, serve: Serve, tmp_path: Path, scheme: str) -> None:
    long = ["word" * 60, "a b " * 200, "https://example.org/" + "x" * 300]
    members = [
        Scripted(f"a-model-with-a-long-name-{number}", [f"{number} {long[number % 3]}"]) for number in range(8)
    ]
    tab = open_tab(
        serve(app_with(*members, ballots=Ballots(str(tmp_path / "votes.jsonl")))),
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,
    )
    assert tab.sideways() == 0
    tab.ask_to_the_end("long" * 100)
    assert tab.sideways() == 0
    tab["reveal"].click()
    expect(tab.page.locator("svg")).to_be_visible()
    assert tab.sideways() == 0
    seen = tab["fused"].evaluate(
        "one => [getComputedStyle(one).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = ([int(part) for part in re.findall(r"\d+", colour)] for colour in seen)
    assert (sum(ink) < sum(paper)) == (scheme == "light")
    assert abs(sum(ink) - sum(paper)) > 400
