"""PowerPoint's .pptx -> sections: a slide each, with its title, texts, tables and notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rag_core.knowledge.outline import Block, Section, sections
from rag_core.knowledge.readers.bounds import check_zip, tidy

# Of a slide's edge: numbers, dates and what stands on every slide.
_EDGE = ("SLIDE_NUMBER", "DATE", "FOOTER", "HEADER")


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of a .pptx file; its properties name it, else the file."""
    from pptx import Presentation

    check_zip(path)
    deck = Presentation(str(path))
    title = tidy(deck.core_properties.title or "").strip()
    # What PowerPoint calls a deck that nobody named.
    if title == "PowerPoint Presentation":
        title = ""
    title = title or _title_slide(deck)
    for number, slide in enumerate(deck.slides, 1):
        for section in sections(_blocks(slide, title), title or name):
            section.metadata["slide"] = number
            yield section


def _title_slide(deck: Any) -> str:
    """The title of a first slide that is laid out as one of titles, or ""."""
    for slide in list(deck.slides)[:1]:
        title = slide.shapes.title
        if title is not None and title.placeholder_format.type.name == "CENTER_TITLE":
            return " ".join(tidy(title.text_frame.text).split())
    return ""


def _blocks(slide: Any, deck: str) -> Iterator[Block]:
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        text = " ".join(tidy(title.text_frame.text).split())
        yield Block(text, 1 if text == deck else 2)
    for shape in _shapes(slide.shapes):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.is_placeholder and shape.placeholder_format.type.name in _EDGE:
            continue
        if shape.has_text_frame:
            yield from _paragraphs(shape.text_frame)
        elif getattr(shape, "has_table", False) and shape.has_table:
            yield from _table(shape.table)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = list(_paragraphs(slide.notes_slide.notes_text_frame))
        if notes:
            yield Block("Notes:")
            yield from notes


def _shapes(shapes: Iterable[Any]) -> Iterator[Any]:
    """Shapes, those of groups, too."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _paragraphs(frame: Any) -> Iterator[Block]:
    for paragraph in frame.paragraphs:
        if text := " ".join(tidy(paragraph.text).split()):
            yield Block(text)


def _table(table: Any) -> Iterator[Block]:
    lines = []
    for row in table.rows:
        texts = [" ".join(tidy(cell.text_frame.text).split()) for cell in row.cells]
        if any(texts):
            lines.append(" | ".join(texts))
    if lines:
        yield Block("\n".join(lines), is_kept=True)
