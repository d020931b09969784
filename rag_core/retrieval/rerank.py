"""Approximate search made exact at the top: more candidates than asked for, ranked again by their
stored vectors.

Letters: B questions, N documents a question, C candidates a question, D vector size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checks import whole
from rag_core.hub import DamagedFileError, atomic_write, read_json

if TYPE_CHECKING:
    from rag_core.retrieval.vectors import VectorSource

# candidates for each document wanted: on real vectors of an eighth of their size all that are in
# reach
RERANK = 16


def reranked(
    faiss_index: Any, vectors: VectorSource, queries: np.ndarray, n_docs: int, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search for C = N * factor candidates and keep those N whose exact scores are best.

    Args:
        faiss_index: the approximate index.
        vectors: the exact vectors of its rows.
        queries: (B, D) float32.
        n_docs: N.
        factor: candidates for each document.

    Returns:
        Row numbers (B, N), best exact score first, -1 where nothing was found, and their vectors
        (B, N, D).
    """
    import faiss

    # (B, C)
    _, ids = faiss_index.search(queries, min(n_docs * factor, max(n_docs, int(faiss_index.ntotal))))
    if ids.size and ids.max() >= int(faiss_index.ntotal):
        raise IndexError(f"it names row {ids.max()} of {int(faiss_index.ntotal)}")
    candidates = vectors.gather(ids)  # (B, C, D)
    scores = np.matmul(candidates, queries[:, :, None])[..., 0]  # (B, C)
    if faiss_index.metric_type == faiss.METRIC_L2:
        # the distance, less what no candidate changes
        scores = 2 * scores - np.square(candidates).sum(axis=-1)
    # (B, N)
    best = np.argsort(np.where(ids < 0, np.inf, -scores), axis=1, kind="stable")[:, :n_docs]
    return np.take_along_axis(ids, best, axis=1), np.take_along_axis(
        candidates, best[..., None], axis=1
    )


def checked_factor(factor: Any) -> int:
    """The re-rank factor; 1 is none.

    Raises:
        TypeError, ValueError: no whole number of 1 or more.
    """
    return whole(1)("rerank (index_rerank)", factor)


def notes_path(index_path: str | Path) -> Path:
    """The file of notes about a faiss file: its name and ".json"."""
    return Path(f"{index_path}.json")


def read_notes(index_path: str | Path) -> dict[str, Any]:
    """What is known about a faiss file: "kind", "settings" (with "rerank") and "recall_at_5"; {} if
    nothing is.

    It stands in a file beside it (`notes_path`), or in the manifest of a knowledge base.
    """
    path = Path(index_path)
    for place, known in ((notes_path(path), None), (path.parent / "manifest.json", "index")):
        if place.is_file() and (known is None or path.name == "index.faiss"):
            notes = read_json(place, advice="Write the index anew.")
            notes = notes if known is None else notes.get(known, {})
            if fault := notes_fault(notes):
                raise DamagedFileError(f"{place} is damaged ({fault}). Write the index anew.")
            return notes
    return {}


def notes_fault(notes: Any) -> str:
    """What in notes is none of them, "" where nothing is."""
    if not isinstance(notes, dict) or not isinstance(notes.get("settings", {}), dict):
        return "its entries are no objects"
    for name, value in notes.get("settings", {}).items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not (name == "rerank") <= value < 2**63
        ):
            return (
                f"settings: {name!r} must be a whole number of at least {int(name == 'rerank')}, "
                f"got {value!r:.60}"
            )
    recall = notes.get("recall_at_5")
    if recall is not None and (
        isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 <= recall <= 1
    ):
        return f"recall_at_5 must be a number from 0 to 1, got {recall!r:.60}"
    if not isinstance(notes.get("kind", ""), str):
        return f"kind must be a text, got {notes['kind']!r:.60}"
    return ""


def write_notes(index_path: str | Path, notes: dict[str, Any]) -> None:
    """Write the file that `read_notes` finds."""
    with atomic_write(notes_path(index_path)) as draft:
        draft.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
