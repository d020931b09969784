"""The page at "/" in a real browser: asked by mouse and by keyboard, on a desk and on a phone, by
light and by dark, with passages that mean harm.

`DUALRAG_BROWSER=1` says that a Chromium is there: nothing is left out. `DUALRAG_SCREENSHOTS` names a
folder for the pictures.
"""

import os
import re
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rag_core.outputs import Answer, Hit, Passage
from rag_core.serving import ServerSettings
from tests.support.browser import Tab, browser, why_not
from tests.support.serving import StandIn, running, wait_until

REASON = why_not()
in_browser = pytest.mark.skipif(bool(REASON), reason=REASON)

QUESTION = "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?"
PASSAGES = [
    Passage(7, "War and Peace", "War and Peace is an epic novel by Leo Tolstoy. " * 9, 3.0, 0.7,
            0.8, "https://example.org/War_and_Peace"),
    Passage(8, "Leo Tolstoy", "A Russian writer.", 2.0, 0.2, 0.2, "people.csv", {"row": 3}),
    Passage(9, "Anna Karenina", "A novel of 1878.", 1.0, 0.1, 0.0),
]  # fmt: skip
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
HOSTILE = [
    Passage(1, MARKUP, f"{MARKUP}\x07\x1b[31m \u202ereversed {{{{7*7}}}}", 3.0, 1.0, 1.0,
            "javascript:alert(3)", {"headings": [MARKUP]}),
    Passage(2, "", "data", 2.0, 0.0, 0.0, "data:text/html,<script>alert(4)</script>"),
]  # fmt: skip


