"""PDF -> one section with its pages: text lines in the order of the file, without the lines that
stand at the edge of every page.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag_core.knowledge.outline import BLOCK_CHARS, LeftOut, Section
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy

# Beyond any book; memory and time grow with each of the three.
MAX_BYTES = 1 << 30
MAX_PAGES = 20_000
MAX_CHARS = 100_000_000
# A line of the edge stands on so many pages at least, and on this share of all.
_EDGE_PAGES = 3
_NUMBERED_PAGES = 2
_EDGE_SHARE = 0.4
_EDGE_LINES = 3
_EDGE_CHARS = 12
# Front matter counts apart.
_MOST_SHIFT = 60
# Stands for a page's own number.
_PAGE = "\uffff"
_WORD = re.compile(r"[^\W\d_]+")
_HEADING = re.compile(rf"[^\W\d_]+\W*{_PAGE}\W*")
# What stands beside a page's number and says no more than that it is one: "page 3 of 10".
_PAGE_WORDS = frozenset(
    "page pages pg p of seite s von página pagina pág pag de di sur side sida sivu strana str stránka "
    "страница стр из oldal sayfa bladzijde pagină".split()
)
_LEADERS = re.compile(r"(?:\s?\.){5,}\s?")
_BROKEN = re.compile(r"([^\W\d_]+)-\n([^\W\d_]+)")
_LIGATURES = re.compile("[\ufb00-\ufb06]")
_NUMBER = re.compile(r"\b[0-9]{1,6}\b")
# What programs write for a title that nobody gave.
_NO_TITLE = re.compile(
    r"untitled|microsoft \w+ -|.*\.(docx?|pptx?|xlsx?|odt|rtf|indd|tex|dvi|pdf|html?)$",
    re.IGNORECASE,
)


def read(path: Path, name: str) -> Iterator[Section | LeftOut]:
    """The text of a .pdf file, titled by its properties, else by the file.

    Raises:
        FileFault: it has a password, no text (scanned paper) or too much, or is damaged.
    """
    check_size(path.stat().st_size, MAX_BYTES)
    with _silenced("pypdf"):
        pages, title = _extract(path)
    if not any(page.strip() for page in pages):
        raise FileFault(
            f"its {len(pages):,} page(s) hold pictures of text (scanned?), no letters. Run text "
            "recognition on it first, e.g.  ocrmypdf IN OUT"
        )
    for number, page in enumerate(pages, 1):
        if not page.strip():
            yield LeftOut("page(s) without text", f"p. {number}")
    yield from _joined(_mended(pages), title or name)


def _extract(path: Path) -> tuple[list[str], str]:
    """The text of each page, and the title or ""."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    with path.open("rb") as stream:
        try:
            reader = PdfReader(stream)
            # Many are locked against changes only, and open without a password.
            if reader.is_encrypted and not reader.decrypt(""):
                raise FileFault("it has a password. Save it without.")
        except DependencyError:
            raise FileFault(
                "it is encrypted. Save it without, or  pip install cryptography"
            ) from None
        count = len(reader.pages)
        if count > MAX_PAGES:
            raise FileFault(f"it has {count:,} pages, at most {MAX_PAGES:,} are read. Split it.")
        pages = []
        size = 0
        for page in reader.pages:
            text = page.extract_text()
            pages.append(_letters(text))
            size += len(text)
            if size > MAX_CHARS:
                raise FileFault(f"it has more than {MAX_CHARS:,} characters. Split it.")
        return pages, _title(reader)


def _title(reader: Any) -> str:
    title = (reader.metadata or {}).get("/Title", "")
    if not isinstance(title, str):
        return ""
    title = " ".join(tidy(title).split())
    if _NO_TITLE.match(title):
        return ""
    return title


def _letters(text: str) -> str:
    """The text with ligatures as letters, and whole where a soft hyphen divided a word."""
    text = text.replace("\u00ad\n", "")
    text = _LIGATURES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return tidy(text)


def _mended(pages: list[str]) -> list[str]:
    """The pages without the lines at their edges, words that a line's end divided joined."""
    lines = [[line for line in page.splitlines() if line.strip()] for page in pages]
    _drop_edges(lines)
    texts = [_LEADERS.sub(" ... ", "\n".join(page)) for page in lines]
    words = Counter(word.lower() for text in texts for word in _WORD.findall(text))
    ends = Counter(found[2].lower() for text in texts for found in _BROKEN.finditer(text))

    def join(found: re.Match[str]) -> str:
        before, after = found.groups()
        if not after[0].islower():
            return found[0]
        # One word if it occurs whole, or its end never alone; else the hyphen may be its own.
        if (before + after).lower() in words or words[after] <= ends[after]:
            return before + after
        return f"{before}-{after}"

    return [_BROKEN.sub(join, text) for text in texts]


def _drop_edges(pages: list[list[str]]) -> None:
    """Removes headers, footers and page numbers.

    The first of each stays unless the page's number is in it: it may be the title.
    """
    many = max(_EDGE_PAGES, _EDGE_SHARE * len(pages))
    shift = _shift(pages)
    seen: set[str] = set()
    for side in (0, -1):
        for _ in range(_EDGE_LINES):
            edges = [
                _edge(page[side], number + shift) if len(page) > 1 else ""
                for number, page in enumerate(pages)
            ]
            counts = Counter(edges)
            removed = False
            for page, edge in zip(pages, edges, strict=True):
                least = many
                if _is_page_number(edge):
                    least = _NUMBERED_PAGES
                if edge and counts[edge] >= least and (_PAGE in edge or edge in seen):
                    page.pop(side)
                    removed = True
                seen.add(edge)
            if not removed:
                break


def _shift(pages: list[list[str]]) -> int:
    """The number that most pages show at an edge, less how many pages are before."""
    shifts = Counter(
        shift
        for before, page in enumerate(pages)
        for line in {*page[:_EDGE_LINES], *page[-_EDGE_LINES:]}
        for number in _NUMBER.findall(line)
        # Tables end in numbers that grow, too.
        if abs(shift := int(number) - before) <= _MOST_SHIFT
    )
    return max(shifts, key=shifts.__getitem__, default=0)


def _edge(line: str, page: int) -> str:
    """A line of the edge but for the page's number in it; "" for what may be a cell of a table."""
    line = " ".join(line.lower().split())
    edge = re.sub(rf"\b0*{page}\b", _PAGE, line, count=1)
    if _PAGE in edge:
        # "Step 3" on the third page is a heading.
        if _HEADING.fullmatch(edge) and not _is_page_number(edge):
            return ""
        return edge
    if len(line) >= _EDGE_CHARS:
        return edge
    return ""


def _is_page_number(edge: str) -> bool:
    return _PAGE in edge and all(word in _PAGE_WORDS for word in _WORD.findall(edge))


def _joined(pages: list[str], title: str) -> Iterator[Section]:
    """The pages as one text, or several where they are many."""
    section = Section(title, "")
    parts: list[str] = []
    size = 0
    for number, page in enumerate(pages, 1):
        if not page:
            continue
        section.marks.append((size, {"page": number}))
        parts.append(page)
        size += len(page) + 1
        if size >= BLOCK_CHARS:
            section.text = "\n".join(parts)
            yield section
            section = Section(title, "")
            parts = []
            size = 0
    if parts:
        section.text = "\n".join(parts)
        yield section


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """A library's log kept off the screen while it reads."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)
