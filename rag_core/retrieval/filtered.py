"""Search among some rows of an index: exact, whatever the kind of the faiss index.

Letters: B questions, N documents a question, M rows that match, r rows of a block, D vector size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.arguments import checked_n_docs

if TYPE_CHECKING:
    from rag_core.retrieval.index import FaissIndex

# Of the vectors of one block, and of its scores.
BLOCK_BYTES = 32 << 20


class FilteredIndex:
    """The rows of an index that a condition holds for, an `Index`; `FaissIndex.where` makes one.

    Row numbers stay those of the whole index. Searches compare a question with every row that
    matches, by inner products of the vectors that the index stores; equal scores go by row number.

    Args:
        index: the whole index.
        rows: (M,) sorted row numbers of it.

    Attributes:
        index: the whole index.
        rows: (M,) the rows that match, in order.
    """

    def __init__(self, index: FaissIndex, rows: np.ndarray) -> None:
        self.index = index
        self.rows = rows

    @property
    def vector_size(self) -> int:
        """D."""
        return self.index.vector_size

    def is_initialized(self) -> bool:
        """True: the condition was told by what the index holds."""
        return True

    def init_index(self) -> None:
        """Nothing is left to open."""

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`.

        Where fewer than N rows match, the rest are row -1 and zero vectors.
        """
        queries = self.index.checked_queries(question_hidden_states)  # (B, D)
        n_docs = checked_n_docs(n_docs, 5)
        best = _Best(len(queries), n_docs)
        size = max(1, BLOCK_BYTES // (4 * max(self.vector_size, len(queries))))
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            best.add(queries @ self.index.vectors_of(rows).T, rows)
        return best.rows, self.index.vectors_of(best.rows)  # (B, N), (B, N, D)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists, as the whole index does."""
        return self.index.get_doc_dicts(doc_ids)


class _Best:
    """The N best rows of B questions among those that were added."""

    def __init__(self, n_questions: int, n_docs: int) -> None:
        self.scores = np.full((n_questions, n_docs), -np.inf, np.float32)
        self.rows = np.full((n_questions, n_docs), -1, np.int64)

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Take in a block of scores (B, r) of later rows (r,); a row whose score is NaN is left out,
        as faiss does.
        """
        # Of equal scores the first win, and there stand N of -inf that are no row.
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
        for number, of_question in enumerate(scores):
            # Those before come first, so that a stable sort leaves equal scores in row order.
            known_scores = np.concatenate([self.scores[number], of_question])  # (N + r,)
            known_rows = np.concatenate([self.rows[number], rows])  # (N + r,)
            places = best_places(known_scores, self.scores.shape[1])
            self.scores[number] = known_scores[places]
            self.rows[number] = known_rows[places]


def best_places(scores: np.ndarray, n_docs: int) -> np.ndarray:
    """Where the N best of scores (M,) stand, best first, of equal ones the first; all where there
    are fewer.
    """
    n_docs = min(n_docs, len(scores))
    least = np.partition(scores, -n_docs)[-n_docs]
    candidates = np.flatnonzero(scores >= least)
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order[:n_docs]]
