"""Documents -> passages of about 100 words, consecutive and disjoint as DPR's (arXiv 2004.04906,
section 4.1).

The rule: words are as `rag_core.tokenization.words_of` has them. A passage is cut after the last
sentence end among its words `words // 2 .. words`; where there is none, after word number `words`,
or, in scripts without blanks, at the last blank among these. A rest of at most `words // 5` words
joins the passage before it, so no passage is longer than `words + words // 5`. It holds `20 *
words` characters at most, or `LONGEST_WORD`, and a rest a fifth of that: words that are longer are
cut. No other is, none is lost, none occurs twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

from rag_core import checks
from rag_core.knowledge.documents import Document, read_documents, read_files
from rag_core.retrieval import encode_metadata
from rag_core.tokenization import LONGEST_WORD, Word, plain_words, words_of

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
    words = WORDS("words", words, WORDS_HINT)
    if words is None:
        if whole := " ".join(text.split()):
            yield whole
        return
    limit = max(LONGEST_WORD, WORD_CHARS * words)
    spans: list[Word] = []
    # The words of most texts stand between blanks: finding their places would take several times
    # as long.
    parts = plain_words(text, limit)
    if parts is None:
        spans = words_of(text, limit)
        parts = [text[span.start : span.end] for span in spans]
    # Characters before a word, with blanks.
    sizes = list(accumulate((len(part) + 1 for part in parts), initial=0))
    start = 0
    while start < len(parts):
        end = _cut(parts, spans, sizes, start, words, limit)
        if spans:
            yield " ".join(text[spans[start].start : spans[end - 1].end].split())
        else:
            yield " ".join(parts[start:end])
        start = end


def split_passages(document: Document, words: int | None = 100) -> Iterator[PassageRow]:
    """The passages of one document, in order, each with the document's title and its place."""
    title = " ".join(document.title.split())
    metadata = dict(document.metadata)
    if document.marks:
        metadata |= document.marks[0][1]
    encode_metadata(metadata, document.place)
    for text in split_text(document.text, words):
        yield {"title": title, "text": text, "source": document.source, "metadata": metadata}


def stream_passages(
    files: Sequence[tuple[Path, str]], words: int | None = 100, *, tsv_quotes: bool = True
) -> Iterator[PassageRow]:
    """`read_files` and `split_passages` in one stream."""
    for document in read_files(files, tsv_quotes=tsv_quotes):
        yield from split_passages(document, words)


def _cut(
    parts: list[str], spans: list[Word], sizes: list[int], start: int, words: int, limit: int
) -> int:
    rest = len(parts) - start
    if rest <= words + words // 5 and sizes[-1] - sizes[start] <= limit + limit // 5 + 1:
        return len(parts)
    fitting = bisect_right(sizes, sizes[start] + limit + 1) - 1
    last = max(start + 1, min(start + words, fitting, len(parts)))
    least = start + max(1, (last - start) // 2)
    ends = range(last, least - 1, -1)
    for end in ends:
        word = parts[end - 1]
        if _SENTENCE_END.search(word) and not _ABBREVIATION.match(word):
            return end
    if spans and spans[last - 1].splits:
        return next((end for end in ends if not spans[end - 1].splits), last)
    return last
