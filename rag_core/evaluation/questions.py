"""Questions with their answers and the documents that are known to hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gold:
    """A document that answers a question, by its id, its title or both."""

    id: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Context:
    """A passage that a question's file brings along.

    Attributes:
        kind: "positive", "negative" or "hard_negative".
        title, text: the passage.
        id: where the file gives one.
    """

    kind: str
    title: str
    text: str
    id: str | None = None


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and what is known of the documents behind them.

    Attributes:
        id: the file's own, or the number of its line or entry.
        question: as asked.
        answers: the accepted ones; none where the file has none.
        gold: sets of documents, each of which suffices to answer.
        contexts: passages that the file brings along.
        patterns: whether `answers` are regular expressions.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    gold: tuple[tuple[Gold, ...], ...] = ()
    contexts: tuple[Context, ...] = ()
    patterns: bool = False

    @property
    def gold_ids(self) -> tuple[str, ...]:
        """The ids of all gold documents, each once."""
        return _distinct(gold.id for documents in self.gold for gold in documents)

    @property
    def gold_titles(self) -> tuple[str, ...]:
        """The titles of all gold documents, each once."""
        return _distinct(gold.title for documents in self.gold for gold in documents)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return asdict(self)


def read_questions(path: str | Path, *, patterns: bool | None = None) -> list[Question]:
    """Read questions of any known format; see docs/evaluation.md for the table.

    Args:
        path: a file, or the folder of a BEIR data set. Nothing is fetched.
        patterns: whether the answers are regular expressions; None looks for `\\s`, `\\d` and the
            like in the first answers of a jsonl.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no question in it, a bad line (the message starts with file:line), an unknown
            format, or an id that comes twice.
        OSError: it cannot be read.
    """
    return list(scan_questions(path, patterns=patterns))


def scan_questions(path: str | Path, *, patterns: bool | None = None) -> Iterator[Question]:
    """As `read_questions`, one after another: a file of any size is never in memory as a whole."""
    from rag_core.evaluation.readers import open_reader

    seen: set[str] = set()
    for place, question in open_reader(Path(path), patterns):
        if question.id in seen:
            raise ValueError(
                f"{place}: the id must be its question's alone, got {question.id!r:.60}, which "
                "came before. Number the questions anew, or remove what is there twice."
            )
        seen.add(question.id)
        yield question
    if not seen:
        raise ValueError(
            f"{path}: no question in it; expected lines like "
            '{"question": "...", "answer": ["..."]}'
        )


def checked_questions(questions: Sequence[Question]) -> list[Question]:
    """The questions as a list.

    Raises:
        TypeError: something else than questions.
        ValueError: none, or an id that comes twice.
    """
    checked = list(questions)
    for question in checked:
        if not isinstance(question, Question):
            raise TypeError(
                f"questions must be Question records, got {type(question).__name__}. Read them with"
                " rag_core.evaluation.read_questions, or write Question(id, question, answers)."
            )
    if not checked:
        raise ValueError("questions must hold at least one question, got none")
    if len({question.id for question in checked}) < len(checked):
        raise ValueError("questions must have ids of their own, got some that come twice")
    return checked


def _distinct(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
