"""How good an approximate index is: recall@k against exact search, and the search breadth that earns it.

Letters: R rows, D vector size, Q sampled queries, k hits a query. Scores are inner products (paper, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LOW_RECALL = 0.95
QUERIES = 200
Blocks = Callable[[], Iterator[np.ndarray]]  # each call streams the (r, D) float32 blocks of all R rows anew


def tune_recall(index: Any, blocks: Blocks, rows: int, k: int = 5) -> tuple[float, dict[str, int]]:
    """Doubles efSearch or nprobe while recall@k stays below 0.95 and still grows; the index keeps the last value.

    A query is the vector of a sampled passage moved by a random vector half its length: near the corpus, in none of its
    rows. A hit counts when its exact score reaches the exact k-th best, so equal passages may stand for each other.

    Args:
        index: a faiss index of inner products over the R rows.
        blocks: streams the vectors.
        rows: R.
        k: hits a query.

    Returns:
        recall@k on up to 200 queries, and the breadth found, {"efSearch": n}, {"nprobe": n} or {}.
    """
    import faiss

    k = min(k, rows)
    queries = _queries(blocks, rows)  # (Q, D)
    floor = _exact_kth(blocks, queries, k)  # (Q,)
    holder, name, limit = index, "", 0
    if (inverted := faiss.try_extract_index_ivf(index)) is not None:
        holder, name, limit = inverted, "nprobe", inverted.nlist
    elif hasattr(index, "hnsw"):
        holder, name, limit = index.hnsw, "efSearch", 1024
    recall = _recall(index, blocks, queries, floor, k)
    while name and recall < LOW_RECALL and getattr(holder, name) < limit:
        before = recall
        setattr(holder, name, min(2 * getattr(holder, name), limit))
        recall = _recall(index, blocks, queries, floor, k)
        if recall < before + 0.005:
            break
    return recall, {name: int(getattr(holder, name))} if name else {}


def _gather(blocks: Blocks, ids: np.ndarray) -> np.ndarray:
    """Vectors (n, D) of n sorted row numbers, read in one pass."""
    parts, start = [], 0
    for block in blocks():
        low, high = np.searchsorted(ids, [start, start + len(block)])
        parts.append(block[ids[low:high] - start])
        start += len(block)
    return np.concatenate(parts)


def _queries(blocks: Blocks, rows: int) -> np.ndarray:
    ids = np.sort(np.random.default_rng(0).choice(rows, min(rows, QUERIES), replace=False))
    vectors = _gather(blocks, ids)  # (Q, D)
    noise = np.random.default_rng(1).standard_normal(vectors.shape)
    noise *= 0.5 * np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return (vectors + noise).astype(np.float32)


def _exact_kth(blocks: Blocks, queries: np.ndarray, k: int) -> np.ndarray:
    best = np.full((len(queries), k), -np.inf, np.float32)
    for block in blocks():
        scores = np.concatenate([best, queries @ block.T], axis=1)  # (Q, k + r)
        best = np.partition(scores, -k, axis=1)[:, -k:]
    return best.min(axis=1)


def _recall(index: Any, blocks: Blocks, queries: np.ndarray, floor: np.ndarray, k: int) -> float:
    _, ids = index.search(queries, k)  # (Q, k), -1 where nothing was found
    found = np.unique(ids[ids >= 0])
    if not len(found):
        return 0.0
    vectors = _gather(blocks, found)[np.searchsorted(found, np.maximum(ids, found[0]))]  # (Q, k, D)
    scores = np.einsum("qd,qkd->qk", queries, vectors)
    return float(np.mean((ids >= 0) & (scores >= floor[:, None] - 1e-4 * np.abs(floor[:, None]))))
