"""Blocks of a text, as readers of files find them -> sections under headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# A longer text is handed on in several sections, so that one huge file never sits in memory twice.
BLOCK_CHARS = 1 << 20


Marks = Sequence[tuple[int, Mapping[str, Any]]]


class Block(NamedTuple):
    """A heading, a paragraph, a table, ...

    Attributes:
        text: what a reader of the file sees.
        level: of a heading, from 1; 0 is text. A heading of level 1 names the whole document.
        is_kept: whether its line breaks and blanks mean something.
        marks: (offset in `text`, position in the file from there on), as `Document` has them.
    """

    text: str
    level: int = 0
    is_kept: bool = False
    marks: Marks = ()


class LeftOut(NamedTuple):
    """Something in a file that was not read, to be counted and told at the end.

    Attributes:
        kind: of what, in the plural.
        name: which, within the file.
    """

    kind: str
    name: str


@dataclass
class Section:
    """What stands under a heading.

    Attributes:
        title: `Doc — Section`, or `Doc` under a heading of level 1.
        text: without the heading.
        metadata: `headings`, all above the text, and what else a reader knows.
        marks: (offset in `text`, position from there on), in order.
        kept: (start, end) of `text` where line breaks and blanks mean something.
        line: where it begins, with its heading, in a file of lines.
    """

    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    marks: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    kept: list[tuple[int, int]] = field(default_factory=list)
    line: int | None = None

    def fill(self, blocks: Iterable[Block]) -> None:
        """Makes the text of blocks, a line break between them."""
        parts = []
        start = 0
        for block in blocks:
            self.marks += [(start + offset, position) for offset, position in block.marks]
            if block.is_kept:
                self.kept.append((start, start + len(block.text)))
            parts.append(block.text)
            start += len(block.text) + 1
        self.text = "\n".join(parts)


def sections(
    blocks: Iterable[Block],
    name: str,
    block_chars: int = BLOCK_CHARS,
    first_line: int | None = None,
) -> Iterator[Section]:
    """The sections that blocks make, streamed.

    A heading without text of its own goes into the text after it, so none is lost.

    Args:
        blocks: in the order of the file.
        name: of the document, until a heading of level 1 names it.
        block_chars: a section with more characters is handed on in several.
        first_line: where the first section begins, in a file of lines.
    """
    outline = _Outline(name, block_chars, first_line)
    for block in blocks:
        if block.level:
            yield from outline.heading(block)
        else:
            yield from outline.add(block)
    yield from outline.end()


def named(blocks: list[Block]) -> list[Block]:
    """The blocks of a document whose headings begin at level 2, as level 1 is its title's.

    Where there is no title and one heading of level 2 only, that is the title.
    """
    tops = [block.level for block in blocks if block.level in (1, 2)]
    if tops != [2]:
        return blocks
    return [block._replace(level=max(block.level - 1, 0)) for block in blocks]


class _Outline:
    def __init__(self, name: str, block_chars: int, line: int | None) -> None:
        self.file_name = name
        self.name = name
        self.block_chars = block_chars
        self.line = line
        self.path: list[tuple[int, str]] = []
        self.unseen: list[Block] = []
        self.blocks: list[Block] = []
        self.size = 0

    def heading(self, block: Block) -> Iterator[Section]:
        title = " ".join(block.text.split())
        is_top = block.level == 1
        if self.blocks or (is_top and self.unseen):
            yield self._section()
        while self.path and self.path[-1][0] >= block.level:
            self.path.pop()
        if is_top:
            self.name = title or self.file_name
        if title:
            self.path.append((block.level, title))
            self.unseen.append(block._replace(text=title))
        self.line = _line(block)

    def add(self, block: Block) -> Iterator[Section]:
        if self.size >= self.block_chars:
            yield self._section()
            self.line = _line(block)
        self.blocks.append(block)
        self.size += len(block.text)

    def end(self) -> Iterator[Section]:
        if self.blocks or self.unseen:
            yield self._section()

    def _section(self) -> Section:
        under = ""
        if self.path and self.path[-1][0] > 1:
            under = self.path[-1][1]
        title = " — ".join(filter(None, (self.name, under)))
        blocks = self.unseen
        # Those in the title need not be repeated, unless there is nothing else.
        if self.blocks:
            blocks = [block for block in blocks if block.text not in (self.name, under)]
            blocks += self.blocks
        section = Section(title, "", line=self.line)
        if self.path:
            section.metadata["headings"] = [text for _, text in self.path]
        section.fill(blocks)
        self.blocks = []
        self.unseen = []
        self.size = 0
        return section


def _line(block: Block) -> int | None:
    if not block.marks:
        return None
    return block.marks[0][1].get("line")
