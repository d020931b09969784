"""Notebooks in .ipynb -> sections: Markdown cells as Markdown is read, code cells kept, what they
printed as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag_core.hub import parse_json
from rag_core.knowledge.markdown import blocks as markdown_blocks
from rag_core.knowledge.outline import Block, Section, sections
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy

# Pictures are in it, as text.
MAX_BYTES = 256 << 20
# Of what a cell printed.
OUTPUT_CHARS = 2_000


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of an .ipynb file, titled as those of Markdown."""
    check_size(path.stat().st_size, MAX_BYTES)
    notebook = parse_json(path.read_bytes(), path, advice="Save it anew.")
    cells = notebook.get("cells")
    # Before version 4 cells were in sheets.
    if cells is None and isinstance(notebook.get("worksheets"), list):
        sheets = notebook["worksheets"]
        cells = [
            cell for sheet in sheets if isinstance(sheet, dict) for cell in _of(sheet, "cells")
        ]
    if not isinstance(cells, list):
        raise FileFault("it has no list of cells, so it is no notebook. Save it anew.")
    yield from sections(_blocks(cells), name)


def _blocks(cells: list[Any]) -> Iterator[Block]:
    for number, cell in enumerate(cells, 1):
        if isinstance(cell, dict):
            for block in _cell(cell):
                yield block._replace(marks=[(0, {"cell": number})])


def _cell(cell: dict[str, Any]) -> Iterator[Block]:
    source = _joined(cell.get("source", cell.get("input")))
    kind = cell.get("cell_type")
    if kind == "markdown":
        yield from markdown_blocks(source.splitlines(keepends=True))
    elif kind == "heading":
        level: Any = cell.get("level")
        yield Block(source, level if level in range(1, 7) else 2)
    elif source.strip():
        yield Block(source.strip("\n"), is_kept=True)
    printed = "\n".join(text for output in _of(cell, "outputs") if (text := _output(output)))
    if printed:
        yield Block(printed[:OUTPUT_CHARS], is_kept=True)


def _output(output: Any) -> str:
    """What an output shows as plain text; of errors and pictures nothing."""
    if not isinstance(output, dict):
        return ""
    data = output.get("data", output)
    text = output.get("text")
    if isinstance(data, dict) and text is None:
        text = data.get("text/plain")
    return _joined(text).strip()


def _of(holder: dict[str, Any], name: str) -> list[Any]:
    found = holder.get(name)
    return found if isinstance(found, list) else []


def _joined(lines: Any) -> str:
    """A text that a notebook holds whole or by lines."""
    if isinstance(lines, list):
        lines = "".join(line for line in lines if isinstance(line, str))
    return tidy(lines) if isinstance(lines, str) else ""
