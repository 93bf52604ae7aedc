"""The page of a campaign in headless Chromium: keyboard, phone, undo, plain text, names for every control."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import run_rows, small_campaign, write_lines
from playwright.sync_api import Browser, Page, expect
from serving import served

from llm_blender_ray.pipelines.campaign.app import campaign_service
from llm_blender_ray.pipelines.campaign.creation import add_annotators, annotator_keys, create_campaign
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # a slow machine is no failure
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>**bold**\n  indented"
CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = (one) => rgb(one).map((c) => linear(c / 255))
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("h1, h2, p, dd, li, label, span, kbd, button, summary")]
    .filter((node) => node.offsetParent && node.textContent.trim())
    .map((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
      return [node.textContent.trim().slice(0, 30), (a + .05) / (b + .05)];
    }).filter(([, contrast]) => contrast < 4.5);
}"""


class Site:
    """A campaign that is served, and tabs on it, which complain of nothing."""

    def __init__(self, browser: Browser, url: str, store: CampaignStore, keys: dict[str, str]) -> None:
        self.browser, self.url, self.store, self.keys = browser, url, store, keys
        self.complaints: list[str] = []

    def open(self, name: str | None = "ann", **options: object) -> Page:
        page = self.browser.new_context(**options).new_page()  # type: ignore[arg-type]
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{self.url}/" + (f"#{self.keys[name]}" if name else ""))
        return page

    def votes(self) -> list[str]:
        return [vote.preferred for vote in self.store.votes()]


@pytest.fixture
def site(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    store = small_campaign(
        tmp_path, count=5, overlap=2, title="Trees", instructions="Be fair.", criteria=("It is true.",)
    )
    keys = add_annotators(store.folder, ["ann", "ben"])
    with served(campaign_service(store, annotator_keys(store.folder))) as url:
        made = Site(browser, url, store, keys)
        yield made
        for context in browser.contexts:
            context.close()
    assert made.complaints == []


def saved(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_have_text(text)


def test_by_keyboard_with_comment_skip_and_undo(site: Site) -> None:
    page = site.open()
    expect(page).to_have_title("Trees")
    expect(page.locator("#guide")).to_have_attribute("open", "")
    expect(page.locator("#prompt-head")).to_be_focused()
    assert "#" not in page.url, "the key does not stay in the address"
    first = page.locator("#turns").inner_text()
    page.keyboard.press("c")
    page.keyboard.type("b 1 2 0: only text")
    page.keyboard.press("Escape")
    for key, said in (
        ("1", "Saved: A is better."),
        ("ArrowRight", "Saved: B is better."),
        ("b", "Saved: Both bad."),
    ):
        page.keyboard.press(key)
        saved(page, said)
        expect(page.locator("#comment")).to_have_value("")
    expect(page.locator("#mine")).to_have_text("You: 3.")
    page.keyboard.press("u")
    saved(page, "Undone: answer again.")
    page.keyboard.press("0")
    saved(page, "Saved: Equally good.")
    page.keyboard.press("s")
    saved(page, "Skipped.")
    assert site.votes() == ["left", "right", "tie"]
    assert next(site.store.votes()).comment == "b 1 2 0: only text"
    assert first != page.locator("#turns").inner_text()
    page.reload()
    expect(page.locator("#mine")).to_have_text("You: 4.")
    page.keyboard.press("g")
    expect(page.locator("#end-head")).to_be_focused()
    expect(page.locator("#end-head")).to_have_text("Nothing to do at the moment")
    page.locator("#undo").click()
    expect(page.locator("#item")).to_be_visible()


def test_two_people_on_phones_finish_the_campaign(site: Site) -> None:
    pages = [site.open(name, color_scheme=scheme, **PHONE) for name, scheme in (("ann", "light"), ("ben", "dark"))]
    for page in pages:
        expect(page.locator("#left")).not_to_be_empty()
        assert page.evaluate(CONTRASTS) == []
        assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
        box = page.locator("#choices").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 740, "the buttons are on the screen"
        small = [button.bounding_box() for button in page.locator("#bar button").all()]
        assert all(one is not None and one["height"] >= 44 for one in small)
    for count in range(1, 6):
        for page in pages:
            page.locator("[data-preferred=left]").tap()
            expect(page.locator("#mine")).to_have_text(f"You: {count}.")
    expect(pages[1].locator("#end-head")).to_have_text("All done")
    assert site.store.progress() == (10, 10)


def test_every_control_has_a_name_and_the_answers_stand_alone(site: Site) -> None:
    page = site.open()
    expect(page.get_by_role("button", name="A is better")).to_be_visible()
    for name in ("B is better", "Equally good", "Both good", "Both bad", "Skip", "Undo"):
        assert page.get_by_role("button", name=name).count() == 1, name
    assert page.get_by_role("textbox", name="Comment").count() == 1
    assert page.get_by_role("group", name="Which answer is better?").count() == 1
    assert page.get_by_role("region", name="Answer A").count() == 1
    expect(page.get_by_role("button", name="Undo")).to_have_attribute("aria-disabled", "true")
    assert page.evaluate(CONTRASTS) == []


def test_a_key_is_asked_for_and_a_wrong_one_is_refused(site: Site) -> None:
    page = site.open(None)
    expect(page.get_by_label("Your key")).to_be_focused()
    page.get_by_label("Your key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("This key is not known here.")
    page.get_by_label("Your key").fill(site.keys["ben"])
    page.keyboard.press("Enter")
    expect(page.locator("#item")).to_be_visible()
    site.complaints[:] = [one for one in site.complaints if "401" not in one]  # the browser's own lines


def test_texts_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    rows = run_rows(1, models=["a", "b"])
    rows[0]["instruction"] = EVIL
    for place, one in enumerate(rows[0]["candidates"]):
        one["text"] = f"{EVIL}{place}"
    uri = write_lines(tmp_path / "rows.jsonl", rows)
    settings = CampaignSettings(title=EVIL.split("\n")[0], instructions=EVIL, criteria=(EVIL,))
    store = create_campaign([uri], str(tmp_path / "campaign"), settings).store
    keys = add_annotators(store.folder, ["ann"])
    with served(campaign_service(store, annotator_keys(store.folder))) as url:
        site = Site(browser, url, store, keys)
        page = site.open()
        expect(page.locator("#left")).to_have_text(re.compile(re.escape("**bold**")))
        assert page.locator("#left").inner_text()[:-1] == page.locator("#right").inner_text()[:-1] == EVIL
        assert page.locator("#instructions").inner_text() == EVIL
        assert page.locator("img").count() == 0 and page.title() == EVIL.split("\n")[0]
        page.context.close()
    assert site.complaints == []
