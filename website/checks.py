"""Is a built site whole? Links lead somewhere, nothing is fetched from elsewhere, and pages read as on a code host."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

# what a browser fetches by itself, and the attribute that says from where
FETCHED = {
    "audio": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
ABSOLUTE = re.compile(r"([a-z][a-z0-9+.-]*:)?//|[a-z][a-z0-9+.-]*:", re.IGNORECASE)
STYLE_ADDRESS = re.compile(r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^'\")\s]+)")
LARGEST = 800_000  # bytes of a page: of two million a browser makes nothing for minutes
BLOCKS = {"h1", "h2", "h3", "h4", "h5", "li", "td", "th", "pre", "p"}


class Page(HTMLParser):
    """What a page of HTML holds, links to, and has its reader's browser fetch.

    Attributes:
        anchors: ids.
        links: where `<a>` leads.
        fetched: scripts, styles, pictures.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        address = values.get(FETCHED.get(tag, ""))
        if address and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(address)


class Text(HTMLParser):
    """The blocks of a page's text: which elements there are, with their words.

    Attributes:
        blocks: (element, its letters without white space) -> how often.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.blocks: Counter[tuple[str, str]] = Counter()
        self._open: list[tuple[str, list[str]]] = []
        self._passed_by = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._passed_by = ("class", "headerlink") in attrs
        if tag in BLOCKS:
            self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        self._passed_by = False
        if tag in BLOCKS:
            name, words = self._open.pop()
            if (
                name != "p" or not self._open
            ):  # in a list it only says how far apart its entries are
                self.blocks[name, "".join("".join(words).split())] += 1

    def handle_data(self, data: str) -> None:
        if not self._passed_by:
            for _, words in self._open:
                words.append(data)


def complaints(site: Path) -> list[str]:
    """What is wrong with the site in that folder, a line each."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        place = path.relative_to(site)
        if path.stat().st_size > LARGEST:
            wrong.append(f"{place} is too long for a browser")
        for address in page.fetched:
            if ABSOLUTE.match(address) and not address.startswith("data:"):
                wrong.append(f"{place} fetches {address} from elsewhere")
        for link in page.links + page.fetched:
            if not ABSOLUTE.match(link) and not _leads_somewhere(path, unquote(link), pages, site):
                wrong.append(f"{place} links to {link}, which is not there")
    for path in sorted(site.rglob("*.css")):
        for address in STYLE_ADDRESS.findall(path.read_text("utf-8")):
            wrong.append(f"{path.relative_to(site)} fetches {address} from elsewhere")
    return wrong


def _leads_somewhere(path: Path, link: str, pages: dict[Path, Page], site: Path) -> bool:
    file, _, anchor = link.partition("#")
    target = path
    if file.startswith("/"):
        target = site / file[1:]
    elif file:
        target = Path(path.parent, file).resolve()
    if target.is_dir():
        target /= "index.html"
    if target not in pages:
        return target.is_file()
    return not anchor or anchor in pages[target].anchors or anchor == "__top"


def reads_differently(markdown: str, html: str) -> list[str]:
    """What a page of the site has otherwise than the same Markdown on a code host, which reads CommonMark with tables.

    Args:
        markdown: the source.
        html: the built page.
    """
    _, _, article = html.partition("<article")
    here = Text(article.partition("</article>")[0]).blocks
    markdown = re.sub(r"\A---\n.*?^---\n", "", markdown, flags=re.DOTALL | re.MULTILINE)
    there = Text(MarkdownIt("commonmark").enable("table").render(markdown)).blocks
    return [f"<{tag}> {text[:70]}" for tag, text in ((there - here) | (here - there))]