class Library(StandIn):
    """Answers by RAG-Token from passages on a novel; asked for harm, from such as mean some."""

    examples = (QUESTION, "Which planet has rings?")

    def answer(self, questions, options, cancelled):
        super().answer(questions, options, cancelled)
        return [[self.answer_to(question)] for question in questions]

    def answer_to(self, question):
        text, passages = "War and Peace", PASSAGES
        pieces = ["W", "ar", " and", " Peace", "</s>"]
        shares = [[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [1.0, 0.0, 0.0], [0.8, 0.2, 0]]
        if "harm" in question:
            text, passages = MARKUP, HOSTILE
            pieces, shares = [MARKUP], [[1.0, 0.0]]
        ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
        spans = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
        spans = [(min(start, len(text)), min(end, len(text))) for start, end in spans]
        return Answer(question, text, -4.6, passages, pieces, shares, spans, [-1.0] * len(pieces))

    def retrieve(self, questions, k):
        return [
            [Hit(n + 1, p.id, p.score, p.title, p.text, p.source) for n, p in enumerate(PASSAGES)]
            for _ in questions
        ]

    def passage(self, row):
        passage = {p.id: p for p in PASSAGES + HOSTILE}.get(row)
        return passage and {**vars(passage), "origin": passage.origin}

    def info(self):
        return {
            "model": {"name": self.name, "head": "token", "n_docs": 3},
            "knowledge_base": {"passages": 10033, "credit": f"Text: {MARKUP}"},
            "examples": list(self.examples),
        }


@pytest.fixture(scope="module")
def program():
    with browser() as program:
        yield program


@pytest.fixture(scope="module")
def server():
    with running(Library(seconds=0.05)) as server:
        yield server


@contextmanager
def tab_of(program, server, **look):
    page = program.new_page(**({"viewport": {"width": 1100, "height": 820}} | look))
    page.set_default_timeout(180_000)  # ms; other tests may keep the machine busy
    tab = Tab(page, server.url)
    try:
        yield tab
    finally:
        page.close()
    assert tab.elsewhere == []


@pytest.fixture
def tab(program, server):
    with tab_of(program, server) as tab:
        yield tab
    assert tab.complaints == []


def shares(tab, name="posterior"):
    return [re.sub(r"\s", "", text) for text in tab.texts(f".passage .{name} .value")]


def bars(tab, name="posterior"):
    """Widths, in percent."""
    return tab.page.eval_on_selector_all(
        f".passage .{name} i", "all => all.map((bar) => parseFloat(bar.style.width))"
    )


@in_browser
def test_an_example_is_asked_by_a_click_and_answered_with_bars_and_links(tab):
    tab.open().page.click("text=Which epic novel")
    tab.page.wait_for_selector(".token")
    assert tab.page.input_value("#question") == QUESTION
    assert tab.text("#answer-text") == "War and Peace"
    assert tab.texts(".token") == ["W", "ar", "and", "Peace"]
    assert shares(tab, "prior") == ["70%", "20%", "10%"] and bars(tab, "prior") == [70, 20, 10]
    tab.page.wait_for_function("document.querySelector('.posterior i').style.width === '80%'")
    assert shares(tab) == ["80%", "20%", "0%"]
    assert tab.text(".carries") == "carries \u201cWar and Peace\u201d"
    assert tab.texts(".text mark")[0] == "War and Peace"
    links = tab.page.eval_on_selector_all(".title", "all => all.map((link) => link.href)")
    assert links == [
        "https://example.org/War_and_Peace",
        f"{tab.url}/?passage=8",
        f"{tab.url}/?passage=9",
    ]
    assert "stand-in" in tab.text("#about") and "10,033 passages" in tab.text("#about")
    assert "Carried by War and Peace, 80" in tab.text("#said")
    assert tab.page.get_by_role("status").inner_text() and tab.page.title().startswith("Which epic")


@in_browser
def test_a_token_lights_its_passages_by_mouse(tab):
    tab.open().answer(QUESTION)
    tab.page.hover(".token >> nth=2")
    assert shares(tab) == ["30%", "40%", "30%"] and bars(tab) == [30, 40, 30]
    assert tab.texts(".posterior dt")[0] == "For \u201cand\u201d"
    assert tab.page.locator(".passage.lit").count() == 3
    tab.page.hover(".token >> nth=0")
    assert tab.page.locator(".passage.lit").count() == 1
    tab.page.hover("#question")
    assert shares(tab) == ["80%", "20%", "0%"] and tab.page.locator(".lit").count() == 0


@in_browser
def test_everything_is_reached_by_keyboard(tab):
    keyboard = tab.open().page.keyboard
    tab.page.wait_for_selector("#examples li")
    assert tab.page.evaluate("document.activeElement.id") == "question"
    tab.answer(QUESTION)
    stops = []
    for _ in range(12):
        keyboard.press("Tab")
        stops.append(
            tab.page.evaluate("document.activeElement.className || document.activeElement.id")
        )
        if stops[-1] == "token on":
            break
    assert stops[0] == "send" and stops[-1] == "token on"
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert tab.page.evaluate("document.activeElement.textContent") == "and"
    assert shares(tab) == ["30%", "40%", "30%"]
    assert tab.page.get_by_role("button", name="and: Leo Tolstoy 40 %, War and Peace 30 %").count()
    keyboard.press("End")
    assert tab.page.evaluate("document.activeElement.textContent") == "Peace"
    keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "cite"
    assert shares(tab)[0] == "80%" or tab.page.evaluate("document.activeElement.closest('#answer')")
    tab.page.keyboard.press("Enter")
    assert tab.page.url.endswith("#passage-1")


@in_browser
def test_long_passages_open_and_each_has_an_address(tab):
    tab.open().answer(QUESTION)
    more = tab.page.get_by_role("button", name="Show all of passage 1")
    before = tab.page.locator("#passage-1").bounding_box()["height"]
    more.click()
    assert tab.page.locator("#passage-1").bounding_box()["height"] > before
    assert more.get_attribute("aria-expanded") == "true"
    tab.page.click("#passage-2 .permalink")
    tab.page.wait_for_selector("h1:has-text('A passage of the knowledge base')")
    assert tab.text(".passage .text") == "A Russian writer."
    tab.open(f"/?q={QUESTION}").page.wait_for_selector(".token")


@in_browser
def test_markup_and_control_characters_are_shown_as_text(tab):
    assert tab.open().answer("harm") == MARKUP
    assert tab.texts(".token") == [MARKUP] and tab.texts(".title")[0] == MARKUP
    text = tab.text("#passage-1 .text")
    assert text == f"{MARKUP}\u2407\u241b[31m \u27e8U+202E\u27e9reversed {{{{7*7}}}}"
    assert MARKUP in tab.text("#passage-1 .origin") and MARKUP in tab.text("#credit")
    links = tab.page.eval_on_selector_all(".title", "all => all.map((link) => link.href)")
    assert links == [f"{tab.url}/?passage=1", f"{tab.url}/?passage=2"]
    assert tab.page.locator("main img, main script, .passage b").count() == 0
    tab.open("/?passage=1").page.wait_for_selector(".passage")
    assert tab.text(".passage .text") == text
    tab.open(f"/?q={MARKUP} harm").page.wait_for_selector(".token")
    assert tab.page.input_value("#question") == f"{MARKUP} harm"


@in_browser
def test_the_policy_lets_no_markup_run_even_if_a_script_of_the_page_wrote_it(tab):
    tab.open()
    with pytest.raises(Exception, match="TrustedHTML"):
        tab.page.evaluate("document.body.innerHTML = '<b>x</b>'")
    tab.page.evaluate("document.body.append(document.createElement('style'))")
    tab.page.evaluate(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'https://e.org/x'}))"
    )
    tab.page.wait_for_timeout(50)
    assert any("Content Security Policy" in text for text in tab.complaints)
    tab.complaints.clear()
    tab.elsewhere.clear()  # asked for, and never sent


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_nothing_is_in_the_way_of_people_who_read_otherwise(program, server, scheme, width):
    """WCAG 2.1 AA by axe-core, contrast of 4.5 among it; no page is wider than its window."""
    look = {"color_scheme": scheme, "reduced_motion": "reduce"}
    look |= {"viewport": {"width": width, "height": 780}, "has_touch": width < 500}
    with tab_of(program, server, **look) as tab:
        tab.open().page.wait_for_selector("#examples li")
        picture(tab, f"empty-{scheme}-{width}")
        assert tab.violations() == []
        tab.answer(QUESTION)
        tab.page.focus(".token")
        tab.page.click("summary")
        assert tab.violations() == []
        tab.page.click("summary")
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        assert tab.page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"
        picture(tab, f"answer-{scheme}-{width}")
        tab.ask("fail")
        tab.page.wait_for_selector("#problem:visible")
        picture(tab, f"problem-{scheme}-{width}")
        if width > 500:
            assert tab.violations() == []


