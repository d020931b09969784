"""Markdown -> sections, by CommonMark's rules (markdown-it-py): headings become titles, links their
text, code stays.

Nothing is dropped but comments, the addresses behind links, and front matter where it is front
matter. A file is parsed in pieces that end between top-level blocks, so that a huge one never sits
in memory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

PIECE_CHARS = 1 << 18  # parsed at once; more only where one block is longer
BLOCK_LIMIT = 4 * PIECE_CHARS  # a longer block is parsed in pieces
# a longer paragraph full of brackets keeps its markup: those never closed cost its length each
INLINE_LIMIT = 50_000
FRONT_MATTER_LINES = 1_000

_FENCES = {"---": ("---", "..."), "+++": ("+++",)}
_KEYS = {
    "---": re.compile(r"[\w\"'][^\n:]*:(\s|$)"),
    "+++": re.compile(r"[\w\"'][^\n=]*=|\[\[?[\w .\"'-]+\]\]?\s*(#|$)"),
}
# Of a value: indented, a comment, an item of a list, a closing bracket; or nothing.
_UNKEYED = re.compile(r"\s|$|#|-(\s|$)|[\]})]")
# Before the first value. In YAML nothing: a blank line or a heading may follow a rule. TOML's mark
# is no rule.
_BEFORE = {"---": re.compile(r"(?!)"), "+++": re.compile(r"\s*(#|$)")}
_CAPITAL = r"[A-Z\u00c0-\u00de\u0391-\u03ab\u0410-\u042f]"
# A capital or two words before the colon, and a full stop: "Note: not on Mondays."
_SENTENCE = re.compile(rf"(?:{_CAPITAL}|[^:=]*\w \w)[^:=]*:.*[.!?][\"')]*\s*$")
_ADDRESS = re.compile(r"[/.#:]")
_CODE_TAGS = ("<pre", "<script", "<style", "<textarea")
_WORD = re.compile(r"\w")


class Section(NamedTuple):
    """What stands under a heading.

    Attributes:
        title: `Doc — Section`, or `Doc` under a first-level heading.
        text: without the heading.
        line: where it begins, counted from 1.
    """

    title: str
    text: str
    line: int


def sections(lines: Iterable[str], name: str, block_chars: int) -> Iterator[Section]:
    """The sections of a Markdown file, streamed.

    Args:
        lines: of the file.
        name: title of what stands before the first first-level heading.
        block_chars: a section with more characters is handed on in several.
    """
    under = _Sections(name, block_chars)
    for first, blocks in _blocks(lines):
        for block in blocks:
            yield from under.heading(block, first) if block.heading else under.text(block, first)
    yield from under.end()


class _Block(NamedTuple):
    """A leaf of the tree: its text, the line where it begins in its piece, and the level if it
    is a heading.
    """

    text: str
    line: int
    heading: int = 0


class _Sections:
    """Collects text under headings.

    A heading without text of its own goes into the text after it, so none is lost.
    """

    def __init__(self, name: str, block_chars: int) -> None:
        self.stem = self.name = name
        self.section = ""
        self.block_chars = block_chars
        self.line = 1
        self.size = 0
        self.parts: list[str] = []
        self.unseen: list[str] = []

    def heading(self, block: _Block, first: int) -> Iterator[Section]:
        title = " ".join(block.text.split())
        top = block.heading == 1
        if self.parts or (top and self.unseen):
            yield self._section()
        if top:
            self.name, self.section = title or self.stem, ""
        else:
            self.section = title
        if title:
            self.unseen.append(title)
        self.line = first + block.line

    def text(self, block: _Block, first: int) -> Iterator[Section]:
        if self.size >= self.block_chars:
            yield self._section()
            self.line = first + block.line
        self.parts.append(block.text)
        self.size += len(block.text)

    def end(self) -> Iterator[Section]:
        if self.parts or self.unseen:
            yield self._section()

    def _section(self) -> Section:
        title = f"{self.name} — {self.section}" if self.section else self.name
        shown = (self.name, self.section) if self.parts else ()
        text = "\n".join([heading for heading in self.unseen if heading not in shown] + self.parts)
        found = Section(title, text, self.line)
        self.parts, self.unseen, self.size = [], [], 0
        return found


def _blocks(lines: Iterable[str]) -> Iterator[tuple[int, Iterator[_Block]]]:
    """The file in pieces: number of the first line, leaves."""
    source = iter(lines)
    piece, dropped = _after_front_matter(source)
    first, size, wanted = 1 + dropped, sum(map(len, piece)), PIECE_CHARS
    for line in source:
        piece.append(line)
        size += len(line)
        if size < wanted:
            continue
        tokens = _parse(piece)
        last = max((token.map[0] for token in tokens if token.map and _may_begin(token)), default=0)
        if last == 0 and size < BLOCK_LIMIT:
            wanted = 2 * size  # one block so far: its end may come
            continue
        last = last or len(piece)
        yield first, _leaves(tokens, piece[:last])
        first, piece = first + last, piece[last:]
        if not piece and tokens and tokens[-1].type == "fence":
            first, piece = first - 1, [f"{tokens[-1].markup}\n"]  # what follows is code still
        size = sum(map(len, piece))
        wanted = size + PIECE_CHARS
    yield first, _leaves(_parse(piece), piece)


def _may_begin(token: Token) -> bool:
    """Whether a piece may begin with this block, all before it being whole.

    A top-level one, an item of such a list.
    """
    return token.level == 0 or (token.level == 1 and token.type == "list_item_open")


def _after_front_matter(lines: Iterator[str]) -> tuple[list[str], int]:
    """The lines read to find out whether there is front matter, and how many it took.

    It is front matter if the file begins with its mark, values follow at once, not all of them
    sentences, and the mark comes again.
    """
    read: list[str] = []
    mark = inside = ""
    keyed = real = False
    for line in lines:
        read.append(line)
        if len(read) == 1:
            mark = line.rstrip()
            if mark not in _FENCES:
                break
        elif inside:  # a value of several lines
            inside = "" if inside in line else inside
        elif line.rstrip() in _FENCES[mark]:
            return ([], len(read)) if real else (read, 0)
        elif _KEYS[mark].match(line):
            keyed, real = True, real or not _SENTENCE.match(line)
            inside = _left_open(line) if mark == "+++" else ""
        elif not (_UNKEYED if keyed else _BEFORE[mark]).match(line):
            break
        if len(read) > FRONT_MATTER_LINES:
            break
    return read, 0


def _left_open(line: str) -> str:
    """What closes the value that a line of TOML leaves open; "" where it leaves none."""
    for quotes in ('"""', "'''"):
        if line.count(quotes) % 2:
            return quotes
    value = line.partition("=")[2].lstrip()
    return "]" if value.startswith("[") and value.count("[") > value.count("]") else ""


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # No tables: GitHub's drop the cells that a row has beyond the first. Their words are read as a
    # paragraph.
    parser = MarkdownIt("commonmark", {"inline_definitions": True, "store_labels": True})
    # by `_inline`, where a paragraph is not too long
    parser.core.ruler.disable(["inline", "text_join"])
    return parser


