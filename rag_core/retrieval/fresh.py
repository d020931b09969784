"""A search in an index whose vectors are stale: more candidates than documents wanted, ranked by
vectors made at once.

Letters: B questions, N documents a question, C candidates a question, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rag_core.retrieval.index import Index
from rag_core.retrieval.search import checked_top_docs, read_docs, search

Embed = Callable[[list[str], list[str]], np.ndarray]  # (titles, texts) -> (n, D)


class FreshIndex:
    """An index of stale vectors: more documents are found by them than are wanted, and those are
    ranked by the vectors that the encoder gives now.

    Args:
        index: of any kind.
        embed: the encoder.
        factor: documents found for each one wanted; 1 leaves ranks as they are.
    """

    def __init__(self, index: Index, embed: Embed, factor: int) -> None:
        self.index = index
        self.embed = embed
        self.factor = factor

    def __getattr__(self, name: str) -> Any:
        if name == "index":  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.index, name)

    def __len__(self) -> int:
        return len(self.index)  # type: ignore[arg-type]  # as the index has it

    def is_initialized(self) -> bool:
        """Whether the index is loaded."""
        return self.index.is_initialized()

    def init_index(self) -> None:
        """Load the index."""
        self.index.init_index()

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """As the index has them."""
        return self.index.get_doc_dicts(doc_ids)

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (B, N), best first, and fresh vectors (B, N, D)."""
        queries = question_hidden_states
        if self.factor == 1:
            return checked_top_docs(self.index, queries, n_docs, None)
        ids, stale = search(self.index, queries, n_docs * self.factor, len(queries))  # (B, C)
        vectors = self._embedded(ids, stale)  # (B, C, D)
        scores = np.einsum("bcd,bd->bc", vectors, queries, dtype=np.float64)
        costs = np.where(ids < 0, np.inf, -scores)
        best = np.argsort(costs, axis=1, kind="stable")[:, :n_docs]  # (B, N)
        best_ids = np.take_along_axis(ids, best, axis=1)
        return best_ids, np.take_along_axis(vectors, best[..., None], axis=1)

    def _embedded(self, ids: np.ndarray, stale: np.ndarray) -> np.ndarray:
        """Fresh vectors of rows (B, C); each row is embedded once."""
        passages: dict[int, tuple[str, str]] = {}
        for row, doc in zip(ids, read_docs(self.index, ids, stale), strict=True):
            pairs = zip(doc["title"], doc["text"], strict=True)
            passages.update(zip(row.tolist(), pairs, strict=True))
        rows = sorted(passages)
        titles = [passages[row][0] for row in rows]
        texts = [passages[row][1] for row in rows]
        vectors = self.embed(titles, texts)
        return vectors[np.searchsorted(rows, ids)]