def picture(tab, name):
    """A screenshot, which is not of one colour."""
    folder = os.environ.get("DUALRAG_SCREENSHOTS")
    image = tab.page.screenshot()
    assert len(image) > 5_000
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(image)


@in_browser
def test_escape_stops_the_search_and_a_new_question_takes_its_place(program):
    model = Library(seconds=300)
    with running(model) as server, tab_of(program, server) as tab:
        tab.open().ask(QUESTION)
        tab.page.wait_for_selector("#result[aria-busy]")
        assert tab.text("#send") == "Stop"
        assert tab.page.locator("#passage-1 .prior .value").text_content() == "67\u00a0%"
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("#examples:visible")
        assert tab.text("#said") == "Stopped." and tab.text("#send") == "Ask"
        tab.ask("first")
        wait_until(lambda: model.batches[-1] == ["first"], 60)
        tab.ask("second")
        wait_until(lambda: model.stopped == 2, 60)
        model.seconds = 0
        tab.page.wait_for_selector(".token")
        assert model.batches[-1] == ["second"]


@in_browser
def test_a_busy_server_is_asked_again_when_it_says(program):
    model = Library(seconds=300)
    settings = ServerSettings(queue=1, batch_size=1, timeout=300)
    with running(model, settings) as server, ExitStack() as others:
        tab, first, second = (others.enter_context(tab_of(program, server)) for _ in range(3))
        answers = server.service.answers
        first.open().ask("first")
        wait_until(lambda: answers.running, 60)
        second.open().ask("second")
        wait_until(lambda: answers.waiting, 60)
        tab.open().ask(QUESTION)
        tab.page.wait_for_selector("#problem.calm:visible")
        told = tab.text("#problem-heading"), tab.text("#said")
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("#examples:visible")
        assert tab.text("#said") == "Stopped." and not tab.page.is_visible("#problem")
        tab.ask(QUESTION)
        tab.page.wait_for_selector("#problem.calm:visible")
        model.seconds = 0
        assert told[0] == "The server is busy" and re.search(r"again in \d+ seconds?", told[1])
        tab.page.wait_for_selector(".token")
        assert not tab.page.is_visible("#problem")


