"""Two indexes as one, by the ranks that both give a passage (reciprocal rank fusion; Cormack,
Clarke and Buettcher 2009).

Letters: B questions, N documents a question, C candidates of one index, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.checks import number, whole
from rag_core.retrieval.bm25 import Bm25Index
from rag_core.retrieval.own_scores import (
    carrying,
    length_of,
    narrowed,
    needs_text,
    needs_vectors,
)
from rag_core.retrieval.search import checked_top_docs

if TYPE_CHECKING:
    from rag_core.retrieval.where import Where

K = 60.0  # of the paper


class HybridIndex:
    """What either of two indexes finds, those that both find first; an `Index`.

    With rank_i(z) the rank of passage z in index i, from 1, and no term where it is not among the C
    candidates of that index,

        f(z) = sum_i 1 / (k + rank_i(z)),   score(z) = log f(z),

    so that p(z|x) is f(z) over the sum of f of the passages found. Equal scores go by row number.
    The vectors carry the scores (see `rag_core.retrieval.own_scores`). Passages of `Bm25Index`
    without a word of the question have no rank.

    Args:
        first: any `Index`; it is asked for titles and texts.
        second: another one of the same passages in the same rows.
        k: the larger, the less the first ranks stand out.
        depth: C, or N where that is more.

    Raises:
        TypeError, ValueError: `k` or `depth` cannot be, or the indexes are of different lengths.
    """

    own_scores = True

    def __init__(self, first: Any, second: Any, *, k: float = K, depth: int = 100) -> None:
        lengths = [length_of(index) for index in (first, second)]
        if None not in lengths and len(set(lengths)) > 1:
            raise ValueError(
                f"first and second must be of the same passages, got {lengths[0]:,} and "
                f"{lengths[1]:,} of them."
            )
        self.indexes = (first, second)
        self.k = number(0)("k", k)
        self.depth = whole(1)("depth", depth)

    @property
    def needs_text(self) -> bool:
        """Whether one of them reads the questions."""
        return any(map(needs_text, self.indexes))

    @property
    def needs_vectors(self) -> bool:
        """Whether one of them searches by vectors."""
        return any(map(needs_vectors, self.indexes))

    @property
    def vector_size(self) -> int | None:
        """D; None where neither says."""
        sizes = (getattr(index, "vector_size", None) for index in self.indexes)
        return next((size for size in sizes if size is not None), None)

    @property
    def rows(self) -> np.ndarray | None:
        """The rows (M,) that are searched, in order; None where all are."""
        rows: np.ndarray | None = getattr(self.indexes[0], "rows", None)
        return rows

    def __len__(self) -> int:
        lengths = (length_of(index) for index in self.indexes)
        length = next((length for length in lengths if length is not None), None)
        if length is None:
            raise TypeError(f"{self!r} has no length: neither of its indexes has one.")
        return length

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.indexes[0]!r}, {self.indexes[1]!r})"

    def is_initialized(self) -> bool:
        """Whether both are loaded."""
        return all(index.is_initialized() for index in self.indexes)

    def init_index(self) -> None:
        """Load both."""
        for index in self.indexes:
            if not index.is_initialized():
                index.init_index()

    def where(self, where: Where) -> HybridIndex:
        """The passages that conditions hold for, as an index of its own; see `FaissIndex.where`.

        Raises:
            ValueError: one of the indexes has no `where`.
        """
        first, second = (narrowed(index, where) for index in self.indexes)
        return HybridIndex(first, second, k=self.k, depth=self.depth)

    def get_top_docs(
        self,
        question_hidden_states: np.ndarray,
        n_docs: int = 5,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`.

        Args:
            question_hidden_states: (B, D).
            n_docs: N.
            question_text: B questions, where one of the indexes reads them.

        Raises:
            ValueError: no texts, or one of the indexes returned anything else than `Index` says.
        """
        n_docs = checked_n_docs(n_docs, 5)
        depth = max(self.depth, n_docs)
        queries = np.asarray(question_hidden_states)
        ranked = [_ranked(index, queries, depth, question_text) for index in self.indexes]
        rows = np.full((len(queries), n_docs), -1, np.int64)
        scores = np.zeros(rows.shape, np.float32)
        for place, lists in enumerate(zip(*ranked, strict=True)):
            fused = self._fused(lists)
            best = sorted(fused, key=lambda row: (-fused[row], row))[:n_docs]
            rows[place, : len(best)] = best
            scores[place, : len(best)] = np.log([fused[row] for row in best])
        return rows, carrying(scores, queries)  # (B, N), (B, N, D)

    def _fused(self, lists: Sequence[list[int]]) -> dict[int, float]:
        """f of the rows in ranked lists."""
        fused: dict[int, float] = {}
        for rows in lists:
            for rank, row in enumerate(rows, 1):
                fused[row] = fused.get(row, 0.0) + 1 / (self.k + rank)
        return fused

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """As the first index has them."""
        return self.indexes[0].get_doc_dicts(doc_ids)


def _ranked(
    index: Any, queries: np.ndarray, depth: int, question_text: Sequence[str] | None
) -> list[list[int]]:
    """The rows of an index's candidates, best first, of each question."""
    ids, vectors = checked_top_docs(index, queries, depth, question_text)  # (B, C), (B, C, D)
    is_hit = ids >= 0
    if isinstance(index, Bm25Index):
        is_hit &= vectors.any(axis=-1)  # a score of 0: nothing is shared
    return [rows[hits].tolist() for rows, hits in zip(ids, is_hit, strict=True)]
