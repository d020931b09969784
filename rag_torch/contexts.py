"""What a RAG model reads: documents joined with questions and their scores, given or retrieved, and checked.

Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rag_torch.marginalize import widen


@dataclass
class Contexts:
    """Contexts and document scores of a batch of questions.

    Attributes:
        context_input_ids: (B*N, S), row b * N + d; None where only encoder outputs were given.
        context_attention_mask: (B*N, S), 1 = a real token.
        doc_scores: (B, N) float32 or wider, -inf for a missing document.
        n_docs: N.
        question_hidden_states: question vectors (B, D) if the question was encoded.
        retrieved: what the retriever returned, if it was asked.
        question_outputs: the question encoder's whole output, if it ran.
    """

    context_input_ids: Tensor | None
    context_attention_mask: Tensor | None
    doc_scores: Tensor
    n_docs: int
    question_hidden_states: Tensor | None = None
    retrieved: Any = None
    question_outputs: Any = None

    def trimmed(self) -> Contexts:
        """The same without the columns on the right that are padding in every row (they change no result)."""
        if self.context_attention_mask is None:
            return self
        used = self.context_attention_mask.bool().any(0).nonzero()
        length = max(1, int(used[-1]) + 1 if len(used) else 1)
        ids, mask = (
            None if each is None else each[:, :length] for each in (self.context_input_ids, self.context_attention_mask)
        )
        return replace(self, context_input_ids=ids, context_attention_mask=mask)


def given_contexts(
    context_input_ids: Tensor | None,
    context_attention_mask: Tensor | None,
    doc_scores: Tensor | None,
    n_docs: int,
    has_retriever: bool,
) -> Contexts | None:
    """The caller's contexts, checked; None if there are none and a retriever can find some.

    Raises:
        ValueError: only some of the three are given, none and there is no retriever, or their shapes disagree.
    """
    parts = {
        "context_input_ids": context_input_ids,
        "context_attention_mask": context_attention_mask,
        "doc_scores": doc_scores,
    }
    missing = [name for name, value in parts.items() if value is None]
    if context_input_ids is None and context_attention_mask is None and doc_scores is None:
        if has_retriever:
            return None
        raise ValueError(
            "this model has no retriever, so context_input_ids, context_attention_mask and doc_scores must all be "
            "given (a retriever's call returns the first two), or a retriever set with set_retriever(...)"
        )
    if context_input_ids is None or context_attention_mask is None or doc_scores is None:
        given = [name for name in parts if name not in missing]
        raise ValueError(
            "context_input_ids, context_attention_mask and doc_scores must be given together or not at all, "
            f"got {' and '.join(given)} without {' and '.join(missing)}"
        )
    scores = given_scores(doc_scores, n_docs)
    rows = scores.shape[0] * n_docs
    if context_input_ids.dim() != 2 or context_input_ids.shape[0] != rows:
        raise ValueError(
            f"context_input_ids must have B * n_docs = {scores.shape[0]} * {n_docs} = {rows} rows (doc_scores are "
            f"{tuple(scores.shape)}), got shape {tuple(context_input_ids.shape)}"
        )
    if context_attention_mask.shape != context_input_ids.shape:
        raise ValueError(
            f"context_attention_mask must have the shape of context_input_ids, {tuple(context_input_ids.shape)}, "
            f"got {tuple(context_attention_mask.shape)}"
        )
    return Contexts(context_input_ids, context_attention_mask, scores, n_docs)


def given_scores(doc_scores: Tensor | None, n_docs: int) -> Tensor:
    """The caller's document scores (B, N), checked, in float32 or wider.

    Raises:
        ValueError: missing, or not (B, n_docs).
    """
    if doc_scores is None:
        raise ValueError("doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of those contexts")
    if doc_scores.dim() != 2 or doc_scores.shape[1] != n_docs:
        raise ValueError(
            f"doc_scores must be (B, n_docs) with n_docs = {n_docs}, got shape {tuple(doc_scores.shape)}; pass n_docs= "
            "if the contexts hold another number of documents than the config"
        )
    return widen(doc_scores)


def checked_n_docs(n_docs: int | None, default: int) -> int:
    """`n_docs`, or the config's.

    Raises:
        ValueError: not a positive integer.
    """
    n_docs = default if n_docs is None else n_docs
    if isinstance(n_docs, bool) or int(n_docs) != n_docs or n_docs < 1:
        raise ValueError(f"n_docs must be a positive integer, got {n_docs!r}")
    return int(n_docs)


def checked_questions(input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """The questions' ids (B, Q), if they can be encoded.

    Raises:
        ValueError: no ids, not (B, Q), empty, or a mask of another shape.
    """
    if input_ids is None:
        raise ValueError("input_ids must be given to retrieve documents (or pass the three context arguments)")
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a torch.Tensor, got {type(input_ids).__name__}: use return_tensors='pt'")
    if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must be (B, Q) with at least one token, got shape {tuple(input_ids.shape)}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    return input_ids


def to_device(value: Any, device: torch.device) -> Tensor:
    """A tensor or array as a tensor on `device`."""
    return torch.as_tensor(value).to(device)
