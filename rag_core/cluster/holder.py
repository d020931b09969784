"""What an actor holds: one shard, its files mapped, its rows counted as those of the whole.

Letters: B questions, N documents a question, C candidates a question, D vector size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rag_core.knowledge import FILE, KnowledgeBase, describe
from rag_core.retrieval import ShardHits, flat_candidates


class ShardHolder:
    """A shard of a knowledge base.

    Args:
        folder: the shard's, a knowledge base itself.
        start: the row of the whole that is its first.
        sha256: of its manifest: another build's rows would be other passages.

    Raises:
        OSError, ValueError: it is not there, damaged, or of another build.
    """

    def __init__(self, folder: str, start: int, sha256: str) -> None:
        here = Path(folder)
        if (here / FILE).is_file() and describe(here / FILE)["sha256"] != sha256:
            raise ValueError(
                f"{folder} must hold the shard that was cut, got another build. Cut shards into a "
                "folder of their own, and start them again."
            )
        base = KnowledgeBase.open(here)
        self._start = start
        self._is_flat = base.manifest.index["kind"] == "flat"
        self._index = base.index(memory_map=True)
        self._filtered: tuple[Any, Any] = (None, None)

    def rows(self) -> int:
        """How many it holds."""
        return len(self._index)

    def pid(self) -> int:
        """Its process."""
        import os

        return os.getpid()

    def search(self, queries: np.ndarray, n_docs: int, where: Any = None) -> ShardHits:
        """Its candidates for questions.

        Args:
            queries: (B, D) float32.
            n_docs: N.
            where: conditions on passages, as `FaissIndex.where` takes them; None is none.

        Raises:
            ValueError: conditions that cannot be read, or match nothing here.
        """
        queries = self._index.checked_queries(queries)
        if where is None and self._is_flat:
            found = flat_candidates(self._index.faiss_index, queries, n_docs)
            sizes = [len(rows) for _, rows in found]
            rows = np.full((len(queries), max(sizes, default=0)), -1, np.int64)  # (B, C)
            scores = np.full(rows.shape, -np.inf, np.float32)
            for number, (own_scores, own_rows) in enumerate(found):
                scores[number, : sizes[number]] = own_scores
                rows[number, : sizes[number]] = own_rows
            vectors = self._index.vectors_of(rows)  # (B, C, D)
        else:
            rows, vectors = self._searched(where).get_top_docs(queries, n_docs)
            scores = np.einsum("bcd,bd->bc", vectors, queries, dtype=np.float64)
            scores = np.where(rows < 0, -np.inf, scores)
        own = np.unique(rows[rows >= 0])
        return ShardHits(scores, self._of_all(rows), vectors, own + self._start, self._texts(own))

    def read(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """Titles, texts and other columns of rows (n,) of the whole."""
        return self._texts(rows - self._start)

    def matching(self, where: Any) -> np.ndarray:
        """The rows (M,) of the whole that are here and that conditions hold for, in order."""
        try:
            rows: np.ndarray = self._searched(where).rows
        except ValueError:  # none, or none here has what is asked for
            return np.empty(0, np.int64)
        return rows + self._start

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (n, D) of rows (n,) of the whole."""
        return self._index.vectors_of(rows - self._start)

    def _searched(self, where: Any) -> Any:
        """The index, or what conditions leave of it."""
        if where is None:
            return self._index
        conditions, filtered = self._filtered
        if filtered is None or conditions != where:
            filtered = self._index.where(where)
            self._filtered = where, filtered
        return filtered

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        return np.where(rows < 0, -1, rows + self._start)

    def _texts(self, rows: np.ndarray) -> dict[str, list[Any]]:
        (columns,) = self._index.get_doc_dicts(rows[None])
        return columns


class Table:
    """The shards of one build; an actor that is never changed, so it comes back as it was.

    Args:
        content: what `rag_core.retrieval.RayIndex` reads.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def content(self) -> dict[str, Any]:
        """What it was made with."""
        return self._content
