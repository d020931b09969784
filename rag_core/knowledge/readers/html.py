"""HTML -> sections: what a browser would show of a page's main part."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rag_core.knowledge.outline import Block, Section, named, sections
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy

_HIDDEN = frozenset(
    "script style noscript template nav head title iframe object svg button select datalist dialog "
    "audio video canvas map rp".split()
)
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big br cite code data del dfn em font i img input ins kbd label mark "
    "math nobr picture q rb rt ruby s samp small span strike strong sub sup time tt u var "
    "wbr".split()
)
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_CODE = {"pre", "listing", "xmp", "textarea"}
# A table around one of these arranges a page.
_NOT_IN_TABLES = _HEADINGS | {"table", "pre", "main", "article", "section"}
# More parts of a page that call themselves its main one are none.
_MAINS = 10
# A header or footer within one of these is its own, all others are the site's.
_PARTS = ("article", "main", "section", "blockquote", "table")
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_WORD = re.compile(r"\w")
# As browsers look for them, at the beginning only.
_DECLARED = re.compile(
    rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)|<\?xml[^>]+encoding\s*=\s*[\"']([\w.:-]+)",
    re.IGNORECASE,
)
# The standard asks for the declaration within 1,024 bytes; there are pages that have it later.
_DECLARED_WITHIN = 4096
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What browsers read a page as that says nothing.
_LATIN = "windows-1252"


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of an HTML file.

    Its only heading of level 1 names the document, else `<title>`, else the file.
    """
    check_size(path.stat().st_size)
    yield from page_sections(path.read_bytes(), name)


def page_sections(data: bytes | str, name: str) -> Iterator[Section]:
    """The sections of a page.

    Args:
        data: the page; bytes are decoded as browsers do.
        name: of what has neither a heading nor a title.
    """
    blocks, title = page_blocks(data)
    yield from sections(named(blocks), title or name)


def page_blocks(data: bytes | str) -> tuple[list[Block], str]:
    """The blocks of a page, headings from level 2 on, and its title or ""."""
    from lxml import etree

    if isinstance(data, bytes):
        data = decode(data)
    parser = etree.HTMLParser(
        encoding="utf-8", huge_tree=True, no_network=True, remove_comments=True, remove_pis=True
    )
    text = tidy(data)
    if not text.strip():
        return [], ""
    page = etree.fromstring(text.encode(), parser)
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        raise FileFault("its elements are nested thousands deep, deeper than any page. Mend it.")
    # A file of comments only.
    if page is None:
        return [], ""
    titles = [" ".join("".join(found.itertext()).split()) for found in page.iter("title")]
    walk = _Walk(_layout_tables(page))
    return list(walk.blocks(_main(page))), "".join(titles[:1])


