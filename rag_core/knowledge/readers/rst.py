"""reStructuredText -> sections, by docutils: nothing included, nothing raw, no file written.

Directives and roles that docutils does not know, most of them Sphinx', are read for the text that
they hold.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.hub import read_lines
from rag_core.knowledge.outline import Block, Section, named, sections
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy

if TYPE_CHECKING:
    from docutils.nodes import Element, Node

# Docutils reads a few hundred thousand characters a second.
MAX_BYTES = 16 << 20
MAX_LINE = 1 << 20
# Docutils' time for faulty text grows with its square. Roles of Sphinx are two faults each, a
# thousand a second.
MAX_FAULTS = 20_000
# For what faults don't count: some files are slow without any.
MAX_SECONDS = 60
# Unknown directives within unknown directives.
_DEPTH = 4
_SETTINGS = {
    "_disable_config": True,
    "doctitle_xform": False,
    "file_insertion_enabled": False,
    "halt_level": 5,
    "line_length_limit": MAX_LINE,
    "raw_enabled": False,
    "report_level": 1,
    "sectnum_xform": False,
    "sectsubtitle_xform": False,
    "smart_quotes": False,
    "syntax_highlight": "none",
    "traceback": True,
}
_DIRECTIVE = re.compile(r"\s*\.\. +(?:\|[^|]*\| +)?([\w:.+-]+)::[ \t]*")
_OPTION = re.compile(r"\s*:[\w-]+:(\s|$)")
# Of these what stands below is names of files or settings.
_NO_TEXT = re.compile(
    r"auto\w+|\w*toctree|include|literalinclude|raw|index|highlight|(current)?module|image|only"
    r"|contents|plot|tabularcolumns|currentmodule|meta|csv-table|minigallery|bibliography"
)
_CODE = re.compile(
    r"code.*|sourcecode|ipython|parsed-literal|doctest|testcode|prompt|productionlist"
)
_SAID = {
    "versionadded": "New in version ",
    "versionchanged": "Changed in version ",
    "deprecated": "Deprecated since version ",
}
_ROLE = re.compile(r":[\w:.+-]+:`(.+)`", re.DOTALL)
_TARGET = re.compile(r"(.+?)\s*<[^<>]*>", re.DOTALL)


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of an .rst file.

    Its only heading of the highest level names the document, else the file.
    """
    check_size(path.stat().st_size, MAX_BYTES)
    lines = [line.rstrip() for _, line in read_lines(path)]
    if max(map(len, lines), default=0) > MAX_LINE:
        raise FileFault(f"a line has more than {MAX_LINE:,} characters. Break it.")
    blocks = list(_Reader().blocks("\n".join(lines)))
    yield from sections(named(blocks), name)


