"""Documents -> passages of about 100 words, consecutive and disjoint as DPR's (arXiv 2004.04906, section 4.1).

The rule: words are runs of non-space characters (each Chinese or Japanese character counts as one). A passage is cut
after the last sentence end among its words `words // 2 .. words`; where there is none, after word number `words`.
A rest of at most `words // 5` words joins the passage before it, so no passage is longer than `words + words // 5`.
No word is cut, none is lost, none occurs twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from rag_core.documents import Document, read_documents

__all__ = ["Document", "PassageRow", "read_documents", "split_passages", "split_text", "stream_passages"]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}][\u3001\u3002\uff01\uff0c\uff1f]*|[^\s{_CJK}]+")
_HAS_CJK = re.compile(f"[{_CJK}]")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"'\u2019\u201d)\]]*$")
_ABBREVIATION = re.compile(r"^\W*(?:[A-Za-z]|Dr|Mr|Mrs|Ms|St|vs|etc|e\.g|i\.e|c|ca|No|Jr|Sr|Prof|Gen|Inc)\.$")


class PassageRow(TypedDict):
    """A passage before it has a vector."""

    title: str
    text: str


def split_text(text: str, words: int | None = 100) -> Iterator[str]:
    """Splits one text by the rule above; white space inside a passage becomes single spaces.

    Args:
        text: any length.
        words: words a passage; None keeps the text whole.

    Raises:
        ValueError: `words` is below 1.
    """
    if words is not None and words < 1:
        raise ValueError(f"words must be at least 1 (or None: one passage a document), got {words}")
    if _HAS_CJK.search(text):
        spans = [match.span() for match in _WORD.finditer(text)]
        parts = [text[slice(*span)] for span in spans]
    else:
        spans, parts = [], text.split()
    start = 0
    while start < len(parts):
        end = len(parts) if words is None else _cut(parts, start, words)
        if spans:
            yield " ".join(text[spans[start][0] : spans[end - 1][1]].split())
        else:
            yield " ".join(parts[start:end])
        start = end


def split_passages(document: Document, words: int | None = 100) -> Iterator[PassageRow]:
    """The passages of one document, in order, each with the document's title."""
    title = " ".join(document.title.split())
    for text in split_text(document.text, words):
        yield {"title": title, "text": text}


def stream_passages(paths: str | Path | Iterable[str | Path], words: int | None = 100) -> Iterator[PassageRow]:
    """`read_documents` and `split_passages` in one stream."""
    for document in read_documents(paths):
        yield from split_passages(document, words)


def _cut(parts: list[str], start: int, words: int) -> int:
    if len(parts) - start <= words + words // 5:
        return len(parts)
    for end in range(start + words, start + max(1, words // 2) - 1, -1):
        if _SENTENCE_END.search(parts[end - 1]) and not _ABBREVIATION.match(parts[end - 1]):
            return end
    return start + words
