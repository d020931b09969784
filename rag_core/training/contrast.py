"""Contrastive training of a run: its passages, and their vectors in every forward pass.

Letters: B questions, C passages of a batch in all processes, P passages of a run, N documents a
question, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.backends import load_backend, to_numpy
from rag_core.training.batch import Batch
from rag_core.training.data import Example
from rag_core.training.losses import ForwardPass
from rag_core.training.passages import Lessons

if TYPE_CHECKING:
    from rag_core.training.run import TrainingRun

# Passages in memory at a time, as padded ids and layers' values.
_EMBEDDED_AT_ONCE = 32


class Contrast:
    """What a run with `retriever_loss="contrastive"` reads besides.

    Args:
        run: its model is as it was before the first step: negatives are mined with that, also
            where the run goes on from a checkpoint.

    Attributes:
        lessons: the examples with their passages.

    Raises:
        ValueError: see `Lessons`; or passages that nothing here can embed.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        index = run.retriever.index
        run.retriever.init_retrieval()
        with run.answering():
            at_once = run.config.batch_size * run.processes.count
            self.lessons = Lessons(run.examples, run.config, index, self._search, at_once)
            self._vectors: np.ndarray | None = None
            if run.config.context_encoder == "frozen":
                self._vectors = self.lessons.vectors(index, self._embed)

    def summary(self) -> str:
        """What people should know of the passages."""
        lessons = self.lessons
        words = f"{len(lessons.pool.texts):,} passages to tell apart"
        if lessons.mined:
            words += f", {lessons.mined:,} of the hard negatives found in the index"
        if lessons.left_out:
            words += (
                f". {lessons.left_out:,} questions are left out, as no passage that answers them is "
                "named or found"
            )
        return f"{words}."

    def add_to(self, forward: ForwardPass, batch: Batch) -> None:
        """Put the batch's questions and the passages of all processes into its forward pass. Each
        process encodes some of the passages.

        Raises:
            ValueError: no question has a passage to be told from its own.
        """
        run = self._run
        compared = self.lessons.compare(batch.of_all or batch.examples)
        own = slice(batch.first, batch.first + len(batch.examples))
        forward.passage_vectors = self._passage_vectors(compared.passages)
        forward.positive = run.tensor(compared.positive[own])
        forward.masked = run.tensor(compared.masked[own])
        if forward.contexts is not None:
            forward.question_vectors = forward.contexts.question_hidden_states
        if forward.question_vectors is None:
            forward.question_vectors = run.question_vectors(batch, learns=True)

    def _passage_vectors(self, passages: Sequence[int]) -> Any:
        """(C, D): by the encoder as it is, or as they were at the start of the run."""
        if self._vectors is not None:
            return self._run.tensor(self._vectors[list(passages)])
        mine = self._run.processes.equally(passages)
        vectors = self._run.gather(self._encoded(*self.lessons.texts(mine), learns=True))
        return vectors[: len(passages)]

    def _encoded(self, titles: list[str], texts: list[str], learns: bool) -> Any:
        """Vectors (C, D) by the model's context encoder."""
        run = self._run
        arrays = run.retriever.tokenized_docs(titles, texts, "np")
        tokens = {name: run.tensor(array) for name, array in arrays.items()}
        mode = run.mode(learns and run.config.context_encoder == "all")
        return run.model.rag.document_vectors(tokens, **mode)

    def _search(
        self, examples: Sequence[Example], n_docs: int
    ) -> tuple[np.ndarray, Any, np.ndarray]:
        """Ids (B, N), documents and vectors (B, N, D) of what the model finds for some questions."""
        run = self._run
        questions = to_numpy(run.question_vectors(run.batch(examples), learns=False))
        vectors, ids, docs = run.retriever.retrieve(questions.astype(np.float32), n_docs)
        return ids, docs, vectors

    def _embed(self, titles: list[str], texts: list[str]) -> np.ndarray:
        """Vectors (n, D) of passages that the index does not give.

        Raises:
            ValueError: there is no encoder here that makes them.
        """
        run = self._run
        if run.model.rag.ctx_encoder is None:
            if run.origin is None:
                raise ValueError(
                    f"the index must give the vectors of all passages where the model has no "
                    f"context encoder, got none for {len(texts):,} passages, the first "
                    f"{(titles[0] or texts[0])!r:.80}. Give it the encoder that made the others: "
                    "model.set_context_encoder_for_training(encoder), and its tokenizer to the "
                    "retriever: retriever.set_ctx_encoder_tokenizer(tokenizer)"
                )
            base = run.origin.base
            encoder = load_backend(run.backend).load_encoder(
                base.encoder_source, **base.encoder_options
            )
            base.check_encoder(encoder.embed)
            vectors: np.ndarray = encoder.embed(titles, texts)
            return vectors
        parts = []
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            part = slice(start, start + _EMBEDDED_AT_ONCE)
            parts.append(to_numpy(self._encoded(titles[part], texts[part], learns=False)))
        return np.concatenate(parts)
