"""One search through any `Index`: whatever it returns is checked and brought to fixed shapes.

Letters: B questions, b questions of one chunk, N documents a question, D vector size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.retrieval.index import Index
from rag_core.retrieval.own_scores import checked_texts, length_of, needs_text, top_docs

_BLANKS = {"title": "", "text": ""}  # of missing hits; other columns have None there


def search(
    index: Index,
    queries: np.ndarray,
    n_docs: int,
    batch_size: int,
    question_text: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search in chunks; the result does not depend on their size.

    Args:
        index: an initialised `Index`.
        queries: (B, D) numbers.
        n_docs: N.
        batch_size: questions a chunk.
        question_text: B questions, for an index that reads them.

    Returns:
        doc_ids (B, N) int64, missing hits -1, and vectors (B, N, D) float32, zero for missing hits.

    Raises:
        ValueError: wrong shapes, NaN or infinity, an index of another vector size or that returns
            anything else than `Index` says, or a question without any hit.
    """
    if queries.ndim != 2:
        raise ValueError(
            f"question_hidden_states must have shape (batch, vector size), got {queries.shape}."
        )
    if not np.isfinite(queries).all():
        rows = np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist()
        raise ValueError(
            f"question_hidden_states holds NaN or infinity in rows {rows}; nothing can be searched."
        )
    size = getattr(index, "vector_size", None)
    if size is not None and size != queries.shape[1]:
        raise ValueError(
            f"the question vectors have size {queries.shape[1]}, the vectors of the index have "
            f"size {size}: the index was built with another encoder. Use the question encoder "
            "that belongs to it, or build the index again."
        )
    # Faiss reads the memory as it lies.
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not len(queries):
        return np.zeros((0, n_docs), np.int64), np.zeros((0, n_docs, queries.shape[1]), np.float32)
    if needs_text(index):
        question_text = checked_texts(question_text, len(queries))
    chunks = []
    for start in range(0, len(queries), batch_size):
        part = slice(start, start + batch_size)
        texts = None if question_text is None else question_text[part]
        chunks.append(checked_top_docs(index, queries[part], n_docs, texts))
    doc_ids = np.concatenate([ids for ids, _ in chunks])  # (B, N)
    vectors = np.concatenate([vectors for _, vectors in chunks])  # (B, N, D)
    without_hit = np.flatnonzero((doc_ids < 0).all(axis=1)).tolist()
    if without_hit:
        documents: int | str | None = length_of(index)
        if documents is None:
            documents = "an unknown number of"
        raise ValueError(
            f"the index ({documents} documents) has no hit for question rows {without_hit}; "
            "add documents, or search wider (nprobe, efSearch)."
        )
    return doc_ids, vectors


