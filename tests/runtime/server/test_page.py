"""The chat page in a real browser, under its own content policy."""

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtime import Session
from runtime.server.keys import ApiKeys
from runtime.server.page import content_policy
from tests.runtime.server.browser import BROWSER, NAMES, Page, browsing
from tests.runtime.server.served import Served, serving, slow_down, text_message, wait_until
from tests.runtime.server.test_chat import EXAMPLES, say_alone

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser on PATH: none of {', '.join(NAMES)} is installed"
)
QUESTION = "What is 4 + 38?"
ENTER, ESCAPE = ("Enter", 13), ("Escape", 27)
GIVE_FILE = """((kind, data) => {{
  const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "one.png", {{type: "image/png"}}));
  const event = "{kind}" === "paste"
    ? new ClipboardEvent("paste", {{clipboardData: files, bubbles: true, cancelable: true}})
    : new DragEvent("drop", {{dataTransfer: files, bubbles: true, cancelable: true}});
  document.body.dispatchEvent(event);
}})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, served: Served) -> Iterator[Page]:
    yield open_page(browser, served)
    assert browser.problems == []


def open_page(browser: Page, served: Served) -> Page:
    browser.problems.clear()
    browser.requested.clear()
    browser.send("Page.navigate", url=served.url)
    browser.wait_for("document.readyState === 'complete' && document.title !== 'kimivl'")
    return browser


def ask(page: Page, words: str) -> None:
    page.run("document.getElementById('text').focus()")
    page.type(words)
    page.press(*ENTER)


def answers(page: Page) -> list[dict[str, Any]]:
    page.wait_for("log.getAttribute('aria-busy') === 'false'")
    found: list[dict[str, Any]] = page.run(
        """[...document.querySelectorAll(".answer")].map((one) => ({
          answer: one.querySelector(".body").textContent,
          thinking: one.querySelector("details > div").textContent,
          isOpen: one.querySelector("details").open,
          counts: one.querySelector(".counts").textContent,
        }))"""
    )
    return found


def give(page: Page, kind: str, picture: Path) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    page.run(GIVE_FILE.format(kind=kind, data=data))


@needs_browser
def test_a_question_is_answered_with_its_thinking_folded(browser: Page, session: Session) -> None:
    wanted = say_alone(session, text_message(QUESTION))
    with serving(session) as served:
        page = open_page(browser, served)
        assert page.run("document.title") == "nano"
        assert page.run("document.activeElement.id") == "text"
        ask(page, QUESTION)
        found = answers(page)
        assert [(one["answer"], one["thinking"]) for one in found] == [
            (wanted["answer"], wanted["thinking"])
        ]
        assert found[0]["isOpen"] is False
        assert "tokens in, 0 of them reused" in found[0]["counts"]
        ask(page, "And 5 + 5?")
        assert "of them reused" in answers(page)[1]["counts"]
        assert served.stats.reused_tokens > 20
        assert {url.startswith((served.url, "data:")) for url in page.requested} == {True}
        assert page.problems == []


@needs_browser
@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted_shown_and_sent(
    page: Page, served: Served, kind: str
) -> None:
    give(page, kind, EXAMPLES / "0001a.png")
    page.wait_for("document.querySelectorAll('#pending img').length === 1")
    page.wait_for("document.querySelector('#pending img').naturalWidth > 0")
    ask(page, "Which number is this?")
    assert answers(page)[0]["answer"] == "40"
    assert page.run("document.querySelectorAll('#pending img').length") == 0
    assert page.run("document.querySelectorAll('.user img').length") == 1
    assert served.stats.images_encoded == 1


@needs_browser
def test_a_picture_can_be_taken_back(page: Page) -> None:
    give(page, "drop", EXAMPLES / "0001a.png")
    page.wait_for("document.querySelectorAll('#pending img').length === 1")
    page.run("document.querySelector('#pending button').click()")
    assert page.run("document.querySelectorAll('#pending img').length") == 0
    assert page.run("document.activeElement.id") == "text"


@needs_browser
@pytest.mark.parametrize("way", ["button", "key"])
def test_an_answer_can_be_stopped_and_the_slot_is_free(
    page: Page, served: Served, session: Session, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    slow_down(session, monkeypatch, lambda: time.sleep(0.05))
    ask(page, QUESTION)
    page.wait_for("document.querySelector('.answer details > div').textContent.length > 1")
    assert page.run("document.getElementById('send').hidden")
    if way == "button":
        page.run("document.getElementById('stop').click()")
    else:
        page.press(*ESCAPE)
    found = answers(page)
    assert found[0]["counts"] == "Stopped."
    wait_until(lambda: served.stats.ended.get("cancelled", 0) == 1)
    served.wait_until_idle()
    assert page.run("document.activeElement.id") == "text"


@needs_browser
def test_an_error_is_shown_and_the_question_stays_to_be_sent_again(page: Page) -> None:
    ask(page, "x " * 400)
    answers(page)
    shown = page.run("document.querySelector('[role=alert]').textContent")
    assert "the engine takes prompts" in shown
    assert page.run("text.value").startswith("x x")
    assert page.run("document.querySelectorAll('.user').length") == 0
    assert len(page.problems) == 1, "the browser's own line about the status"
    assert "400" in page.problems.pop()


@needs_browser
def test_shift_enter_starts_a_line(page: Page) -> None:
    page.run("document.getElementById('text').focus()")
    page.type("one")
    page.press(*ENTER, shift=True)
    page.type("two")
    assert page.run("text.value") == "one\ntwo"


@needs_browser
def test_a_new_chat_forgets_the_old_one(page: Page, served: Served) -> None:
    ask(page, QUESTION)
    answers(page)
    page.run("document.getElementById('anew').click()")
    assert page.run("log.children.length") == 0
    ask(page, QUESTION)
    assert len(answers(page)) == 1
    assert page.run("chat.messages.length") == 2


@needs_browser
def test_a_new_chat_ends_the_answer_that_is_coming_and_begins_empty(
    page: Page, served: Served, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(session, monkeypatch, lambda: time.sleep(0.05))
    ask(page, QUESTION)
    page.wait_for("document.querySelector('.answer details > div').textContent.length > 1")
    page.run("document.getElementById('anew').click()")
    page.wait_for("log.getAttribute('aria-busy') === 'false'")
    assert page.run("[log.children.length, chat.messages.length]") == [0, 0]
    assert served.wait_until_idle().ended == {"cancelled": 1}


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(page: Page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.send("Emulation.setEmulatedMedia", features=[feature])
    pairs = page.run(
        """["body", "#send", ".user", "#text"].map((what) => {
          if (what === ".user") showQuestion("words", []);
          const style = getComputedStyle(document.querySelector(what));
          return [style.color, style.backgroundColor];
        })"""
    )
    page.send("Emulation.setEmulatedMedia", features=[])
    contrasts = [contrast(*pair) for pair in pairs]
    assert min(contrasts) >= 4.5, "the least of WCAG 2.2 AA"
    assert (luminance(pairs[0][1]) > 0.5) == (scheme == "light")


@needs_browser
def test_a_server_with_keys_is_asked_with_the_one_that_is_typed(
    browser: Page, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with serving(session, keys=ApiKeys.load(tmp_path / "keys")) as served:
        browser.send("Page.navigate", url=served.url)
        browser.wait_for("document.getElementById('key-row')?.hidden === false")
        browser.wait_for("document.activeElement.id === 'key'")
        browser.type("secret")
        browser.press(*ENTER)
        browser.wait_for("document.title === 'nano'")
        ask(browser, QUESTION)
        assert len(answers(browser)) == 1
    browser.problems.clear()  # the first refusal


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, by WCAG."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_is_whole_in_itself_and_runs_nothing_foreign(served: Served) -> None:
    answer = httpx2.get(served.url)
    assert answer.status_code == 200
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", answer.text)
    assert not re.search(r"\son\w+\s*=\s*[\"']|style\s*=\s*[\"']", answer.text)
    policy = answer.headers["content-security-policy"]
    assert policy == content_policy(answer.text)
    assert "unsafe" not in policy
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy.split("; ")
    assert policy != content_policy(answer.text.replace("greet()", "greet( )", 1))