def _parse(piece: Sequence[str]) -> list[Token]:
    env: dict = {}
    tokens = _parser().parse("".join(line.rstrip("\r\n") + "\n" for line in piece), env)
    for token in tokens:
        if token.type == "inline" and not _costly(token.content):
            token.children = []
            _parser().inline.parse(token.content, _parser(), env, token.children)
    return tokens


def _leaves(tokens: Sequence[Token], piece: Sequence[str]) -> Iterator[_Block]:
    """The leaves within the lines of `piece`, in order, and the lines that no leaf holds."""
    used = {label for token in tokens for label in _labels(token.children or ())}
    markers: list[tuple[int, str]] = []
    heading = done = 0
    for token in tokens:
        if token.map and token.map[0] >= len(piece):
            break
        if token.type == "heading_open":
            heading = int(token.tag[1]) if token.level == 0 else 0
        elif token.type == "list_item_open" and token.map:
            markers.append((token.map[0], (token.info or "") + token.markup))
        elif token.type == "inline" and token.map:
            text = _inline(token)
            if heading and "\n" in token.content:
                heading = 0  # a paragraph with a rule below it and no blank line between, no title
        elif token.type in ("fence", "code_block", "html_block", "hr", "definition") and token.map:
            text = _code_or_html(token, piece, used)
        if token.map and (token.type == "inline" or token.nesting == 0):
            yield from _between(piece, done, token.map[0])
            before = " ".join(marker for line, marker in markers if line == token.map[0])
            done = max(done, token.map[1])
            markers.clear()
            if text.strip() or heading:
                yield _Block(
                    f"{before} {text}" if before and not heading else text, token.map[0], heading
                )
            heading = 0
    yield from _between(piece, done, len(piece))


