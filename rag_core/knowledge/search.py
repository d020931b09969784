"""Text in, passages with scores out: the search of a knowledge base without a generator.

Letters: B questions, k passages a question, D vector size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core import backends
from rag_core.arguments import checked_questions
from rag_core.checks import whole
from rag_core.outputs import Hit
from rag_core.retrieval import Index, needs_vectors, search_and_read

if TYPE_CHECKING:
    from rag_core.knowledge.base import KnowledgeBase

EmbedQuestions = Callable[[list[str]], Any]  # B texts -> (B, D)
# Of questions that are searched at a time: with their hits' vectors they stay small.
BATCH = 64


def search_index(
    index: Index, embed: EmbedQuestions | None, questions: list[str], k: int
) -> list[list[Hit]]:
    """The k passages of an index that are nearest to each question, best first.

    Args:
        index: of any kind.
        embed: the encoder of questions; None for an index that searches by words alone.
        questions: B texts.
        k: passages a question.

    Raises:
        ValueError: an index that returns anything else than `Index` says, or finds nothing.
    """
    return [
        hits
        for start in range(0, len(questions), BATCH)
        for hits in _searched(index, embed, questions[start : start + BATCH], k)
    ]


def _searched(
    index: Index, embed: EmbedQuestions | None, questions: list[str], k: int
) -> list[list[Hit]]:
    if embed is None or not needs_vectors(index):
        queries = np.ones((len(questions), 1), np.float32)  # to carry scores: 1 is exact
    else:
        queries = checked_vectors(embed(questions), len(questions))
    ids, vectors, docs = search_and_read(index, queries, k, questions)  # (B, k), (B, k, D)
    scores = np.einsum("bkd,bd->bk", vectors, queries, dtype=np.float64)
    return [hits_of(*columns) for columns in zip(ids, docs, scores, strict=True)]


def hits_of(ids: Sequence[int], doc: Mapping[str, Any], scores: Sequence[float]) -> list[Hit]:
    """Passages of one question, best first; ids of -1 are missing ones.

    Args:
        ids: k row numbers.
        doc: lists of k entries, as an index's `get_doc_dicts` gives them.
        scores: k numbers.
    """
    unknown = [None] * len(ids)
    rows = zip(
        ids,
        scores,
        doc["title"],
        doc["text"],
        doc.get("source", unknown),
        doc.get("metadata", unknown),
        strict=True,
    )
    hits: list[Hit] = []
    for row, score, title, text, source, metadata in rows:
        if row < 0:
            continue
        hit = Hit(len(hits) + 1, int(row), float(score), title, text)
        # an index of somebody's own may have columns that are called so and are something else
        if isinstance(source, str):
            hit.source = source
        if isinstance(metadata, dict):
            hit.metadata = metadata
        hits.append(hit)
    return hits


def checked_vectors(vectors: Any, count: int) -> np.ndarray:
    """Vectors of questions as (B, D) float32.

    Raises:
        ValueError: not one a question, NaN or infinity.
    """
    queries = np.asarray(backends.to_numpy(vectors))
    if queries.ndim != 2 or len(queries) != count:
        raise ValueError(
            f"encoder must return one vector a question, ({count}, D), got shape {queries.shape}"
        )
    if not np.isfinite(queries).all():
        raise ValueError("encoder returned NaN or infinity. Use float32.")
    return np.ascontiguousarray(queries, np.float32)


def checked_request(questions: Any, k: Any) -> tuple[list[str], int]:
    """Questions as a list, and how many passages each is to find."""
    return checked_questions(questions), whole(1)("k", k)


def question_encoder(
    kb: KnowledgeBase, encoder: str | Path | Any, backend: str | None
) -> EmbedQuestions:
    """What embeds questions to a knowledge base.

    Args:
        kb: the knowledge base.
        encoder: a function of texts; an encoder that a backend's `load_encoder` gave; the folder or
            name of one; None takes the one that embedded the passages, by the name that the
            manifest has.
        backend: whose; None takes the one in use, or else the first that is installed.

    Raises:
        OSError, ImportError: it cannot be loaded.
        ValueError: it does not belong to the passages.
    """
    if hasattr(encoder, "embed_questions"):
        return _fitting(kb, encoder, getattr(encoder, "name", "encoder"))
    if callable(encoder):
        return encoder
    name = str(encoder or kb.manifest.encoder["name"])
    return _fitting(kb, load_encoder(kb, name, backend, for_questions=True), name)


def load_encoder(
    kb: KnowledgeBase, name: str, backend: str | None, *, for_questions: bool = False
) -> Any:
    """An encoder by its name; for arguments and errors see `question_encoder`."""
    engine = backends.load_backend(backend or _backend_in_use())
    options: dict[str, Any] = {}
    if for_questions:
        options["for_questions"] = True
    source = name
    if name == kb.manifest.encoder["name"]:
        source = kb.encoder_source
        options |= kb.encoder_options
    try:
        return engine.load_encoder(source, **options)
    except OSError as error:
        if name != kb.manifest.encoder["name"]:
            raise
        raise OSError(
            f"{kb.path} was embedded by {name!r}, which cannot be loaded ({error}). Say where it "
            "is: encoder= (--encoder), a folder or a name."
        ) from error


def _fitting(kb: KnowledgeBase, encoder: Any, name: str) -> EmbedQuestions:
    """The encoder's function of questions, where its vectors fit those of the passages."""
    if getattr(encoder, "only_questions", False):
        if encoder.dimension != kb.manifest.dimension:
            raise ValueError(
                f"encoder must give vectors of D={kb.manifest.dimension} as the passages of "
                f"{kb.path}, got {name!r} with D={encoder.dimension}. Name the partner of "
                f"{kb.manifest.encoder['name']!r}."
            )
    elif getattr(encoder, "pairs", False):
        encoder.embed_questions([""])  # its own error names the partner
    else:
        kb.check_encoder(encoder.embed, name)
    return encoder.embed_questions


def _backend_in_use() -> str | None:
    """The backend that this process has imported, if it is one."""
    in_use = [name for name, (package, *_) in backends.BACKENDS.items() if package in sys.modules]
    if len(in_use) != 1:
        return None
    return in_use[0]
