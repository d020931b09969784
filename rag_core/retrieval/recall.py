"""How good an approximate index is: recall@k against exact search, and how wide a search earns it.

Letters: R rows, D vector size, Q sampled queries, k hits a query. Scores are inner products (paper,
section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

# A faster search that loses more than one neighbour in twenty changes answers.
LOW_RECALL = 0.95
# With five hits each they tell recall to a hundredth or so.
QUERIES = 200
# For each hit: more cost more than a wider search does.
MOST_CANDIDATES = 64
# Each call streams the (r, D) float32 blocks of all R rows anew
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
        index: a faiss index of inner products over the R rows; it keeps the efSearch or nprobe
            found.
        blocks: streams the vectors.
        rows: R.
        k: hits a query.
        rerank: candidates for each hit, ranked again by their exact scores (see `rerank`); 1 is
            none.
        fixed: names of settings to leave as they are.

    Returns:
        recall@k on up to 200 queries, and the settings found, {"efSearch": n}, {"nprobe": n,
        "rerank": n} or {}.
    """
    k = min(k, rows)
    queries = _queries(blocks, rows)  # (Q, D)
    floor = _exact_kth(blocks, queries, k)  # (Q,)
    holder, settings, limits = _search_settings(index)
    if "nprobe" in settings:
        settings["rerank"] = rerank
        limits["rerank"] = MOST_CANDIDATES if rerank > 1 else 1

    def apply(settings: dict[str, int]) -> None:
        for name in settings.keys() - {"rerank"}:
            setattr(holder, name, settings[name])

    def measure(settings: dict[str, int]) -> float:
        apply(settings)
        return _recall(index, blocks, queries, floor, k, settings.get("rerank", 1))

    recall = measure(settings)
    while recall < LOW_RECALL:
        wider = [
            {**settings, name: min(2 * value, limits[name])}
            for name, value in settings.items()
            if name not in fixed and value < limits[name]
        ]
        tried = [(measure(values), values) for values in wider]
        best, best_settings = max(tried, key=lambda pair: pair[0], default=(0.0, settings))
        # Five hits more among a thousand are chance.
        if best < recall + 0.005:
            break
        recall, settings = best, best_settings
    apply(settings)
    return recall, settings


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
    known = set(settings)
    if kind == "ivfpq":
        known.add("rerank")
    remedies = [text for name, text in changes.items() if name in known]
    return (
        f"recall@5 of the {kind} index against exact search is {recall:.2f}: of 100 passages that "
        f"belong among the best five, {round(100 * (1 - recall))} are not found, and answers "
        "suffer: users of RAG lost 17 points of exact match to an index of low recall. Raise "
        f"{' or '.join(remedies) or 'its breadth'}; index='flat' searches exactly."
    )


def _search_settings(index: Any) -> tuple[Any, dict[str, int], dict[str, int]]:
    """What says how wide an index searches: the object that has it as attributes, the values, and
    the most that makes sense.
    """
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        return inverted, {"nprobe": inverted.nprobe}, {"nprobe": inverted.nlist}
    if hasattr(index, "hnsw"):
        return index.hnsw, {"efSearch": index.hnsw.efSearch}, {"efSearch": 1024}
    return index, {}, {}


def gather_rows(blocks: Blocks, ids: np.ndarray) -> np.ndarray:
    """Vectors (n, D) of n sorted row numbers, read in one pass."""
    parts, start = [], 0
    for block in blocks():
        low, high = np.searchsorted(ids, [start, start + len(block)])
        parts.append(block[ids[low:high] - start])
        start += len(block)
    return np.concatenate(parts)


def _queries(blocks: Blocks, rows: int) -> np.ndarray:
    ids = np.random.default_rng(0).choice(rows, min(rows, QUERIES), replace=False)
    vectors = gather_rows(blocks, np.sort(ids))  # (Q, D)
    noise = np.random.default_rng(1).standard_normal(vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # (Q, 1)
    noise *= 0.5 * lengths / np.linalg.norm(noise, axis=1, keepdims=True)
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
    candidates = np.unique(ids[ids >= 0])
    if not len(candidates):
        return 0.0
    vectors = gather_rows(blocks, candidates)
    places = np.searchsorted(candidates, np.maximum(ids, candidates[0]))  # (Q, C)
    # One query at a time: all candidates of all queries would be gigabytes.
    scores = [vectors[row] @ query for row, query in zip(places, queries, strict=True)]
    known = np.where(ids < 0, -np.inf, np.stack(scores))  # (Q, C)
    best = np.sort(known, axis=1)[:, -k:]  # (Q, k)
    # Equal vectors have scores that differ by rounding.
    least = floor - 1e-4 * np.abs(floor)
    return float(np.mean(best >= least[:, None]))
