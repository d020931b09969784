"""Documents -> passages of about 100 words, consecutive and disjoint as DPR's (arXiv 2004.04906,
section 4.1).

The rule: words are as `rag_core.tokenization.words_of` has them. A passage is cut after the last
sentence end among its words `words // 2 .. words`; where there is none, after word number `words`,
or, in scripts without blanks, at the last blank among these. A rest of at most `words // 5` words
joins the passage before it, so no passage is longer than `words + words // 5`. It holds `20 *
words` characters at most, or `LONGEST_WORD`, and a rest a fifth of that: words that are longer are
cut. No other is, none is lost, none occurs twice. Within code and tables, which keep their lines, a
line's end counts as a sentence's.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rag_core import checks
from rag_core.knowledge.columns import CELL_CHARS
from rag_core.knowledge.documents import (
    DEFAULTS,
    Document,
    ReadingOptions,
    read_documents,
    read_files,
)
from rag_core.retrieval import encode_metadata
from rag_core.tokenization import LONGEST_WORD, Word, plain_words, words_of

if TYPE_CHECKING:
    from rag_core.knowledge.frames import Frame

__all__ = [
    "Document",
    "PassageRow",
    "read_documents",
    "split_passages",
    "split_text",
    "stream_passages",
]

WORDS = checks.whole(1, optional=True)
WORDS_HINT = "None makes one passage of a document."
# A passage may have so many characters a word; English ones have 6.
WORD_CHARS = 20
# Full stops of Latin, Chinese, Indic, Burmese, Khmer and Tibetan, with what closes a quotation.
_SENTENCE_END = re.compile(
    r"[.!?\u3002\uff01\uff1f\uff61\u0964\u104b\u17d4\u17d5\u0f0d\u0f0e][\"'\u2019\u201d)\]]*$"
)
_WORD = re.compile(r"\S+")
_LINE_END = re.compile(r"[^\S\n]*(?:\n|$)")
_ABBREVIATION = re.compile(
    r"^\W*(?:[A-Za-z]|Dr|Mr|Mrs|Ms|St|vs|etc|e\.g|i\.e|c|ca|No|Jr|Sr|Prof|Gen|Inc)\.$"
)


class PassageRow(TypedDict):
    """A passage before it has a vector; `rag_core.outputs.Passage` says what it holds."""

    title: str
    text: str
    source: str | None
    metadata: dict[str, Any]


def split_text(text: str, words: int | None = 100) -> Iterator[str]:
    """Splits one text by the rule above; white space inside a passage becomes single spaces.

    Args:
        text: any length.
        words: words a passage; None keeps the text whole.

    Raises:
        TypeError, ValueError: `words` is no whole number of 1 or more, or `text` no string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    found = _Words(text, words)
    for start, end in found.cuts():
        yield found.joined(start, end)


def split_passages(document: Document, words: int | None = 100) -> Iterator[PassageRow]:
    """The passages of one document, in order, each with the document's title and its own place.

    Raises:
        ValueError: metadata that is no JSON (see `rag_core.retrieval.encode_metadata`), or `words`
            as in `split_text`.
    """
    title = " ".join(document.title.split())
    known = {name: _shortened(value) for name, value in document.metadata.items()}
    encode_metadata(known, document.place)
    found = _Words(document.text, words, document.kept)
    for start, end in found.cuts():
        metadata = {**known}
        if len(document.marks) > 1:
            metadata |= _position(document.marks, *found.characters(start, end))
        elif document.marks:
            metadata |= document.marks[0][1]
        text = found.joined(start, end)
        yield {"title": title, "text": text, "source": document.source, "metadata": metadata}


def _shortened(value: Any) -> Any:
    """A value of metadata: a heading or a header may be as long as its file."""
    if isinstance(value, str):
        return value[:CELL_CHARS]
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return value


def stream_passages(
    files: Sequence[tuple[Path | Frame, str]],
    words: int | None = 100,
    options: ReadingOptions = DEFAULTS,
) -> Iterator[PassageRow]:
    """`read_files` and `split_passages` in one stream."""
    for document in read_files(files, options):
        yield from split_passages(document, words)


def _position(
    marks: Sequence[tuple[int, Mapping[str, Any]]], start: int, end: int
) -> dict[str, Any]:
    """The position of the first of some characters, and where the last one's differs its end."""
    first, last = (
        marks[max(0, bisect_right(marks, at, key=itemgetter(0)) - 1)][1] for at in (start, end - 1)
    )
    position = {**first}
    for name in ("line", "page"):
        end_name = f"end_{name}"
        stop = last.get(end_name, last.get(name))
        position.pop(end_name, None)
        if name in first and stop not in (None, first[name]):
            position[end_name] = stop
    return position


