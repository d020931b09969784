"""Word's .docx -> sections: headings by style, paragraphs, lists, tables and notes, in the order of
the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag_core.knowledge.outline import Block, Section, named, sections
from rag_core.knowledge.readers.bounds import check_zip, tidy

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_COMPATIBLE = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_VALUE = f"{_W}val"
_HEADING = re.compile(r"heading ([1-9])$", re.IGNORECASE)
_CONTENTS = re.compile(r"toc \d|toc heading|table of (figures|authorities)", re.IGNORECASE)
_LIST = re.compile(r"list (bullet|number)", re.IGNORECASE)
# A style is based on a style, which is based on a style, ...
_STYLE_DEPTH = 20
# What was deleted, what fields are made of, and the second version of a drawing.
_LEFT_OUT = (
    *(f"{_W}{name}" for name in ("del", "moveFrom", "instrText", "delText", "pPr", "sectPr")),
    f"{_COMPATIBLE}Fallback",
)
_TEXTS = (f"{_W}t", f"{_MATH}t")
_LETTERS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_NOTES = {f"{_W}footnoteReference": "footnotes", f"{_W}endnoteReference": "endnotes"}


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of a .docx file.

    A paragraph of style Title names the document, else its only heading of level 1, else its
    properties, else the file.
    """
    from docx import Document

    check_zip(path)
    document = Document(str(path))
    reader = _Reader(document)
    blocks = list(reader.blocks(document.element.body))
    title = tidy(document.core_properties.title or "").strip()
    yield from sections(named(blocks), title or name)


class _Reader:
    """Walks through the XML: python-docx' own texts leave out insertions, fields, text boxes and
    what stands in forms.
    """

    def __init__(self, document: Any) -> None:
        self.styles = {
            style.get(f"{_W}styleId"): style
            for style in document.styles.element.iterchildren(f"{_W}style")
        }
        self.levels: dict[str, int] = {}
        self.notes = dict(_notes(document))

    def blocks(self, container: Any) -> Iterator[Block]:
        for child in container:
            if child.tag == f"{_W}p":
                yield from self.paragraph(child)
            elif child.tag == f"{_W}tbl":
                yield from self.table(child)
            elif child.tag not in _LEFT_OUT:
                yield from self.blocks(child)

    def paragraph(self, paragraph: Any) -> Iterator[Block]:
        found = _Parts()
        found.collect(paragraph)
        text = tidy("".join(found.texts)).strip()
        style = _value(paragraph, "pPr", "pStyle")
        name = self.style_name(style)
        if text and not _CONTENTS.match(name):
            level = self.level(paragraph, style)
            numbering = _value(paragraph, "pPr", "numPr", "numId")
            if not level and (numbering not in ("", "0") or _LIST.match(name)):
                text = f"- {text}"
            yield Block(text, level)
        for box in found.boxes:
            yield from self.blocks(box)
        for note in found.notes:
            if said := self.notes.get(note):
                yield Block(f"Note: {said}")

    def table(self, table: Any) -> Iterator[Block]:
        rows = [list(_inside(row, "tc")) for row in _inside(table, "tr")]
        # A frame around a text.
        if max(map(len, rows), default=0) <= 1:
            for cells in rows:
                for cell in cells:
                    yield from self.blocks(cell)
            return
        lines = []
        for cells in rows:
            texts = [self.line(cell) for cell in cells]
            if any(texts):
                lines.append(" | ".join(texts))
        if lines:
            yield Block("\n".join(lines), is_kept=True)

    def line(self, cell: Any) -> str:
        return " ".join(" ".join(block.text.split()) for block in self.blocks(cell))

    def style_name(self, style: str) -> str:
        if style not in self.styles:
            return ""
        return _value(self.styles[style], "name")

    def level(self, paragraph: Any, style: str) -> int:
        """The level of a heading, 1 for the title of all, from 2 on for others; 0 for text."""
        outline = _value(paragraph, "pPr", "outlineLvl")
        if outline:
            return _level(outline)
        if style not in self.levels:
            self.levels[style] = self.level_of_style(style)
        return self.levels[style]

    def level_of_style(self, style: str) -> int:
        for _ in range(_STYLE_DEPTH):
            if style not in self.styles:
                break
            name = self.style_name(style)
            if name.lower() == "title":
                return 1
            if heading := _HEADING.match(name):
                return int(heading[1]) + 1
            outline = _value(self.styles[style], "pPr", "outlineLvl")
            if outline:
                return _level(outline)
            style = _value(self.styles[style], "basedOn")
        return 0


class _Parts:
    """What stands in a paragraph: its text, boxes anchored in it, numbers of notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.boxes: list[Any] = []
        self.notes: list[tuple[str, str]] = []

    def collect(self, element: Any) -> None:
        for child in element:
            tag = child.tag
            if tag in _TEXTS:
                self.texts.append(child.text or "")
            elif tag in _LETTERS:
                self.texts.append(_LETTERS[tag])
            elif tag in _NOTES:
                self.notes.append((_NOTES[tag], child.get(f"{_W}id")))
            elif tag == f"{_W}txbxContent":
                self.boxes.append(child)
            elif tag not in _LEFT_OUT and not _is_hidden(child):
                self.collect(child)


def _is_hidden(run: Any) -> bool:
    hidden = run.find(f"{_W}rPr/{_W}vanish")
    return hidden is not None and hidden.get(_VALUE, "1") not in ("0", "false")


def _value(element: Any, *path: str) -> str:
    """The value of the element at a path, "" where there is none."""
    found = element.find("/".join(f"{_W}{name}" for name in path))
    if found is None:
        return ""
    return found.get(_VALUE, "")


def _level(outline: str) -> int:
    # 9 is the level of text.
    if outline.isascii() and outline.isdigit() and int(outline) < 9:
        return int(outline) + 2
    return 0


def _inside(element: Any, name: str) -> Iterator[Any]:
    """The rows of a table or the cells of a row, also those within forms."""
    for child in element:
        if child.tag == f"{_W}{name}":
            yield child
        elif child.tag not in (*_LEFT_OUT, f"{_W}tbl", f"{_W}tc"):
            yield from _inside(child, name)


def _notes(document: Any) -> Iterator[tuple[tuple[str, str], str]]:
    """((kind, id), text) of footnotes and endnotes."""
    from docx.oxml import parse_xml

    for link in document.part.rels.values():
        kind = link.reltype.rpartition("/")[2]
        if kind not in _NOTES.values() or link.is_external:
            continue
        for note in parse_xml(link.target_part.blob):
            parts = _Parts()
            parts.collect(note)
            yield (kind, note.get(f"{_W}id")), tidy(" ".join("".join(parts.texts).split()))
