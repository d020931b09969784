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
    # What python-pptx' own empty deck is called.
    if title == "PowerPoint Presentation":
        title = ""
    for number, slide in enumerate(deck.slides, 1):
        for section in sections(_blocks(slide), title or name):
            section.metadata["slide"] = number
            yield section


def _blocks(slide: Any) -> Iterator[Block]:
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        yield Block(tidy(title.text_frame.text), 2)
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
