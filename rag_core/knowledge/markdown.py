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
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from rag_core.knowledge import outline
from rag_core.knowledge.outline import Block, Section

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Parsed at once, as tokens take far more room than their text; more where one block is longer.
PIECE_CHARS = 1 << 18
# A longer block is parsed in pieces.
BLOCK_LIMIT = 4 * PIECE_CHARS
# A longer paragraph full of brackets keeps its markup: those never closed cost its length each.
INLINE_LIMIT = 50_000
# A file of so many values is no document.
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
_BREAK = re.compile("\n")
# The line under a table's head, as GitHub wants it: |---|:-:|
_TABLE = re.compile(r"\n[ \t]*(?:\|[ \t]*)?:?-+:?[ \t]*\|[-:| \t]*(\n|$)")


def sections(lines: Iterable[str], name: str, block_chars: int) -> Iterator[Section]:
    """The sections of a Markdown file, streamed.

    Args:
        lines: of the file.
        name: title of what stands before the first first-level heading.
        block_chars: a section with more characters is handed on in several.
    """
    return outline.sections(blocks(lines), name, block_chars, first_line=1)


def blocks(lines: Iterable[str]) -> Iterator[Block]:
    """The headings and texts of a Markdown file, streamed."""
    for first_line, leaves in _blocks(lines):
        for leaf in leaves:
            yield Block(leaf.text, leaf.heading, leaf.kept, leaf.marks(first_line))


class _Block(NamedTuple):
    """A leaf of the tree.

    Attributes:
        text: as it is read.
        line: where it begins in its piece.
        heading: the level if it is a heading.
        kept: whether its line breaks and blanks stay.
        last: its last line in its piece, where not all line breaks are in the text.
    """

    text: str
    line: int
    heading: int = 0
    kept: bool = False
    last: int | None = None

    def marks(self, first: int) -> list[tuple[int, dict[str, int]]]:
        """Where lines begin in the text, and which of the file they are: `first` begins the
        piece.
        """
        line = first + self.line
        if self.last is not None:
            return [(0, {"line": line, "end_line": first + self.last})]
        starts = [0, *(match.end() for match in _BREAK.finditer(self.text))]
        return [(start, {"line": line + number}) for number, start in enumerate(starts)]


def _blocks(lines: Iterable[str]) -> Iterator[tuple[int, Iterator[_Block]]]:
    """The file in pieces: number of the first line, leaves."""
    source = iter(lines)
    piece, front_lines = _after_front_matter(source)
    first = 1 + front_lines
    size = sum(map(len, piece))
    enough = PIECE_CHARS
    for line in source:
        piece.append(line)
        size += len(line)
        if size < enough:
            continue
        tokens = _parse(piece)
        starts = [token.map[0] for token in tokens if token.map and _may_begin(token)]
        last = max(starts, default=0)
        if last == 0 and size < BLOCK_LIMIT:
            enough = 2 * size  # one block so far: its end may come
            continue
        last = last or len(piece)
        yield first, _leaves(tokens, piece[:last])
        first += last
        piece = piece[last:]
        if not piece and tokens and tokens[-1].type == "fence":
            # What follows is code still.
            piece = [f"{tokens[-1].markup}\n"]
            first -= 1
        size = sum(map(len, piece))
        enough = size + PIECE_CHARS
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
    read = list(islice(lines, 1))
    mark = "".join(read).rstrip()
    if mark not in _FENCES:
        return read, 0
    closing = ""  # of a value of several lines that is open
    between = _BEFORE[mark]
    has_values = False
    for line in islice(lines, FRONT_MATTER_LINES):
        read.append(line)
        if closing:
            if closing in line:
                closing = ""
        elif line.rstrip() in _FENCES[mark]:
            if has_values:
                return [], len(read)
            break
        elif _KEYS[mark].match(line):
            between = _UNKEYED
            has_values = has_values or not _SENTENCE.match(line)
            if mark == "+++":
                closing = _left_open(line)
        elif not between.match(line):
            break
    return read, 0


