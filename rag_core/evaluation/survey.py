"""What a knowledge base holds of the answers and gold documents of some questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag_core.evaluation.matching import AnswerFinder
from rag_core.evaluation.questions import Question
from rag_core.retrieval import length_of

# Texts of passages that are in memory at a time.
_ROWS = 256
# Columns that are a passage's id, or its document's.
_ID_NAMES = ("id", "_id", "docid", "passage_id", "psg_id", "document_id", "wikipedia_id")


@dataclass
class Survey:
    """What was found.

    Attributes:
        answerable: for each question whether an answer of three characters or more stands in some
            passage; None where nobody looked, or no question has answers.
        by: what gold documents are told by, "id" or "title"; None where there are none.
        missing: gold documents that the knowledge base lacks.
        gold: how many there are.
        sha256: of all titles and texts.
    """

    answerable: list[bool] | None = None
    by: str | None = None
    missing: list[str] = field(default_factory=list)
    gold: int = 0
    sha256: str | None = None


def survey(index: Any, questions: Sequence[Question], progress: bool) -> Survey:
    """Go through all passages of an index once.

    Args:
        index: an `Index`; without a length its passages cannot be gone through.
        questions: whose answers and gold documents are looked for.
        progress: draw a progress bar on stderr, at a terminal.
    """
    from tqdm import tqdm

    wanted_ids = {key for question in questions for key in question.gold_ids}
    wanted_titles = {key.strip() for question in questions for key in question.gold_titles}
    if length_of(index) is None:
        return unsurveyed(questions)
    finder = AnswerFinder(questions)
    digest = hashlib.sha256()
    ids: set[str] = set()
    titles: set[str] = set()
    has_ids = False
    hidden = not progress or None  # None: at a terminal alone
    bar = tqdm(scan_passages(index), total=len(index), desc="passages", unit="", disable=hidden)
    for title, text, document in bar:
        finder.look_at(text)
        digest.update(f"{title}\0{text}\0".encode())
        if document is not None:
            has_ids = True
            if document in wanted_ids:
                ids.add(document)
        if title.strip() in wanted_titles:
            titles.add(title.strip())
    by, wanted, known = None, set(), set()
    if wanted_ids and has_ids:
        by, wanted, known = "id", wanted_ids, ids
    elif wanted_titles:
        by, wanted, known = "title", wanted_titles, titles
    answerable = None
    if any(question.answers for question in questions):
        answerable = finder.found
    return Survey(answerable, by, sorted(wanted - known), len(wanted), digest.hexdigest())


def unsurveyed(questions: Sequence[Question]) -> Survey:
    """What is known of a knowledge base that nobody looks through: nothing, so titles tell."""
    by = None
    if any(question.gold_titles for question in questions):
        by = "title"
    return Survey(by=by)


def scan_passages(index: Any) -> Iterator[tuple[str, str, str | None]]:
    """Title, text and id of all passages of an index, in their order."""
    for start in range(0, len(index), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(index)))
        (columns,) = index.get_doc_dicts(rows[None])
        yield from zip(
            columns["title"],
            columns["text"],
            document_ids(columns, len(rows)),
            strict=True,
        )


def document_ids(columns: Mapping[str, Any], count: int) -> list[str | None]:
    """The ids of passages that `get_doc_dicts` gave; None where they carry none."""
    metadata = columns.get("metadata", [{}] * count)
    own = {name: columns[name] for name in _ID_NAMES if name in columns}
    ids: list[str | None] = []
    for place, values in enumerate(metadata):
        entries = {name: column[place] for name, column in own.items()}
        if isinstance(values, Mapping):
            entries = {**entries, **values}
        named = (entries.get(name) for name in _ID_NAMES)
        ids.append(next((str(id) for id in named if isinstance(id, str | int)), None))
    return ids
