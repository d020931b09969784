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

# Candidates for each document wanted: on real vectors of an eighth of their size all that are in
# reach.
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

    rows = int(faiss_index.ntotal)
    _, ids = faiss_index.search(queries, min(n_docs * factor, max(n_docs, rows)))  # (B, C)
    if ids.size and ids.max() >= rows:
        raise IndexError(f"it names row {ids.max()} of {rows}")
    candidates = vectors.gather(ids)  # (B, C, D)
    scores = np.matmul(candidates, queries[:, :, None])[..., 0]  # (B, C)
    if faiss_index.metric_type == faiss.METRIC_L2:
        # The distance, less what no candidate changes.
        scores = 2 * scores - np.square(candidates).sum(axis=-1)
    costs = np.where(ids < 0, np.inf, -scores)
    best = np.argsort(costs, axis=1, kind="stable")[:, :n_docs]  # (B, N)
    best_ids = np.take_along_axis(ids, best, axis=1)
    return best_ids, np.take_along_axis(candidates, best[..., None], axis=1)


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
    place = notes_path(path)
    manifest = path.parent / "manifest.json"
    is_in_manifest = not place.is_file() and path.name == "index.faiss"
    if is_in_manifest:
        place = manifest
    if not place.is_file():
        return {}
    notes = read_json(place, advice="Write the index anew.")
    if is_in_manifest:
        notes = notes.get("index", {})
    if fault := notes_fault(notes):
        raise DamagedFileError(f"{place} is damaged ({fault}). Write the index anew.")
    return notes


def notes_fault(notes: Any) -> str:
    """What in notes is none of them, "" where nothing is."""
    if not isinstance(notes, dict) or not isinstance(notes.get("settings", {}), dict):
        return "its entries are no objects"
    for name, value in notes.get("settings", {}).items():
        least = int(name == "rerank")
        # Faiss takes 64 bits.
        if type(value) is not int or not least <= value < 2**63:
            return (
                f"settings: {name!r} must be a whole number of at least {least}, got {value!r:.60}"
            )
    recall = notes.get("recall_at_5", 1.0)
    if recall is not None and (type(recall) not in (int, float) or not 0 <= recall <= 1):
        return f"recall_at_5 must be a number from 0 to 1, got {recall!r:.60}"
    if not isinstance(notes.get("kind", ""), str):
        return f"kind must be a text, got {notes['kind']!r:.60}"
    return ""


def write_notes(index_path: str | Path, notes: dict[str, Any]) -> None:
    """Write the file that `read_notes` finds."""
    with atomic_write(notes_path(index_path)) as draft:
        draft.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
