"""A headless Chromium of this machine, and what is seen in it.

`DUALRAG_BROWSER` names the program, or is 1: then it is an error that there is none, and no test of
the browser is left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
REQUIRED = os.environ.get("DUALRAG_BROWSER", "")


def chromium() -> str | None:
    """The program; None where there is none."""
    for name in (REQUIRED, *_NAMES):
        if name and (path := shutil.which(name)):
            return path
    return None


def why_not() -> str:
    """Why no browser can be driven here; an empty text where one can.

    Raises:
        RuntimeError: there must be one.
    """
    reason = ""
    if not all(map(find_spec, ("playwright", "axe_playwright_python"))):
        reason = "playwright is not installed: pip install 'dualrag[browser]'"
    elif chromium() is None:
        reason = "there is no Chromium: apt-get install chromium-headless-shell"
    if reason and REQUIRED:
        raise RuntimeError(
            f"DUALRAG_BROWSER={REQUIRED} asks for the tests of the page, but {reason}"
        )
    return reason


class Tab:
    """A page in the browser, and all that goes wrong in it.

    Attributes:
        page: playwright's.
        complaints: what the browser wrote into its console, and errors of scripts.
        elsewhere: addresses of other servers that were asked for.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(30_000)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.elsewhere.append(request.url)

    def open(self, path: str = "/") -> Tab:
        self.page.goto(self.url + path)
        return self

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def answer(self, question: str) -> str:
        """Asks, and waits for the answer."""
        self.ask(question)
        self.page.wait_for_selector(".token")
        return self.text("#answer-text")

    def text(self, selector: str) -> str:
        return self.page.text_content(selector) or ""

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.1 AA and good practice."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's browser."""
    from playwright.sync_api import sync_playwright

    # a sandbox cannot be had by root, nor in most containers
    options = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=chromium(), args=options)
        yield program
        program.close()