def search_and_read(
    index: Index,
    queries: np.ndarray,
    n_docs: int,
    question_text: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """`search` of all questions at once, and `read_docs` of what was found.

    Args, Raises:
        As `search`; the index may still have to be loaded.

    Returns:
        doc_ids (B, N), vectors (B, N, D) and B dictionaries.
    """
    if not index.is_initialized():
        index.init_index()
    ids, vectors = search(index, queries, n_docs, max(1, len(queries)), question_text)
    return ids, vectors, read_docs(index, ids, vectors)


def checked_top_docs(
    index: Index, queries: np.ndarray, n_docs: int, texts: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """What an index finds, checked; also of an index that another one asks.

    Args:
        index: an initialised `Index`.
        queries: (b, D).
        n_docs: N.
        texts: b questions, for an index that reads them.

    Returns:
        doc_ids (b, N) int64, missing hits -1, and vectors (b, N, D) float32, zero for missing hits.

    Raises:
        ValueError: the index returned anything else than `Index` says.
    """
    rows, width = queries.shape
    must = f"{type(index).__name__}.get_top_docs must return"
    answer = top_docs(index, queries, n_docs, texts)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError(f"{must} doc_ids and vectors, got {_kind(answer)}.")
    ids = _numbers(answer[0], f"{must} doc_ids of integers", "iu").astype(np.int64)
    vectors = _numbers(answer[1], f"{must} vectors of real numbers", "fiu")
    vectors = vectors.astype(np.float32, copy=False)
    if ids.ndim != 2 or len(ids) != rows or ids.shape[1] > n_docs:
        raise ValueError(
            f"the index returned doc_ids of shape {ids.shape} for {rows} questions, "
            f"n_docs={n_docs}."
        )
    if vectors.shape != (*ids.shape, width):
        raise ValueError(
            f"the index returned vectors of shape {vectors.shape} for doc_ids {ids.shape} and "
            f"question vectors of size {width}; expected {(*ids.shape, width)}: do the index and "
            "the question encoder belong together?"
        )
    length = length_of(index)
    if length is not None and ids.size and ids.max() >= length:
        raise ValueError(
            f"{must} row numbers below its len(), {length}, or -1 for no hit, got "
            f"{ids.max()}. Ids of another kind (IndexIDMap, add_with_ids) are to be turned into "
            "row numbers."
        )
    bad = ~np.isfinite(vectors).all(axis=-1) & (ids >= 0)
    if bad.any():
        raise ValueError(
            f"{must} finite vectors, got NaN or infinity for rows "
            f"{np.unique(ids[bad])[:10].tolist()}. Embed these passages again."
        )
    # As nearly always; what follows copies.
    if ids.shape[1] == n_docs and (ids >= 0).all():
        return ids, vectors
    missing = n_docs - ids.shape[1]
    ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)  # (b, N)
    vectors = np.pad(vectors, ((0, 0), (0, missing), (0, 0)))  # (b, N, D)
    return np.where(ids < 0, -1, ids), np.where(ids[..., None] < 0, np.float32(0), vectors)


def _kind(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, Sized):
        return f"{name} of {len(value)}"
    return name


def _numbers(value: Any, rule: str, kinds: str) -> np.ndarray:
    """An array whose dtype is of one of NumPy's `kinds`, or a ValueError of the rule."""
    try:
        array = np.asarray(to_numpy(value))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{rule}, got {_kind(value)} ({error!s:.120}).") from error
    if array.dtype.kind not in kinds and array.size:
        raise ValueError(f"{rule}, got {array.dtype} of shape {array.shape}.")
    return array


def read_docs(index: Index, doc_ids: np.ndarray, vectors: np.ndarray) -> list[dict[str, Any]]:
    """Read the documents' texts.

    Args:
        index: an initialised `Index`.
        doc_ids: (B, N) as `search` returned them.
        vectors: (B, N, D) likewise.

    Returns:
        B dictionaries: lists of N entries as the index gives them, missing hits "" (columns of
        dictionaries {}, others None), and "embeddings", (N, D).

    Raises:
        ValueError: the index returned something else than titles and texts.
    """
    if not len(doc_ids):
        return []
    is_hit = doc_ids >= 0
    if is_hit.all():
        docs = checked_docs(index, doc_ids)
        return [{**doc, "embeddings": vectors[row]} for row, doc in enumerate(docs)]
    # The index is never asked for row -1: its place is taken by the row's first hit, then blanked.
    first_hits = np.take_along_axis(doc_ids, is_hit.argmax(axis=1)[:, None], axis=1)  # (B, 1)
    result = []
    for row, columns in enumerate(checked_docs(index, np.where(is_hit, doc_ids, first_hits))):
        doc: dict[str, Any] = {
            name: values for name, values in columns.items() if name != "embeddings"
        }
        if not is_hit[row].all():
            for name, values in doc.items():
                blank: Any = _BLANKS.get(name)
                if isinstance(next(iter(values), None), dict):
                    blank = {}
                pairs = zip(values, is_hit[row], strict=True)
                doc[name] = [value if hit else blank for value, hit in pairs]
        result.append(doc | {"embeddings": vectors[row]})
    return result


def checked_docs(index: Index, doc_ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
    """What `get_doc_dicts` of an index returns for rows (B, N) that are there.

    Raises:
        ValueError: it is something else than titles and texts.
    """
    n_questions, n_docs = doc_ids.shape
    name = f"{type(index).__name__}.get_doc_dicts"
    rule = f"{name} must return {n_questions} dictionaries, one a question"
    docs = index.get_doc_dicts(doc_ids)
    if not isinstance(docs, list | tuple) or len(docs) != n_questions:
        raise ValueError(f"{rule}, got {_kind(docs)}.")
    for row, doc in enumerate(docs):
        if fault := _doc_fault(doc, n_docs):
            raise ValueError(
                f"{rule}, with lists 'title' and 'text' of {n_docs} strings, got for question "
                f"{row} {fault}."
            )
    return docs


def _doc_fault(doc: Any, n_docs: int) -> str:
    """What in an index's answer for a question is none, "" where nothing is."""
    if not isinstance(doc, Mapping):
        return f"a {type(doc).__name__}"
    if "title" not in doc or "text" not in doc:
        return f"the keys {list(doc)}"
    for name in ("title", "text"):
        values = doc[name]
        is_list = isinstance(values, Collection) and not isinstance(values, str | bytes)
        if not is_list or len(values) != n_docs:
            return f"a {name!r} that is {_kind(values)}"
        for value in values:
            if not isinstance(value, str):
                return f"a {name!r} with {value!r:.60}"
    return ""
