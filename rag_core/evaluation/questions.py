"""Questions with their answers and the documents that are known to hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