@in_browser
def test_faults_are_told_in_words_and_can_be_tried_again(program):
    model = Library(error=RuntimeError("of /home/somebody"))
    with running(model) as server, tab_of(program, server) as tab:
        tab.open().ask("fail")
        tab.page.wait_for_selector("#problem:visible")
        assert tab.text("#problem-heading") == "Something went wrong on the server"
        assert "somebody" not in tab.text("#problem") and tab.text("#problem-text") in tab.text(
            "#said"
        )
        tab.ask("a token too many")
        tab.page.wait_for_selector("#problem-text:has-text('at most 3 tokens')")
        server.close()
        tab.page.click("#again")
        tab.page.wait_for_selector("#problem-heading:has-text('cannot be reached')")


@in_browser
def test_a_fault_on_the_way_of_a_stream_is_called_what_it_is(program):
    with running(Library(seconds=300), ServerSettings(timeout=0.5)) as server:
        with tab_of(program, server) as tab:
            tab.open().ask(QUESTION)
            tab.page.wait_for_selector("#problem:visible")
            assert tab.text("#problem-heading") == "This took too long"
            assert tab.text("#problem-text") == "It took longer than 0.5 s, and was stopped."


@in_browser
def test_the_page_is_there_before_the_model_and_learns_of_it(program):
    is_there = threading.Event()

    def opened():
        is_there.wait(60)
        return Library()

    with running(opened, wait=False) as server, tab_of(program, server) as tab:
        tab.open().page.wait_for_selector("#about:has-text('being loaded')")
        is_there.set()
        tab.page.wait_for_selector("#examples li")
        assert "stand-in" in tab.text("#about")


@in_browser
def test_a_key_is_asked_for_and_remembered_in_the_tab(program):
    with running(Library(), ServerSettings(api_key="right")) as server:
        with tab_of(program, server) as tab:
            tab.open().page.wait_for_selector("#key-field:visible")
            tab.ask(QUESTION)
            tab.page.wait_for_selector("#problem-heading:has-text('API key')")
            tab.page.fill("#key", "right")
            tab.page.press("#key", "Enter")
            tab.page.wait_for_selector("#key-field", state="hidden")
            assert tab.answer(QUESTION) == "War and Peace"
            tab.open().page.wait_for_selector("#examples li")
            assert not tab.page.is_visible("#key-field")


@in_browser
def test_the_description_of_the_api_opens_under_its_policy(tab):
    tab.open("/docs").page.wait_for_selector(".opblock")
    assert tab.page.locator(".opblock").count() > 6


def test_every_response_says_what_a_browser_may_do():
    with running(Library(error=RuntimeError("broken"))) as server:
        replies = [
            server.ask("/"),
            server.ask("/static/page.js"),
            server.ask("/info"),
            server.ask("/nothing"),
            server.ask("/answer", {"question": "fail"}),
            server.ask("/answer", b"{"),
            server.ask("/", method="DELETE"),
        ]
        assert [reply.status for reply in replies] == [200, 200, 200, 404, 500, 400, 405]
        for reply in replies:
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
            assert reply.headers["x-frame-options"] == "DENY"
        page, script = replies[:2]
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert not re.search(rb"<style|style=|<script(?! src=)|\son\w+=|https?://", page.body)
        assert script.headers["content-type"].startswith("text/javascript")
        same = server.ask("/static/page.js", **{"If-None-Match": script.headers["etag"]})
        assert same.status == 304 and same.body == b""
        for path in (
            "/static/../page.py",
            "/static/..%2fpage.py",
            "/static/%2e%2e",
            "/static/.hid",
        ):
            assert server.ask(path).status == 404
        head = server.ask("/", method="HEAD")
        assert head.status == 200 and head.headers["content-length"] == str(len(page.body))
