"""An index whose candidates are ranked anew by reading them with the question.

Letters: B questions, N documents a question, C candidates a question, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.backends import to_numpy
from rag_core.checks import whole
from rag_core.retrieval.bm25 import passage_text
from rag_core.retrieval.own_scores import carrying, checked_texts, narrowed, needs_vectors
from rag_core.retrieval.search import checked_docs, checked_top_docs

if TYPE_CHECKING:
    from rag_core.retrieval.where import Where

Score = Callable[[list[str], list[str]], Any]  # n questions, n passages -> n scores


class RerankedIndex:
    """More documents than wanted are found by an index, and those are ranked by a function that reads
    question and passage together; an `Index`.

    A passage is read as "title text". Its scores are the logits of p(z|x): vectors carry them (see
    `rag_core.retrieval.own_scores`). Equal scores keep the index's order.

    Args:
        index: any `Index`.
        score: a cross-encoder that `load_cross_encoder` gave, or any function of n questions and n
            passages that returns n finite numbers, the larger the better.
        factor: candidates for each document wanted.

    Raises:
        TypeError, ValueError: `score` cannot be called, or `factor` is no whole number of at least
            1.
    """

    needs_text = True
    own_scores = True

    def __init__(self, index: Any, score: Score, *, factor: int = 10) -> None:
        if not callable(score):
            raise TypeError(
                f"score must be a function of questions and passages, got {score!r:.80}. Give e.g. "
                "load_cross_encoder(NAME)."
            )
        self.index = index
        self.score = score
        self.factor = whole(1)("factor", factor)

    def __getattr__(self, name: str) -> Any:
        # No index is there yet while a copy is made; and a folder that the index wrote would come
        # back as that index alone.
        if name in ("index", "__setstate__", "save"):
            raise AttributeError(name)
        return getattr(self.index, name)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index!r}, {self.score!r}, factor={self.factor})"

    @property
    def needs_vectors(self) -> bool:
        """Whether the index searches by vectors."""
        return needs_vectors(self.index)

    def is_initialized(self) -> bool:
        """Whether the index is loaded."""
        return self.index.is_initialized()

    def init_index(self) -> None:
        """Load the index."""
        self.index.init_index()

    def where(self, where: Where) -> RerankedIndex:
        """The passages that conditions hold for, as an index of its own; see `FaissIndex.where`.

        Raises:
            ValueError: the index has no `where`.
        """
        return RerankedIndex(narrowed(self.index, where), self.score, factor=self.factor)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """As the index has them."""
        return self.index.get_doc_dicts(doc_ids)

    def get_top_docs(
        self,
        question_hidden_states: np.ndarray,
        n_docs: int = 5,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`.

        Args:
            question_hidden_states: (B, D).
            n_docs: N.
            question_text: B questions.

        Raises:
            ValueError: no texts, the index returned anything else than `Index` says, or `score`
                than finite numbers.
        """
        n_docs = checked_n_docs(n_docs, 5)
        queries = np.asarray(question_hidden_states, np.float32)
        texts = checked_texts(question_text, len(queries))
        ids, _ = checked_top_docs(self.index, queries, n_docs * self.factor, texts)  # (B, C)
        is_hit = ids >= 0
        scores = np.full(ids.shape, -np.inf)
        scores[is_hit] = self._scores(texts, ids, is_hit)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]  # (B, N)
        ids = np.take_along_axis(ids, best, axis=1)
        scores = np.take_along_axis(scores, best, axis=1)
        return ids, carrying(np.where(ids < 0, 0, scores), queries)  # (B, N), (B, N, D)

    def _scores(self, texts: list[str], ids: np.ndarray, is_hit: np.ndarray) -> np.ndarray:
        """Of all candidates that were found, question by question, in one call."""
        questions: list[str] = []
        passages: list[str] = []
        for text, rows, hits in zip(texts, ids, is_hit, strict=True):
            if not hits.any():
                continue
            (doc,) = checked_docs(self.index, rows[hits][None])
            passages += map(str.strip, map(passage_text, doc["title"], doc["text"]))
            questions += [text] * int(hits.sum())
        scores = np.asarray(to_numpy(self.score(questions, passages)), np.float64).reshape(-1)
        if scores.shape != (len(passages),) or not np.isfinite(scores).all():
            raise ValueError(
                f"score must return {len(passages)} finite numbers, one a passage, got "
                f"{scores.shape} with {int(np.isfinite(scores).sum())} of them finite."
            )
        return scores
