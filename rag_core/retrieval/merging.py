"""The best documents of an index out of the best ones of its shards, each a range of its rows.

Letters: B questions, N documents a question, C candidates of a shard for a question.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class ShardHits(NamedTuple):
    """What a shard answers to B questions; U of its passages are candidates of one or more.

    Attributes:
        scores: (B, C), -inf where there is no candidate.
        rows: (B, C) rows of the whole, -1 likewise.
        vectors: (B, C, D) float32.
        read: (U,) the rows whose texts it brings along.
        texts: column -> U values.
    """

    scores: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    read: np.ndarray
    texts: dict[str, list[Any]]


def merged(
    shards: list[ShardHits], n_questions: int, n_docs: int, vector_size: int, as_faiss: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best N documents of B questions.

    Args:
        shards: what they answered.
        n_questions: B.
        n_docs: N.
        vector_size: D.
        as_faiss: whether equal scores go as in a flat index (`merged_as_faiss`), or by row.

    Returns:
        As `Index.get_top_docs`; where fewer than N are found, the rest are row -1.
    """
    rows = np.full((n_questions, n_docs), -1, np.int64)
    vectors = np.zeros((n_questions, n_docs, vector_size), np.float32)
    merge = merged_by_row
    if as_faiss:
        merge = merged_as_faiss
    for number in range(n_questions):
        is_there = np.concatenate([hits.rows[number] >= 0 for hits in shards])
        all_rows = np.concatenate([hits.rows[number] for hits in shards])[is_there]
        all_scores = np.concatenate([hits.scores[number] for hits in shards])[is_there]
        best = merge(all_scores, all_rows, n_docs)
        rows[number, : len(best)] = all_rows[best]
        all_vectors = np.concatenate([hits.vectors[number] for hits in shards])[is_there]
        vectors[number, : len(best)] = all_vectors[best]
    return rows, vectors


def flat_candidates(
    faiss_index: Any, queries: np.ndarray, n_docs: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What an exact faiss index says of each question, complete at the lower end.

    Of rows with equal scores faiss keeps some, by a rule in which rows before and after them count.
    So that all shards together can tell which, a shard names the rows that tie for its last place,
    too: those among its first N that are as good.

    Args:
        faiss_index: a flat index of inner products.
        queries: (B, D) float32.
        n_docs: N.

    Returns:
        For each question scores (C,) and rows (C,), best first; C is N to 2 N, or all rows.
    """
    rows = int(faiss_index.ntotal)
    wanted = min(rows, n_docs + 1)
    scores, ids = faiss_index.search(queries, max(1, wanted))  # (B, N + 1)
    found = []
    for number in range(len(queries)):
        own_scores, own_ids = scores[number], ids[number]
        size = wanted
        # All of them again: few questions are multiplied in another way, with other last digits.
        while size < rows and own_scores[-1] == own_scores[n_docs - 1]:
            size = min(rows, 4 * size)
            more_scores, more_ids = faiss_index.search(queries, size)
            own_scores, own_ids = more_scores[number], more_ids[number]
        found.append(_without_spare_ties(own_scores, own_ids, n_docs))
    return found


def _without_spare_ties(
    scores: np.ndarray, rows: np.ndarray, n_docs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Less what no merging asks for: all below place N, and ties for it that come late."""
    real = rows >= 0
    scores, rows = scores[real], rows[real]
    if len(scores) <= n_docs:
        return scores, rows
    least = scores[n_docs - 1]
    reaching = np.sort(rows[scores >= least])
    kept = (scores > least) | ((scores == least) & (rows <= reaching[n_docs - 1]))
    return scores[kept], rows[kept]


def merged_as_faiss(scores: np.ndarray, rows: np.ndarray, n_docs: int) -> np.ndarray:
    """Which candidates of all shards one flat index would have found, and in which order.

    Faiss goes through its rows once and keeps the N best: a row comes in if it is better than the
    worst, for which of equally bad ones the first leaves. At the end equal ones stand last row
    first. (So it is for N below 100, beyond which faiss sorts in another way.)

    Args:
        scores: (C,) of the candidates that `flat_candidates` names for a question, of all shards.
        rows: (C,) their row numbers.
        n_docs: N.

    Returns:
        Places of the best N or fewer.
    """
    by_row = np.argsort(rows)
    if len(rows) > n_docs:
        least = np.partition(scores, -n_docs)[-n_docs]
        by_row = by_row[scores[by_row] >= least]
        better = by_row[scores[by_row] > least]
        ties = [place for place in by_row[:n_docs] if scores[place] == least]
        by_row = np.array([*better, *ties[len(ties) - (n_docs - len(better)) :]], np.int64)
    return by_row[np.lexsort((-rows[by_row], -scores[by_row]))]


def merged_by_row(scores: np.ndarray, rows: np.ndarray, n_docs: int) -> np.ndarray:
    """The same for searches in which equal scores go by row number.

    Args, Returns:
        As `merged_as_faiss`.
    """
    return np.lexsort((rows, -scores))[:n_docs]
