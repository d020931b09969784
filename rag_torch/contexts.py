"""What a RAG model reads: documents joined with questions and their scores, given or retrieved, and checked.

Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
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
        length = used_length(self.context_attention_mask)
        ids, mask = (
            None if each is None else each[:, :length] for each in (self.context_input_ids, self.context_attention_mask)
        )
        return replace(self, context_input_ids=ids, context_attention_mask=mask)


def used_length(mask: Tensor) -> int:
    """How many columns of a mask (R, S) are left without those on the right that are padding in every row; 1 or more.

    Where a value can't be read (torch.compile, the meta device), all of them.
    """
    if mask.is_meta or torch.compiler.is_compiling():
        return mask.shape[1]
    used = mask.bool().any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def given_contexts(
    context_input_ids: Tensor | None,
    context_attention_mask: Tensor | None,
    doc_scores: Tensor | None,
    n_docs: int,
    has_retriever: bool,
    vocabulary: int | None = None,
) -> Contexts | None:
    """The caller's contexts, checked; None if there are none and a retriever can find some.

    Raises:
        TypeError: something other than tensors, or ids that are no integers.
        ValueError: only some of the three are given, none and there is no retriever, their shapes disagree, or an id is
            outside the generator's `vocabulary`.
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
    checked_ids("context_input_ids", context_input_ids, vocabulary)
    if context_input_ids.dim() != 2 or context_input_ids.shape[0] != rows or not context_input_ids.shape[1]:
        raise ValueError(
            f"context_input_ids must have B * n_docs = {scores.shape[0]} * {n_docs} = {rows} rows (doc_scores are "
            f"{tuple(scores.shape)}) of one token or more, got shape {tuple(context_input_ids.shape)}"
        )
    _check_tensor("context_attention_mask", context_attention_mask)
    if context_attention_mask.shape != context_input_ids.shape:
        raise ValueError(
            f"context_attention_mask must have the shape of context_input_ids, {tuple(context_input_ids.shape)}, "
            f"got {tuple(context_attention_mask.shape)}"
        )
    return Contexts(context_input_ids, context_attention_mask, scores, n_docs)


def given_scores(doc_scores: Tensor | None, n_docs: int) -> Tensor:
    """The caller's document scores (B, N), checked, in float32 or wider.

    Raises:
        TypeError: not a tensor.
        ValueError: missing, not (B, n_docs), NaN or plus infinity, or a question without a single document.
    """
    if doc_scores is None:
        raise ValueError("doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of those contexts")
    _check_tensor("doc_scores", doc_scores)
    if doc_scores.dim() != 2 or doc_scores.shape[1] != n_docs or not doc_scores.shape[0]:
        raise ValueError(
            f"doc_scores must be (B, n_docs) with n_docs = {n_docs}, got shape {tuple(doc_scores.shape)}; pass n_docs= "
            "if the contexts hold another number of documents than the config"
        )
    scores = widen(doc_scores)
    # torch.compile can't branch on a value. The largest of a row is NaN where any is.
    if not torch.compiler.is_compiling() and not bool(scores.amax(1).isfinite().all()):
        raise ValueError(
            "doc_scores must be numbers, or -inf for a missing document, with one number or more for each question; "
            f"got {doc_scores.tolist()!s:.200}"
        )
    return scores


def table_size(module: Any) -> int | None:
    """How many ids a module's token table holds; None if it doesn't say."""
    try:
        return int(module.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def checked_ids(name: str, ids: Any, size: int | None = None) -> Tensor:
    """Token ids that a table of `size` rows can look up.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: an id outside 0 to `size` - 1.
    """
    _check_tensor(name, ids)
    if ids.dtype not in (torch.long, torch.int):
        raise TypeError(f"{name} must hold integer ids (torch.long), got {ids.dtype}")
    if size is None or not ids.numel() or ids.is_meta or torch.compiler.is_compiling():
        return ids
    low, high = torch.stack(ids.aminmax()).tolist()  # both in one wait for the device
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} must lie in the model's vocabulary, 0 to {size - 1}; got ids from {low} to {high}. The tokenizer "
            "must belong to the model (or resize_token_embeddings must follow tokens added to it). If a text spells a "
            "special token that the model lacks, load the tokenizer with split_special_tokens=True"
        )
    return ids


def checked_labels(labels: Any, decoder_input_ids: Any, pad_token_id: int, vocabulary: int | None) -> Tensor:
    """Labels (B, T) with pads for -100.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: an id that is neither in the vocabulary nor -100, or another shape than that of the decoder's input.
    """
    labels = checked_ids("labels", labels)
    labels = labels.masked_fill(labels == -100, pad_token_id)
    checked_ids("labels (but for -100)", labels, vocabulary)
    fed = tuple(getattr(decoder_input_ids, "shape", labels.shape))
    if fed != tuple(labels.shape):
        raise ValueError(f"labels must have the shape of decoder_input_ids, {fed}, got {tuple(labels.shape)}")
    return labels


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}: use return_tensors='pt'")


def checked_n_docs(n_docs: int | None, default: int) -> int:
    """`n_docs`, or the config's.

    Raises:
        ValueError: not a positive integer.
    """
    n_docs = default if n_docs is None else n_docs
    if isinstance(n_docs, bool) or not isinstance(n_docs, Integral | float) or int(n_docs) != n_docs or n_docs < 1:
        raise ValueError(f"n_docs must be a positive integer, got {n_docs!r}")
    return int(n_docs)


def checked_questions(input_ids: Tensor | None, attention_mask: Tensor | None, vocabulary: int | None = None) -> Tensor:
    """The questions' ids (B, Q), if they can be encoded.

    Raises:
        TypeError: something other than tensors, or ids that are no integers.
        ValueError: no ids, not (B, Q), empty, outside the encoder's `vocabulary`, or a mask of another shape.
    """
    if input_ids is None:
        raise ValueError("input_ids must be given to retrieve documents (or pass the three context arguments)")
    checked_ids("input_ids", input_ids, vocabulary)
    if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must be (B, Q) with at least one token, got shape {tuple(input_ids.shape)}")
    if attention_mask is not None:
        _check_tensor("attention_mask", attention_mask)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
                f"got {tuple(attention_mask.shape)}"
            )
    return input_ids


def to_device(value: Any, device: torch.device) -> Tensor:
    """A tensor or array as a tensor on `device`."""
    return torch.as_tensor(value).to(device)