def _left_open(line: str) -> str:
    """What closes the value that a line of TOML leaves open; "" where it leaves none."""
    for quotes in ('"""', "'''"):
        if line.count(quotes) % 2:
            return quotes
    value = line.partition("=")[2].lstrip()
    if value.startswith("[") and value.count("[") > value.count("]"):
        return "]"
    return ""


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
    env: dict[str, Any] = {}
    tokens = _parser().parse(_joined(piece), env)
    for token in tokens:
        if token.type == "inline" and not _costly(token.content):
            token.children = []
            _parser().inline.parse(token.content, _parser(), env, token.children)
    return tokens


def _joined(lines: Iterable[str]) -> str:
    return "".join(line.rstrip("\r\n") + "\n" for line in lines)


def _leaves(tokens: Sequence[Token], piece: Sequence[str]) -> Iterator[_Block]:
    """The leaves within the lines of `piece`, in order, and the lines that no leaf holds."""
    used = {label for token in tokens for label in _labels(token.children or ())}
    markers: list[tuple[int, str]] = []
    heading = 0
    done = 0
    for token in tokens:
        if not token.map:
            continue
        start, end = token.map
        if start >= len(piece):
            break
        if token.type == "heading_open" and token.level == 0:
            heading = int(token.tag[1])
        elif token.type == "list_item_open":
            markers.append((start, (token.info or "") + token.markup))
        if token.nesting != 0:
            continue
        yield from _between(piece, done, start)
        done = max(done, end)
        if token.type == "inline":
            text = _inline(token)
            has_all_breaks = text.count("\n") == token.content.count("\n")
            kept = _TABLE.search(token.content) is not None
            # A paragraph with a rule below it and no blank line between is no title.
            if "\n" in token.content:
                heading = 0
        else:
            text = _code_or_html(token, piece, used)
            has_all_breaks = token.type != "html_block" or text == token.content
            kept = token.type in ("fence", "code_block") or _is_code(token)
        before = " ".join(marker for line, marker in markers if line == start)
        markers.clear()
        if before and not heading and text.strip():
            text = f"{before} {text}"
        if text.strip() or heading:
            yield _Block(text, start, heading, kept, None if has_all_breaks else end - 1)
        heading = 0
    yield from _between(piece, done, len(piece))


def _between(piece: Sequence[str], start: int, end: int) -> Iterator[_Block]:
    """Lines that no leaf holds and that are more than marks.

    Quotes and lists nested too deep to be parsed.
    """
    for number in range(start, end):
        if _WORD.search(piece[number]):
            yield _Block(piece[number], number)


def _labels(children: Iterable[Token]) -> Iterator[str]:
    for child in children:
        if "label" in child.meta:
            yield child.meta["label"]
        yield from _labels(child.children or ())


def _inline(token: Token) -> str:
    if _costly(token.content):
        return token.content
    return _text_of(token.children or ())


def _costly(text: str) -> bool:
    return len(text) > INLINE_LIMIT and len(text) * text.count("[") > INLINE_LIMIT**2


def _text_of(children: Sequence[Token]) -> str:
    """Text as it is read: escapes and entities resolved, links by their text, emphasis and code
    with their marks.
    """
    parts: list[str] = []
    for child in children:
        if child.type in ("text", "text_special"):
            # Of an entity: the file's own are breaks.
            parts.append(child.content.replace("\n", " "))
        elif child.type == "code_inline":
            # A code that begins or ends with a backtick stands off its marks.
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
        url = token.meta["url"]
        is_address = _ADDRESS.search(url) and not token.meta["label"].startswith("^")
        # "[//]: # (...)" is how Markdown writes a comment.
        if is_address and (token.meta["id"] in used or url == "#"):
            return ""
        return _joined(piece[start:end])
    if token.type == "fence":
        code = f"{token.markup}{token.info}\n{token.content}"
        is_closed = end - start > token.content.count("\n") + 1
        return code + token.markup if is_closed else code
    if token.type == "html_block" and not _is_code(token):
        return _without_comments(token.content)
    return token.content


def _is_code(token: Token) -> bool:
    html = token.content.lstrip().lower()
    return token.type == "html_block" and html.startswith(_CODE_TAGS)


def _without_comments(html: str) -> str:
    parts: list[str] = []
    start = 0
    while (mark := html.find("<!--", start)) >= 0:
        # HTML lets a comment close within its own mark: "<!-->" and "<!--->".
        end = html.find("-->", mark + 2)
        if end < 0:
            break  # never closed: text
        parts.append(html[start:mark])
        start = end + len("-->")
    return "".join([*parts, html[start:]])
