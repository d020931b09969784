"""How good an approximate index is: recall@k against exact search, and the search breadth that
earns it.

Letters: R rows, D vector size, Q sampled queries, k hits a query. Scores are inner products (paper,
section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

LOW_RECALL = 0.95
QUERIES = 200
MOST_CANDIDATES = 64  # for each hit: more cost more than wider search does
# each call streams the (r, D) float32 blocks of all R rows anew
Blocks = Callable[[], Iterator[np.ndarray]]


def tune_recall(
    index: Any,
    blocks: Blocks,
    rows: int,
    k: int = 5,
    *,
    rerank: int = 1,
    fixed: Collection[str] = (),
) -> tuple[float, dict[str, int]]:
    """Doubles efSearch, or nprobe or the re-rank factor, while recall@k stays below 0.95 and still
    grows.

    A query is the vector of a sampled passage moved by a random vector half its length: near the
    corpus, in none of its rows. A hit counts when its exact score reaches the exact k-th best, so
    equal passages may stand for each other.

    Args:
        index: a faiss index of inner products over the R rows; it keeps the breadth found.
        blocks: streams the vectors.
        rows: R.
        k: hits a query.
        rerank: candidates for each hit, ranked again by their exact scores (see `rerank`); 1 is
            none.
        fixed: names of settings to leave as they are.

    Returns:
        recall@k on up to 200 queries, and the breadth found, {"efSearch": n}, {"nprobe": n,
        "rerank": n} or {}.
    """
    k = min(k, rows)
    queries = _queries(blocks, rows)  # (Q, D)
    floor = _exact_kth(blocks, queries, k)  # (Q,)
    holder, name, limit = _breadth(index)
    now, limits = ({name: int(getattr(holder, name))}, {name: limit}) if name else ({}, {})
    if name == "nprobe":
        now["rerank"], limits["rerank"] = rerank, MOST_CANDIDATES if rerank > 1 else 1

    def measured(values: dict[str, int]) -> float:
        if name:
            setattr(holder, name, values[name])
        return _recall(index, blocks, queries, floor, k, values.get("rerank", 1))

    recall = measured(now)
    while recall < LOW_RECALL:
        wider = [
            {**now, knob: min(2 * now[knob], limits[knob])}
            for knob in now
            if knob not in fixed and now[knob] < limits[knob]
        ]
        tried = [(measured(values), values) for values in wider]
        if not tried or max(found for found, _ in tried) < recall + 0.005:
            break
        recall, now = max(tried, key=lambda pair: pair[0])
    if name:
        setattr(holder, name, now[name])
    return recall, now


def low_recall(kind: str, recall: float, settings: Mapping[str, Any]) -> str:
    """The warning about an index that misses too much.

    What was measured, what it costs, what to change.
    """
    changes = {
        "nprobe": f"nprobe ({settings.get('nprobe')} of {settings.get('nlist')} lists are searched)",
        "rerank": f"rerank ({settings.get('rerank', 1)} candidates a passage are ranked exactly)",
        "m": f"m ({settings.get('m')} bytes a vector)",
        "efSearch": f"efSearch ({settings.get('efSearch')})",
    }
    wanted = [
        text
        for name, text in changes.items()
        if name in settings or (name == "rerank" and kind == "ivfpq")
    ]
    return (
        f"recall@5 of the {kind} index against exact search is {recall:.2f}: of 100 passages that "
        f"belong among the best five, {round(100 * (1 - recall))} are not found, and answers "
        "suffer: users of RAG lost 17 points of exact match to an index of low recall. Raise "
        f"{' or '.join(wanted) or 'its breadth'}; index='flat' searches exactly."
    )


def _breadth(index: Any) -> tuple[Any, str, int]:
    """Where an index keeps the breadth of its search: object, name, the most that makes sense."""
    import faiss

    if (inverted := faiss.try_extract_index_ivf(index)) is not None:
        return inverted, "nprobe", inverted.nlist
    return (index.hnsw, "efSearch", 1024) if hasattr(index, "hnsw") else (index, "", 0)


def gather_rows(blocks: Blocks, ids: np.ndarray) -> np.ndarray:
    """Vectors (n, D) of n sorted row numbers, read in one pass."""
    parts, start = [], 0
    for block in blocks():
        low, high = np.searchsorted(ids, [start, start + len(block)])
        parts.append(block[ids[low:high] - start])
        start += len(block)
    return np.concatenate(parts)


def _queries(blocks: Blocks, rows: int) -> np.ndarray:
    ids = np.sort(np.random.default_rng(0).choice(rows, min(rows, QUERIES), replace=False))
    vectors = gather_rows(blocks, ids)  # (Q, D)
    noise = np.random.default_rng(1).standard_normal(vectors.shape)
    noise *= (
        0.5
        * np.linalg.norm(vectors, axis=1, keepdims=True)
        / np.linalg.norm(noise, axis=1, keepdims=True)
    )
    return (vectors + noise).astype(np.float32)


def _exact_kth(blocks: Blocks, queries: np.ndarray, k: int) -> np.ndarray:
    best = np.full((len(queries), k), -np.inf, np.float32)
    for block in blocks():
        scores = np.concatenate([best, queries @ block.T], axis=1)  # (Q, k + r)
        best = np.partition(scores, -k, axis=1)[:, -k:]
    return best.min(axis=1)


def _recall(
    index: Any, blocks: Blocks, queries: np.ndarray, floor: np.ndarray, k: int, rerank: int
) -> float:
    _, ids = index.search(queries, k * rerank)  # (Q, C), -1 where nothing was found
    found = np.unique(ids[ids >= 0])
    if not len(found):
        return 0.0
    vectors, where = gather_rows(blocks, found), np.searchsorted(found, np.maximum(ids, found[0]))
    # one query at a time: all candidates of all queries would be gigabytes
    # (Q, C)
    scores = np.stack([vectors[row] @ query for row, query in zip(where, queries, strict=True)])
    best = np.sort(np.where(ids < 0, -np.inf, scores), axis=1)[:, -k:]  # (Q, k)
    return float(np.mean(best >= floor[:, None] - 1e-4 * np.abs(floor[:, None])))