def _between(piece: Sequence[str], start: int, end: int) -> Iterator[_Block]:
    """Lines that no leaf holds and that are more than marks.

    Quotes and lists nested too deep to be parsed.
    """
    lost = [line for line in piece[start:end] if _WORD.search(line)]
    if lost:
        yield _Block("".join(lost), start)


def _labels(children: Iterable[Token]) -> Iterator[str]:
    for child in children:
        if "label" in child.meta:
            yield child.meta["label"]
        yield from _labels(child.children or ())


def _inline(token: Token) -> str:
    return token.content if _costly(token.content) else _text_of(token.children or ())


def _costly(text: str) -> bool:
    return len(text) > INLINE_LIMIT and len(text) * text.count("[") > INLINE_LIMIT**2


def _text_of(children: Sequence[Token]) -> str:
    """Text as it is read: escapes and entities resolved, links by their text, emphasis and code
    with their marks.
    """
    parts: list[str] = []
    for child in children:
        if child.type in ("text", "text_special"):
            parts.append(child.content)
        elif child.type == "code_inline":
            room = " " if "`" in (child.content[:1], child.content[-1:]) else ""
            parts.append(f"{child.markup}{room}{child.content}{room}{child.markup}")
        elif child.type == "image":
            parts.append(_text_of(child.children or ()))
        elif child.type == "html_inline":
            parts.append(_without_comments(child.content))
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type not in ("link_open", "link_close"):
            parts.append(child.markup)
    return "".join(parts)


def _code_or_html(token: Token, piece: Sequence[str], used: set[str]) -> str:
    if token.type == "hr" or not token.map:
        return ""
    start, end = token.map
    if token.type == "definition":
        address = _ADDRESS.search(token.meta["url"]) and not token.meta["label"].startswith("^")
        named = token.meta["id"] in used or token.meta["url"] == "#"  # [//]: # (a comment)
        return "" if address and named else "".join(piece[start:end])
    if token.type == "fence":
        closed = end - start > token.content.count("\n") + 1
        return f"{token.markup}{token.info}\n{token.content}{token.markup if closed else ''}"
    if token.type == "html_block" and not token.content.lstrip().lower().startswith(_CODE_TAGS):
        return _without_comments(token.content)
    return token.content


def _without_comments(html: str) -> str:
    parts: list[str] = []
    start = 0
    while (mark := html.find("<!--", start)) >= 0:
        short = next((end for end in ("<!-->", "<!--->") if html.startswith(end, mark)), None)
        end = mark + len(short) if short else html.find("-->", mark + 4)
        if end < 0:
            break  # never closed: text
        end += 0 if short else len("-->")
        parts.append(html[start:mark])
        start = end
    return "".join([*parts, html[start:]])