class _Reader:
    """Walks through the tree of nodes that docutils makes.

    Attributes:
        first: number of the first line of the text that is read.
        depth: of directives that docutils doesn't know, around that text.
    """

    def __init__(self, first: int = 1, depth: int = 0) -> None:
        self.first = first
        self.depth = depth
        self.lines: list[str] = []
        self.faults = 0
        self.start = time.monotonic()

    def write(self, _: str) -> None:
        """Takes what docutils complains of, one fault a call."""
        self.faults += 1
        if self.faults > MAX_FAULTS or time.monotonic() - self.start > MAX_SECONDS:
            raise FileFault(
                f"it has too many faults of markup ({self.faults:,} so far). Mend it, or save it as "
                ".txt."
            )

    def blocks(self, text: str) -> Iterator[Block]:
        from docutils.core import publish_doctree

        self.lines = text.split("\n")
        settings = {**_SETTINGS, "warning_stream": self}
        tree = publish_doctree(text, settings_overrides=settings)
        yield from self.inside(tree, 2, {"line": self.first})

    def inside(self, node: Node, level: int, position: dict[str, Any]) -> Iterator[Block]:
        for child in node.children:
            yield from self.block(child, level, position)

    def block(self, node: Any, level: int, position: dict[str, Any]) -> Iterator[Block]:
        from docutils import nodes

        if getattr(node, "line", None):
            position = {"line": self.first + node.line - 1}
        if isinstance(node, nodes.section):
            yield from self.inside(node, level + 1, position)
        elif isinstance(node, nodes.title):
            # Of a section; those of admonitions and tables are text.
            if isinstance(node.parent, nodes.section):
                # Docutils gives the line below a heading.
                line = max(position["line"] - 1, 1)
                yield Block(_text(node), level - 1, marks=[(0, {"line": line})])
            else:
                yield Block(_text(node), marks=[(0, position)])
        elif isinstance(node, nodes.system_message):
            yield from self.unknown(node)
        elif isinstance(node, nodes.table):
            yield from _table(node, position)
        elif isinstance(node, nodes.image):
            if alternative := tidy(node.get("alt", "")).strip():
                yield Block(alternative, marks=[(0, position)])
        elif isinstance(node, nodes.Invisible | nodes.decoration):
            return
        elif isinstance(node, nodes.topic) and "contents" in node["classes"]:
            return
        elif isinstance(node, nodes.FixedTextElement | nodes.math_block):
            if code := tidy(node.astext()).strip("\n"):
                line = self.line_of(code, position["line"])
                yield Block(code, is_kept=True, marks=[(0, {"line": line})])
        elif isinstance(node, nodes.TextElement):
            if text := _text(node):
                is_item = isinstance(node.parent, nodes.list_item) and node.parent.index(node) == 0
                yield Block(f"- {text}" if is_item else text, marks=[(0, position)])
        else:
            yield from self.inside(node, level, position)

    def line_of(self, code: str, line: int) -> int:
        """Where code begins: docutils gives the line after some of it."""
        begin = code.partition("\n")[0].strip()
        least = max(line - code.count("\n") - 4, self.first)
        for number in range(line, least - 1, -1):
            if begin in "".join(self.lines[number - self.first : number - self.first + 1]):
                return number
        return line

    def unknown(self, message: Element) -> Iterator[Block]:
        """The text of a directive that docutils does not know."""
        from docutils import nodes

        for node in message.findall(nodes.literal_block):
            source = node.astext()
            found = _DIRECTIVE.match(source)
            name = found[1] if found else ""
            if not found or self.depth >= _DEPTH or _NO_TEXT.fullmatch(name.rpartition(":")[2]):
                return
            head, _, rest = source[found.end() :].partition("\n")
            lines = rest.split("\n")
            while lines and _OPTION.match(lines[0]):
                lines.pop(0)
            body = textwrap.dedent("\n".join(lines)).strip("\n")
            position = {"line": self.first + message.get("line", 1) - 1}
            if _CODE.fullmatch(name.rpartition(":")[2]):
                yield Block(body, is_kept=True, marks=[(0, position)])
                return
            if head.strip():
                yield Block(f"{_SAID.get(name, '')}{tidy(head.strip())}", marks=[(0, position)])
            inner = _Reader(position["line"], self.depth + 1)
            for block in inner.blocks(body):
                # A heading within would cut the section around it.
                yield block._replace(level=0, marks=[(0, position)])


def _text(node: Element) -> str:
    """The text of an element, roles that docutils does not know by their text."""
    from docutils import nodes

    parts = []
    for leaf in node.findall(nodes.Text):
        text = leaf.astext()
        if isinstance(leaf.parent, nodes.problematic) and (role := _ROLE.fullmatch(text)):
            text = role[1]
            if target := _TARGET.fullmatch(text):
                text = target[1]
            text = text.lstrip("~!")
        parts.append(text)
    return tidy("".join(parts)).strip()


def _table(table: Element, position: dict[str, Any]) -> Iterator[Block]:
    from docutils import nodes

    for title in table.findall(nodes.title):
        yield Block(_text(title), marks=[(0, position)])
    lines = []
    for row in table.findall(nodes.row):
        cells = [" ".join(_text(entry).split()) for entry in row.findall(nodes.entry)]
        lines.append(" | ".join(cells))
    yield Block("\n".join(lines), is_kept=True, marks=[(0, position)])