def decode(data: bytes) -> str:
    """The text of a page: by byte order mark, else as it declares, else UTF-8, else Latin letters.

    Bytes that fit none become U+FFFD, as in a browser.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, "replace").lstrip("\ufeff")
    found = _DECLARED.search(data[:_DECLARED_WITHIN])
    names = ["utf-8"]
    last = _LATIN
    if found is not None:
        last = codec((found[1] or found[2]).decode("ascii", "replace")) or "utf-8"
        # What declares itself in ASCII letters is no UTF-16, whatever it says.
        if last.startswith(("utf-16", "utf-32")):
            last = "utf-8"
        names.insert(0, last)
    for name in names:
        with suppress(UnicodeDecodeError):
            return data.decode(name)
    return data.decode(last, "replace")


def codec(label: str) -> str | None:
    """Python's name of the letters that browsers take a label for, often a larger set than it says;
    None for a label that nobody knows.
    """
    import webencodings

    found = webencodings.lookup(label)
    if found is not None and found.name == "x-user-defined":
        return _LATIN
    if found is not None and found.name == "gbk":
        return "gb18030"  # which the standard decodes it by
    names = [label]
    if found is not None:
        names.insert(0, found.codec_info.name)
    for name in names:
        with suppress(LookupError, ValueError):
            b"x".decode(name)
            return codecs.lookup(name).name
    return None


def _main(page: Any) -> Any:
    """The part of a page that is its own, where the page says which."""
    mains = (part for part in page.iter() if _is_main(part))
    for part in islice(mains, _MAINS):
        if any(map(_WORD.search, part.itertext())):
            return part
    return page


def _is_main(element: Any) -> bool:
    return element.tag == "main" or element.get("role") == "main"


def _layout_tables(page: Any) -> set[Any]:
    """The tables that arrange what stands in them."""
    from lxml import etree

    found = set()
    opened: list[Any] = []
    for event, element in etree.iterwalk(page, events=("start", "end")):
        if event == "end":
            if element.tag == "table":
                opened.pop()
            continue
        if opened and element.tag in _NOT_IN_TABLES:
            found.add(opened[-1])
        if element.tag == "table":
            opened.append(element)
    return found


class _Walk:
    """Collects the text of inline elements between the borders of blocks."""

    def __init__(self, layout_tables: set[Any]) -> None:
        self.layout_tables = layout_tables
        self.inline: list[str] = []
        self.in_item = False

    def blocks(self, root: Any) -> Iterator[Block]:
        from lxml import etree

        walk = etree.iterwalk(root, events=("start", "end"))
        passed: Any = None
        for event, element in walk:
            tag = element.tag
            if event == "start":
                if tag not in _INLINE and not _is_hidden(element):
                    yield from self.flush()
                whole = None
                if element is not root:
                    whole = self.whole(element)
                if whole is None:
                    self.inline.append(_own_text(element))
                    self.in_item = self.in_item or tag == "li"
                else:
                    yield from whole
                    passed = element
                    walk.skip_subtree()
                continue
            if element is not passed and tag not in _INLINE:
                yield from self.flush()
                self.in_item = self.in_item and tag != "li"
            passed = None
            if element is not root:
                self.inline.append(element.tail or "")
        yield from self.flush()

    def flush(self) -> Iterator[Block]:
        text = " ".join("".join(self.inline).split())
        self.inline.clear()
        if text:
            yield Block(f"- {text}" if self.in_item else text)
            self.in_item = False

    def whole(self, element: Any) -> list[Block] | None:
        """The blocks of what is not walked through; None for what is."""
        tag = element.tag
        if _is_hidden(element):
            return []
        if tag in _HEADINGS:
            return [Block(self.heading(element), int(tag[1]) + 1)]
        if tag in _CODE:
            code = _shown_text(element).strip("\n").rstrip()
            return [Block(code, is_kept=True)] if code else []
        if tag == "table" and element not in self.layout_tables:
            return self.table(element)
        return None

    def heading(self, element: Any) -> str:
        # Marks that link to the heading itself.
        for link in list(element.iter("a")):
            text = "".join(link.itertext())
            if link.get("href", "").startswith("#") and not _WORD.search(text):
                link.text = ""
                del link[:]
        return self.line(element)

    def line(self, element: Any) -> str:
        """The text of an element on one line."""
        return " ".join(block.text for block in _Walk(self.layout_tables).blocks(element))

    def table(self, element: Any) -> list[Block]:
        blocks = [Block(self.line(caption)) for caption in _shown(element, "caption")]
        lines = []
        for row in _shown(element, "tr"):
            cells = [self.line(cell) for cell in _shown(row, "td", "th")]
            if any(cells):
                lines.append(" | ".join(cells))
        blocks.append(Block("\n".join(lines), is_kept=True))
        return [block for block in blocks if block.text]


def _shown(element: Any, *tags: str) -> Iterator[Any]:
    """The elements of these tags within another that are not hidden."""
    from lxml import etree

    walk = etree.iterwalk(element, events=("start",))
    for _, found in walk:
        if found is element:
            continue
        if _is_hidden(found):
            walk.skip_subtree()
        elif found.tag in tags:
            yield found


def _shown_text(element: Any) -> str:
    """The text of an element but for what is hidden in it."""
    from lxml import etree

    texts = []
    walk = etree.iterwalk(element, events=("start", "end"))
    for event, found in walk:
        if event == "end":
            if found is not element:
                texts.append(found.tail or "")
        elif found is not element and _is_hidden(found):
            walk.skip_subtree()
        else:
            texts.append(_own_text(found))
    return "".join(texts)


def _is_of_site(element: Any) -> bool:
    if next(element.iterancestors(*_PARTS), None) is not None:
        return False
    # The title of a page may stand in its header.
    return element.tag == "footer" or next(element.iter(*_HEADINGS), None) is None


def _own_text(element: Any) -> str:
    """The text before the first element within, or in its place."""
    if element.tag == "br":
        return "\n"
    if element.tag == "img":
        return f" {element.get('alt', '')} "
    return element.text or ""


def _is_hidden(element: Any) -> bool:
    if element.tag in _HIDDEN or "hidden" in element.attrib:
        return True
    if element.get("aria-hidden") == "true" or element.get("role") == "navigation":
        return True
    if element.tag in ("header", "footer") and _is_of_site(element):
        return True
    return bool(_INVISIBLE.search(element.get("style", "")))