class _Words:
    """The words of a text, and at which of them passages end.

    Args:
        text: any length.
        words: words a passage; None makes one of all.
        kept: ranges of the text whose line breaks and blanks stay.
    """

    def __init__(self, text: str, words: int | None, kept: Sequence[tuple[int, int]] = ()) -> None:
        self.text = text
        self.words = WORDS("words", words, WORDS_HINT)
        self.kept = kept
        self.limit = max(LONGEST_WORD, WORD_CHARS * (self.words or 0))
        self.spans: list[Word] = []
        # The words of most texts stand between blanks: finding their places would take several
        # times as long.
        parts = text.split() if self.words is None else plain_words(text, self.limit)
        if parts is None:
            self.spans = words_of(text, self.limit)
            parts = [text[span.start : span.end] for span in self.spans]
        self.parts = parts

    @functools.cached_property
    def starts(self) -> list[int]:
        """Where each word begins."""
        if self.spans:
            return [span.start for span in self.spans]
        return [word.start() for word in _WORD.finditer(self.text)]

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Where the words `start` to `end` begin and end in the text."""
        return self.starts[start], self.starts[end - 1] + len(self.parts[end - 1])

    def cuts(self) -> Iterator[tuple[int, int]]:
        """The passages: their first word, and the one after their last."""
        count = len(self.parts)
        words = self.words or count
        # Most rows of tables are one passage, and need no more.
        is_short = count <= words + words // 5 and len(self.text) <= self.limit + self.limit // 5
        if self.words is None or (is_short and not self.spans):
            if count:
                yield 0, count
            return
        # Characters before a word, with blanks.
        if self.kept and count:
            sizes = [*self.starts, len(self.text) + 1]
        else:
            sizes = list(accumulate((len(part) + 1 for part in self.parts), initial=0))
        start = 0
        while start < count:
            end = self._cut(sizes, start, words)
            yield start, end
            start = end

    def joined(self, start: int, end: int) -> str:
        """The text of a passage."""
        if self.kept:
            return self._with_lines(*self.characters(start, end))
        if self.spans:
            return _collapsed(self.text[self.spans[start].start : self.spans[end - 1].end])
        return " ".join(self.parts[start:end])

    def _with_lines(self, start: int, end: int) -> str:
        """The text between two characters, lines of what is kept on lines of their own."""
        pieces = []
        before = bisect_right(self.kept, start, key=itemgetter(0)) - 1
        for kept_start, kept_end in islice(self.kept, max(0, before), None):
            if kept_start >= end:
                break
            if kept_end <= start:
                continue
            pieces.append(_collapsed(self.text[start:kept_start]))
            start = max(start, kept_start)
            # A passage that begins with a line has its indentation.
            line = max(kept_start, self.text.rfind("\n", kept_start, start) + 1)
            if not self.text[line:start].strip():
                start = line
            stop = min(end, kept_end)
            pieces.append(self.text[start:stop].strip("\n").rstrip())
            start = stop
        pieces.append(_collapsed(self.text[start:end]))
        return "\n".join(filter(None, pieces))

    def _cut(self, sizes: list[int], start: int, words: int) -> int:
        count = len(self.parts)
        rest = count - start
        most = self.limit + self.limit // 5 + 1
        if rest <= words + words // 5 and sizes[-1] - sizes[start] <= most:
            return count
        fitting = bisect_right(sizes, sizes[start] + self.limit + 1) - 1
        last = max(start + 1, min(start + words, fitting, count))
        least = start + max(1, (last - start) // 2)
        ends = range(last, least - 1, -1)
        for end in ends:
            word = self.parts[end - 1]
            ends_well = _SENTENCE_END.search(word) and not _ABBREVIATION.match(word)
            if self.kept and self._is_kept(end - 1):
                behind = self.characters(end - 1, end)[1]
                ends_well = _LINE_END.match(self.text, behind) is not None
            if ends_well:
                return end
        if self.spans and self.spans[last - 1].splits:
            return next((end for end in ends if not self.spans[end - 1].splits), last)
        return last

    def _is_kept(self, number: int) -> bool:
        """Whether a word stands where lines stay."""
        start = self.starts[number]
        before = bisect_right(self.kept, start, key=itemgetter(0)) - 1
        return before >= 0 and start < self.kept[before][1]


def _collapsed(text: str) -> str:
    return " ".join(text.split())
