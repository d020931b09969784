"""One search through any `Index`: whatever it returns is checked and brought to fixed shapes.

Letters: B questions, b questions of one chunk, N documents a question, D vector size.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np

from rag_core.index import Index


def search(index: Index, queries: np.ndarray, n_docs: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Search in chunks; the result does not depend on their size.

    Args:
        index: an initialised `Index`.
        queries: (B, D) numbers.
        n_docs: N.
        batch_size: questions a chunk.

    Returns:
        doc_ids (B, N) int64, missing hits -1, and vectors (B, N, D) float32, zero for missing hits.

    Raises:
        ValueError: wrong shapes, NaN or infinity, an index of another vector size, or a question without any hit.
    """
    if queries.ndim != 2:
        raise ValueError(f"question_hidden_states must have shape (batch, vector size), got {queries.shape}.")
    if not np.isfinite(queries).all():
        rows = np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist()
        raise ValueError(f"question_hidden_states holds NaN or infinity in rows {rows}; nothing can be searched.")
    size = getattr(index, "vector_size", None)
    if size is not None and size != queries.shape[1]:
        raise ValueError(
            f"the question vectors have size {queries.shape[1]}, the vectors of the index have size {size}: the index "
            "was built with another encoder. Use the question encoder that belongs to it, or build the index again."
        )
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not len(queries):
        return np.zeros((0, n_docs), np.int64), np.zeros((0, n_docs, queries.shape[1]), np.float32)
    found = [_chunk(index, queries[start : start + batch_size], n_docs) for start in range(0, len(queries), batch_size)]
    doc_ids = np.concatenate([ids for ids, _ in found])  # (B, N)
    if (empty := np.flatnonzero((doc_ids < 0).all(axis=1))).size:
        documents = len(index) if isinstance(index, Sized) else "an unknown number of"
        raise ValueError(
            f"the index ({documents} documents) has no hit for question rows {empty.tolist()}; add documents, or "
            "search wider (nprobe, efSearch)."
        )
    return doc_ids, np.concatenate([vectors for _, vectors in found])  # (B, N), (B, N, D)


def _chunk(index: Index, queries: np.ndarray, n_docs: int) -> tuple[np.ndarray, np.ndarray]:
    ids, vectors = index.get_top_docs(queries, n_docs)
    ids = np.asarray(ids, dtype=np.int64)
    vectors = np.asarray(vectors, dtype=np.float32)
    rows, width = queries.shape
    if ids.ndim != 2 or len(ids) != rows or ids.shape[1] > n_docs:
        raise ValueError(f"the index returned doc_ids of shape {ids.shape} for {rows} questions, n_docs={n_docs}.")
    if vectors.shape != (*ids.shape, width):
        raise ValueError(
            f"the index returned vectors of shape {vectors.shape} for doc_ids {ids.shape} and question vectors of size "
            f"{width}; expected {(*ids.shape, width)}: do the index and the question encoder belong together?"
        )
    if ids.shape[1] == n_docs and ids.min() >= 0:
        return ids, vectors
    missing = n_docs - ids.shape[1]
    ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)  # (b, N)
    vectors = np.pad(vectors, ((0, 0), (0, missing), (0, 0)))  # (b, N, D)
    return np.where(ids < 0, -1, ids), np.where(ids[..., None] < 0, np.float32(0), vectors)


def read_docs(index: Index, doc_ids: np.ndarray, vectors: np.ndarray) -> list[dict[str, Any]]:
    """Read the documents' texts.

    Args:
        index: an initialised `Index`.
        doc_ids: (B, N) as `search` returned them.
        vectors: (B, N, D) likewise.

    Returns:
        B dictionaries: lists of N entries as the index gives them, missing hits "" (other columns None), and
        "embeddings", (N, D).
    """
    if not len(doc_ids):
        return []
    hits = doc_ids >= 0
    if hits.all():
        found = index.get_doc_dicts(doc_ids)
        return [{**doc, "embeddings": vectors[row]} for row, doc in enumerate(found)]
    # The index is never asked for row -1: its place is taken by the row's first hit, then blanked.
    first = np.take_along_axis(doc_ids, hits.argmax(axis=1)[:, None], axis=1)  # (B, 1)
    result = []
    for row, columns in enumerate(index.get_doc_dicts(np.where(hits, doc_ids, first))):
        doc: dict[str, Any] = {name: values for name, values in columns.items() if name != "embeddings"}
        if not hits[row].all():
            doc = {
                name: [
                    value if hit else "" if name in ("title", "text") else None
                    for value, hit in zip(values, hits[row], strict=True)
                ]
                for name, values in doc.items()
            }
        result.append(doc | {"embeddings": vectors[row]})
    return result
