"""A flat index as plain tables, for graphs that search where no Python runs.

Letters: M rows that are searched, U of them with vectors of their own, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag_core.retrieval.filtered import FilteredIndex
from rag_core.retrieval.index import FaissIndex

MOST_PASSAGES = 1_000_000  # beyond, comparing a question with every vector takes a second or so


@dataclass(frozen=True)
class IndexTables:
    """Vectors and texts of every passage that a search may find.

    Attributes:
        vectors: (U, D) float32, no two alike.
        places: (M,) int32, which of them each row has: so that equal vectors score equally whatever
            a product does at the ends of its blocks.
        rows: (M,) int64 row numbers of the index.
        titles, texts, sources: of the M rows.
        by_distance: whether the nearest are the best, by L2, rather than the largest products.
        later_first: whether of equal scores the later row comes first, as faiss has it for products.
    """

    vectors: np.ndarray
    places: np.ndarray
    rows: np.ndarray
    titles: Sequence[str]
    texts: Sequence[str]
    sources: Sequence[str]
    by_distance: bool
    later_first: bool


def index_tables(index: Any) -> IndexTables:
    """The tables of a flat index, or of some rows of any.

    Args:
        index: a `FaissIndex` over a flat faiss index, or what its `where` returned.

    Raises:
        ValueError: an index of another kind, or with more than `MOST_PASSAGES`.
    """
    whole, rows = index, None
    by_distance, later_first = False, False
    if isinstance(index, FilteredIndex):
        whole, rows = index.index, index.rows
    elif isinstance(index, FaissIndex):
        by_distance = _measures_distance(index)
        later_first = not by_distance
    else:
        raise _not_flat(type(index).__name__)
    if rows is None:
        rows = np.arange(len(whole))
    if len(rows) > MOST_PASSAGES:
        raise ValueError(
            f"index must hold {MOST_PASSAGES:,} passages or fewer to be part of a graph, got "
            f"{len(rows):,}. Choose some with where(), or export without strings=True"
        )
    vectors, places = np.unique(whole.vectors_of(rows), axis=0, return_inverse=True)
    [docs] = whole.get_doc_dicts(rows[None])
    sources = docs.get("source", [None] * len(rows))
    return IndexTables(
        vectors,
        places.reshape(-1).astype(np.int32),
        rows.astype(np.int64),
        [title or "" for title in docs["title"]],
        [text or "" for text in docs["text"]],
        [source if isinstance(source, str) else "" for source in sources],
        by_distance,
        later_first,
    )


def _measures_distance(index: FaissIndex) -> bool:
    import faiss

    inner = faiss.downcast_index(index.faiss_index)
    metrics = (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2)
    # of IndexFlat's classes those alone that keep every number of a vector
    if type(inner).__name__ not in ("IndexFlat", "IndexFlatIP", "IndexFlatL2"):
        raise _not_flat(type(inner).__name__)
    if inner.metric_type not in metrics:
        raise _not_flat(f"a metric of number {inner.metric_type}")
    return bool(inner.metric_type == faiss.METRIC_L2)


def _not_flat(got: str) -> ValueError:
    return ValueError(
        f"index must be flat to be part of a graph, got {got}. Build a flat one (dualrag index "
        "--index flat), take where() of it, or export without strings=True and search outside"
    )
