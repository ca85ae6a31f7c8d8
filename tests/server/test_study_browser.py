"""A participation in a real browser, by keyboard or touch alone; a closed tab; a turned screen; the experimenter's view."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held import TOKEN, frozen_study
from running import running

from pellucid.server import read_records
from pellucid.study.frozen import Frozen

pytestmark = pytest.mark.browser
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    folder = tmp_path_factory.mktemp("short") / "frozen"
    return frozen_study(folder, afc="4", catches="1", catches_right="1", block="3", quota="60")


@pytest.fixture
def address(short: Frozen, database: str) -> Iterator[str]:
    with running(short.path, database) as where:
        yield where


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that fails the test for an error in its console or a request to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    complaints: list[str] = []
    made.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    made.on("pageerror", lambda e: complaints.append(str(e)))
    made.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(address) else None)
    yield made
    context.close()
    assert complaints == []


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def press(page: Any, selector: str, key: str = "Enter") -> None:
    tab_to(page, selector)
    page.keyboard.press(key)


def to_trials(page: Any, address: str) -> None:
    """From the landing page to the first practice trial, by keyboard."""
    page.goto(f"{address}/?PROLIFIC_PID=somebody")
    press(page, "form button")
    page.wait_for_url("**/study")
    press(page, "input[name=age]", "Space")
    press(page, "input[name=agree]", "Space")
    press(page, "button")
    page.wait_for_selector("#go:not([disabled])")
    press(page, "#go")
    page.wait_for_selector("text=What you do")
    press(page, "main button")
    page.wait_for_selector("fieldset")
    tab_to(page, "input[name=q0]")
    page.keyboard.press("ArrowDown")
    press(page, "main button")
    page.wait_for_selector(".shown.open")


def practise(page: Any) -> None:
    for number in (1, 2):
        page.wait_for_selector(f"#status:has-text('Practice {number} of 2')")
        page.wait_for_selector(".shown.open")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("text=/Right\\.|Not quite/")
        page.keyboard.press("Enter")


def answer(page: Any, number: int, *, key: str = "f") -> None:
    """Give an answer by keyboard to the trial of this number, past a break if there is one."""
    page.wait_for_selector(f"#status:has-text('question {number} of')")
    page.locator(".shown.open").or_(page.get_by_text("Time for a break")).wait_for()
    if page.locator("text=Time for a break").count():
        page.keyboard.press("Enter")
        page.wait_for_selector(".shown.open")
    if page.locator(".grid").count():
        for digit in "213":
            page.keyboard.press(digit)
        page.keyboard.press("Enter")
    else:
        page.keyboard.press(key)


@pytest.mark.slow
def test_T17_a_whole_participation_by_keyboard(page: Any, address: str, short: Frozen, database: str) -> None:
    to_trials(page, address)
    practise(page)
    n = short.study.trials.shown
    for number in range(1, n + 1):
        answer(page, number, key=("f", "j", "ArrowLeft", "ArrowRight")[number % 4])
    page.wait_for_selector("#comment")
    tab_to(page, "#comment")
    page.keyboard.type("<b>fine</b>")
    press(page, "main button")
    page.wait_for_selector("text=C0FFEE")
    found = read_records(database, sha256=short.sha256)
    assert len(found.answers) == n and found.participants[0].state == "completed"
    assert [a.chosen for a in found.answers if a.kind == "afc"] == ["right", "left", "right", "left", "right"]
    assert {a.chosen for a in found.answers if a.kind == "match"} == {"213"}
    for one in found.answers:
        assert one.attempt == 1 and one.flags == () and 0 < one.rt_ms < 60_000
        assert one.scale == 24 and one.viewport == "1280x900", "8 pixels are enlarged to 192"


@pytest.mark.slow
def test_T17_a_closed_tab_and_a_lost_reply(page: Any, address: str, short: Frozen, database: str) -> None:
    to_trials(page, address)
    practise(page)
    answer(page, 1)
    page.wait_for_selector("#status:has-text('question 2 of')")
    page.wait_for_selector(".shown.open")
    tab = page.context.new_page()
    page.close()
    tab.goto(f"{address}/study")
    tab.wait_for_selector("#status:has-text('question 2 of')")
    tab.wait_for_selector(".shown.open")
    # The answer reaches the server, the reply does not reach the browser, and the tab dies.
    tab.route("**/api/answers", lambda route: (route.fetch(), route.abort()))
    tab.keyboard.press("f")
    tab.wait_for_selector("text=Your answer is kept here and sent again")
    assert tab.locator(".shown").count() == 0, "no next trial before the answer is acknowledged"
    tab.close()
    third = page.context.new_page()
    third.goto(f"{address}/study")
    third.wait_for_selector("#status:has-text('question 3 of')")
    found = read_records(database, sha256=short.sha256)
    assert [(a.ordinal, a.attempt, a.flags) for a in found.answers] == [(0, 1, ()), (1, 2, ("resumed",))]


@pytest.mark.slow
def test_pages_are_accessible(page: Any, address: str, tmp_path: Path) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    axe = axe_module.Axe()
    faults: dict[str, Any] = {}

    def look(name: str) -> None:
        tags = {
            "runOnly": {
                "type": "tag",
                "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
            }
        }
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for violation in axe.run(page, options=tags).response["violations"]:
                faults[f"{name} {scheme} {violation['id']}"] = [n["html"] for n in violation["nodes"]]
        page.emulate_media(color_scheme="light")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"

    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{address}/")
    look("landing")
    page.click("form button")
    page.wait_for_url("**/study")
    look("consent")
    page.check("[name=age]")
    page.check("[name=agree]")
    page.click("main button >> nth=0")
    page.wait_for_selector("#go:not([disabled])")
    look("device")
    page.click("#go")
    look("instructions")
    page.click("main button")
    look("quiz")
    page.check("input[value='2']")
    page.click("main button")
    page.wait_for_selector(".shown.open")
    look("trial")
    practise(page)
    for number in range(1, 6):
        answer(page, number)
    page.wait_for_selector("#status:has-text('question 6 of')")
    page.wait_for_selector(".shown.open .grid")
    look("match")
    answer(page, 6)
    page.wait_for_selector("#comment")
    look("comment")
    page.click("main button")
    look("debrief")
    page.goto(f"{address}/study/withdraw")
    look("withdraw")
    page.goto(f"{address}/experimenter")
    look("login")
    page.fill("#token", TOKEN)
    page.click("main button")
    page.wait_for_selector("text=By condition")
    look("experimenter")
    assert faults == {}


@pytest.mark.slow
def test_the_experimenter_watches_and_pauses(
    page: Any, browser: Any, address: str, short: Frozen, database: str
) -> None:
    to_trials(page, address)
    practise(page)
    answer(page, 1)
    page.wait_for_selector("#status:has-text('question 2 of')")
    context = browser.new_context()
    desk = context.new_page()
    desk.goto(f"{address}/experimenter")
    desk.fill("#token", "wrong")
    desk.keyboard.press("Enter")
    desk.wait_for_selector("text=This is not the token")
    desk.fill("#token", TOKEN)
    desk.keyboard.press("Enter")
    desk.wait_for_selector("text=1 of 6")
    desk.click("text=Pause the study")
    desk.wait_for_selector("text=nobody is let in")
    page.wait_for_selector(".shown.open")
    page.keyboard.press("f")
    page.wait_for_selector("text=The study is paused")
    desk.click("text=End the pause")
    desk.wait_for_selector("text=Pause the study")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status:has-text('question 3 of')")
    desk.click("text=Take part in test mode")
    desk.wait_for_selector("text=Information and consent")
    context.close()
    found = read_records(database, sha256=short.sha256)
    assert [a.ordinal for a in found.answers] == [0, 1], "the one under way when the study was paused is kept"
    assert len(found.participants) == 1, "the one in test mode is in no export"


@pytest.mark.slow
def test_a_whole_participation_by_touch_fetches_nothing_from_elsewhere(
    browser: Any, address: str, short: Frozen, database: str
) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=3
    )
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    phone = context.new_page()
    phone.goto(f"{address}/?PROLIFIC_PID=by-touch")
    phone.tap("form button")
    phone.tap("[name=age]")
    phone.tap("[name=agree]")
    phone.tap("text=I agree and take part")
    phone.tap("#go:not([disabled])")
    phone.tap("main button:has-text('Go on')")
    phone.tap("input[value='2']")
    phone.tap("text=Check my answers")
    for number in (1, 2):
        phone.wait_for_selector(f"#status:has-text('Practice {number} of 2')")
        phone.tap(".shown.open .option[data-side=right]")
        phone.wait_for_selector("text=/Right\\.|Not quite/")
        phone.tap("#stage button")
    for number in range(1, short.study.trials.shown + 1):
        phone.wait_for_selector(f"#status:has-text('question {number} of')")
        phone.locator(".shown.open").or_(phone.get_by_text("Time for a break")).wait_for()
        if phone.locator("text=Time for a break").count():
            phone.tap("#stage button")
            phone.wait_for_selector(".shown.open")
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "nothing lies beside the screen"
        )
        if phone.locator(".grid").count():
            for row, column in (
                (1, 1),
                (2, 1),
                (1, 2),
                (3, 3),
            ):  # a column that another row has is taken from it
                phone.tap(f"input[name=row{row}][value='{column}']")
            phone.tap(".confirm")
        else:
            phone.tap(f".option[data-side={('left', 'right')[number % 2]}]")
    phone.tap("text=Finish")
    phone.wait_for_selector("text=C0FFEE")
    phone.goto(f"{address}/experimenter")
    phone.fill("#token", TOKEN)
    phone.tap("main button")
    phone.wait_for_selector("text=By condition")
    context.close()
    found = read_records(database, sha256=short.sha256)
    (person,) = found.participants
    assert person.state == "completed" and person.device.endswith(", touch")
    assert [a.chosen for a in found.answers if a.kind == "afc"] == ["right", "left", "right", "left", "right"]
    assert {a.chosen for a in found.answers if a.kind == "match"} == {"213"}
    assert {a.pixel_ratio for a in found.answers} == {3.0} and {a.flags for a in found.answers} == {()}
    assert all(1 <= a.scale < 24 and 0 < a.rt_ms < 60_000 for a in found.answers), "enlarged by less, to fit"
    assert len(asked) > 40 and [url for url in asked if not url.startswith(f"{address}/")] == []


@pytest.mark.slow
def test_a_window_resized_in_mid_trial(page: Any, address: str, short: Frozen, database: str) -> None:
    to_trials(page, address)
    practise(page)
    page.wait_for_selector("#status:has-text('question 1 of')")
    page.wait_for_selector(".shown.open")
    width = "document.querySelector('.shown img').clientWidth"
    assert page.evaluate(width) == 192
    page.set_viewport_size({"width": 360, "height": 900})
    for _ in range(100):  # the page's own policy forbids what `wait_for_function` does
        if (small := page.evaluate(width)) < 192:
            break
        page.wait_for_timeout(50)
    assert small < 192
    assert small % 8 == 0, "still a whole number of pixels for each of the image's"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("f")
    answer(page, 2)
    page.wait_for_selector("#status:has-text('question 3 of')")
    first, second = read_records(database, sha256=short.sha256).answers
    assert (first.flags, first.scale, first.viewport) == (("resized",), small // 8, "360x900")
    assert second.flags == (), "the next trial began in the window as it is"
