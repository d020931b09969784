"""Indexes whose scores are their own: found by words, ranks or another network, not as inner
products of the encoder's vectors.

A model weighs documents by inner products alone (paper, section 2.2). So the vectors of such an
index carry its scores: each points where its question's vector does, as long as makes the inner
product the score. Section 4.5 of the paper takes the scores of BM25 as logits of p(z|x) like that.

An index says what it is by attributes of its class, which others need not have:

    needs_text     its `get_top_docs` takes `question_text` besides, B texts
    needs_vectors  False where it looks at the questions' vectors only to carry scores
    own_scores     its vectors carry scores, from which no encoder can learn

Letters: B questions, N documents a question, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    from rag_core.retrieval.where import Where


class TextIndex(Protocol):
    """An `Index` that reads the questions, too."""

    needs_text: ClassVar[bool]

    def get_top_docs(
        self,
        question_hidden_states: np.ndarray,
        n_docs: int = 5,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search, as `Index.get_top_docs`, by B texts."""
        ...


def needs_text(index: Any) -> bool:
    """Whether an index reads the questions."""
    return bool(getattr(index, "needs_text", False))


def needs_vectors(index: Any) -> bool:
    """Whether an index searches by the questions' vectors."""
    return bool(getattr(index, "needs_vectors", True))


def has_own_scores(index: Any) -> bool:
    """Whether no encoder can learn from what an index finds."""
    return bool(getattr(index, "own_scores", False))


def length_of(index: Any) -> int | None:
    """How many passages an index holds; None where it does not say."""
    try:
        return len(index)
    except TypeError:
        return None


def check_whole(name: str, index: Any, *needed: str) -> None:
    """See that an index can be gone through from its first passage to its last.

    Args:
        name: the argument's.
        index: an index, or what has passages as one does.
        needed: attributes that it must have besides a length.

    Raises:
        ValueError: it has no length, as the part that `where` gives, or lacks one of them.
    """
    lacking = [each for each in needed if getattr(index, each, None) is None]
    if length_of(index) is None:
        lacking.insert(0, "a length")
    if lacking:
        raise ValueError(
            f"{name} must be a whole index with {' and '.join(('a length', *needed))}, got "
            f"{type(index).__name__} without {' and '.join(lacking)}. Give that of a knowledge base, "
            "index(search='vectors'); conditions go into where(...) of what is made of it."
        )


def narrowed(index: Any, where: Where) -> Any:
    """What `where` of an index gives.

    Raises:
        ValueError: it has no such method.
    """
    if not hasattr(index, "where"):
        raise ValueError(
            f"where must go with an index that has a method where, got {type(index).__name__}. "
            "Leave it out, or give a KnowledgeBase.index()."
        )
    return index.where(where)


def top_docs(
    index: Any, queries: np.ndarray, n_docs: int, question_text: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """What `get_top_docs` of an index of either kind returns."""
    if needs_text(index):
        return index.get_top_docs(queries, n_docs, question_text=question_text)
    return index.get_top_docs(queries, n_docs)


def checked_texts(question_text: Sequence[str] | None, count: int) -> list[str]:
    """The questions that an index reads.

    Raises:
        ValueError: none, or not one a vector.
    """
    if question_text is None or len(question_text) != count:
        told = "None"
        if question_text is not None:
            told = f"{len(question_text)}"
        raise ValueError(
            f"question_text must be {count} texts, one a question, got {told}. This index reads "
            "questions: call the retriever, or give retrieve(..., question_text=[...])."
        )
    return list(question_text)


def carrying(scores: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Vectors whose inner products with those of their questions are given scores.

    Args:
        scores: (B, N).
        queries: (B, D).

    Returns:
        (B, N, D) float32.

    Raises:
        ValueError: a question's vector is zero, of which every product is.
    """
    queries = np.asarray(queries, np.float64)
    squares = np.square(queries).sum(axis=1, keepdims=True)  # (B, 1)
    if not squares.all():
        rows = np.flatnonzero(squares == 0).tolist()
        raise ValueError(
            f"question_hidden_states must not be zero, got zeros in rows {rows}: the index's "
            "scores are to be inner products with them."
        )
    units = queries / squares  # (B, D)
    return (np.asarray(scores)[..., None] * units[:, None]).astype(np.float32)
