"""What a RAG model reads: documents joined with questions and their scores, given or retrieved, and checked.

Tensors, NumPy arrays and lists are taken, and become tensors here. Values are looked at only outside of graphs, shapes
as far as they are known.
Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.backends import to_numpy
from rag_tf.marginalize import masked_fill, widen


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

    context_input_ids: tf.Tensor | None
    context_attention_mask: tf.Tensor | None
    doc_scores: tf.Tensor
    n_docs: int
    question_hidden_states: tf.Tensor | None = None
    retrieved: Any = None
    question_outputs: Any = None

    def trimmed(self) -> Contexts:
        """The same without the columns on the right that are padding in every row (they change no result)."""
        mask = self.context_attention_mask
        if mask is None:
            return self
        used = tf.reduce_any(tf.cast(mask, tf.bool), 0)  # (S,)
        ends = tf.range(1, tf.shape(used)[0] + 1)
        length = tf.maximum(1, tf.reduce_max(tf.where(used, ends, 1)))
        ids = self.context_input_ids
        ids = None if ids is None else ids[:, :length]
        return replace(self, context_input_ids=ids, context_attention_mask=mask[:, :length])


def given_contexts(
    context_input_ids: Any,
    context_attention_mask: Any,
    doc_scores: Any,
    n_docs: int,
    has_retriever: bool,
    vocabulary: int | None = None,
) -> Contexts | None:
    """The caller's contexts, checked; None if there are none and a retriever can find some.

    Raises:
        TypeError: something other than tensors and arrays, or ids that are no integers.
        ValueError: only some of the three are given, none and there is no retriever, their shapes disagree, or an id is
            outside the generator's `vocabulary`.
    """
    parts = {
        "context_input_ids": context_input_ids,
        "context_attention_mask": context_attention_mask,
        "doc_scores": doc_scores,
    }
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts):
        if has_retriever:
            return None
        raise ValueError(
            "this model has no retriever, so context_input_ids, context_attention_mask and doc_scores must all be "
            "given (a retriever's call returns the first two), or a retriever set with set_retriever(...)"
        )
    if missing:
        given = [name for name in parts if name not in missing]
        raise ValueError(
            "context_input_ids, context_attention_mask and doc_scores must be given together or not at all, "
            f"got {' and '.join(given)} without {' and '.join(missing)}"
        )
    scores = given_scores(doc_scores, n_docs)
    questions = scores.shape[0]
    rows = None if questions is None else questions * n_docs
    ids = checked_ids("context_input_ids", context_input_ids, vocabulary)
    if differs(ids, (rows, None)) or ids.shape[1] == 0:
        raise ValueError(
            f"context_input_ids must have B * n_docs = {questions} * {n_docs} = {rows} rows (doc_scores are "
            f"{shape_of(scores)}) of one token or more, got shape {shape_of(ids)}"
        )
    mask = checked_tensor("context_attention_mask", context_attention_mask)
    if differs(mask, shape_of(ids)):
        raise ValueError(
            f"context_attention_mask must have the shape of context_input_ids, {shape_of(ids)}, got {shape_of(mask)}"
        )
    return Contexts(ids, mask, scores, n_docs)


def given_scores(doc_scores: Any, n_docs: int) -> tf.Tensor:
    """The caller's document scores (B, N), checked, in float32 or wider.

    Raises:
        TypeError: not a tensor or array.
        ValueError: missing, not (B, n_docs), NaN or plus infinity, or a question without a single document.
    """
    if doc_scores is None:
        raise ValueError("doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of those contexts")
    doc_scores = checked_tensor("doc_scores", doc_scores)
    if differs(doc_scores, (None, n_docs)) or doc_scores.shape[0] == 0:
        raise ValueError(
            f"doc_scores must be (B, n_docs) with n_docs = {n_docs}, got shape {shape_of(doc_scores)}; pass n_docs= "
            "if the contexts hold another number of documents than the config"
        )
    scores = widen(doc_scores)
    if tf.executing_eagerly():
        best = scores.numpy().max(1)  # NaN where any is
        if not np.isfinite(best).all():
            raise ValueError(
                "doc_scores must be numbers, or -inf for a missing document, with one number or more for each "
                f"question; got {doc_scores.numpy().tolist()!s:.200}"
            )
    return scores


def table_size(module: Any) -> int | None:
    """How many ids a module's token table holds; None if it doesn't say."""
    try:
        return int(module.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def checked_ids(name: str, ids: Any, size: int | None = None) -> tf.Tensor:
    """Token ids that a table of `size` rows can look up.

    Raises:
        TypeError: not integers.
        ValueError: an id outside 0 to `size` - 1.
    """
    ids = checked_tensor(name, ids)
    if ids.dtype not in (tf.int64, tf.int32):
        raise TypeError(f"{name} must hold integer ids (tf.int64), got tf.{ids.dtype.name}")
    if size is None or not tf.executing_eagerly():
        return ids
    values = ids.numpy()
    if not values.size:
        return ids
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} must lie in the model's vocabulary, 0 to {size - 1}; got ids from {low} to {high}. The tokenizer "
            "must belong to the model (or resize_token_embeddings must follow tokens added to it). If a text spells a "
            "special token that the model lacks, load the tokenizer with split_special_tokens=True"
        )
    return ids


def checked_labels(labels: Any, decoder_input_ids: Any, pad_token_id: int, vocabulary: int | None) -> tf.Tensor:
    """Labels (B, T) with pads for -100.

    Raises:
        TypeError: not integers.
        ValueError: an id that is neither in the vocabulary nor -100, or another shape than that of the decoder's input.
    """
    labels = checked_ids("labels", labels)
    labels = masked_fill(labels, labels == -100, pad_token_id)
    checked_ids("labels (but for -100)", labels, vocabulary)
    if decoder_input_ids is not None:
        fed = checked_tensor("decoder_input_ids", decoder_input_ids)
        if differs(labels, shape_of(fed)):
            raise ValueError(
                f"labels must have the shape of decoder_input_ids, {shape_of(fed)}, got {shape_of(labels)}"
            )
    return labels


def checked_tensor(name: str, value: Any) -> tf.Tensor:
    """A tensor, a variable, an array or nested lists of numbers as a tensor.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, tf.Tensor):
        return value
    if isinstance(value, list | tuple | np.ndarray | np.generic | tf.Variable):
        try:
            tensor = to_device(value)
        except (TypeError, ValueError):  # ragged
            tensor = None
        if tensor is not None and tensor.dtype != tf.string:
            return tensor
    raise TypeError(f"{name} must be a tf.Tensor, got {type(value).__name__}: use return_tensors='tf'")


def shape_of(value: Any) -> tuple[int | None, ...] | None:
    """The shape as far as it is known, None in place of unknown sizes (or for all of it)."""
    return None if value.shape.rank is None else tuple(value.shape)


def differs(value: tf.Tensor, wanted: tuple[int | None, ...] | None) -> bool:
    """Whether a shape is known not to be the wanted one; None = any size, or not known."""
    shape = shape_of(value)
    if shape is None or wanted is None:
        return False
    known = zip(shape, wanted, strict=False)
    return len(shape) != len(wanted) or any(None not in each and each[0] != each[1] for each in known)


def checked_n_docs(n_docs: int | None, default: int) -> int:
    """`n_docs`, or the config's.

    Raises:
        ValueError: not a positive integer.
    """
    n_docs = default if n_docs is None else n_docs
    if isinstance(n_docs, bool) or not isinstance(n_docs, Integral | float) or int(n_docs) != n_docs or n_docs < 1:
        raise ValueError(f"n_docs must be a positive integer, got {n_docs!r}")
    return int(n_docs)


def checked_questions(input_ids: Any, attention_mask: Any, vocabulary: int | None = None) -> tf.Tensor:
    """The questions' ids (B, Q), if they can be encoded.

    Raises:
        TypeError: something other than tensors and arrays, or ids that are no integers.
        ValueError: no ids, not (B, Q), empty, outside the encoder's `vocabulary`, or a mask of another shape.
    """
    if input_ids is None:
        raise ValueError("input_ids must be given to retrieve documents (or pass the three context arguments)")
    input_ids = checked_ids("input_ids", input_ids, vocabulary)
    if differs(input_ids, (None, None)) or 0 in (shape_of(input_ids) or ()):
        raise ValueError(f"input_ids must be (B, Q) with at least one token, got shape {shape_of(input_ids)}")
    if attention_mask is not None:
        mask = checked_tensor("attention_mask", attention_mask)
        if differs(mask, shape_of(input_ids)):
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {shape_of(input_ids)}, got {shape_of(mask)}"
            )
    return input_ids


def search_in_graph(
    retriever: Any, questions: tf.Tensor, vectors: tf.Tensor, options: dict[str, Any], tokenized: bool
) -> dict[str, tf.Tensor]:
    """A search as a node of the caller's graph, which calls back to Python: such a graph cannot be exported.

    Args:
        retriever: a `RagRetriever`, or any callable like it.
        questions: (B, Q).
        vectors: (B, D).
        options: `n_docs` and what else the retriever is called with.
        tokenized: whether it returns `tokenized_doc_ids` and `tokenized_doc_attention_mask`.

    Returns:
        What the retriever returns, as tensors; always with `doc_mask`.
    """
    kinds: dict[str, Any] = {
        "context_input_ids": tf.int64,
        "context_attention_mask": tf.int64,
        "retrieved_doc_embeds": tf.float64 if vectors.dtype == tf.float64 else tf.float32,
        "doc_ids": tf.int64,
        "doc_mask": tf.bool,
    }
    if tokenized:
        kinds |= {"tokenized_doc_ids": tf.int64, "tokenized_doc_attention_mask": tf.int64}

    def search(ids: np.ndarray, asked: np.ndarray) -> list[np.ndarray]:
        found = retriever(ids, asked, return_tensors="np", **options)
        whole = {"doc_mask": np.ones(np.shape(found["doc_ids"]), bool), **found}
        return [to_numpy(whole[name]).astype(kind.as_numpy_dtype) for name, kind in kinds.items()]

    found = tf.numpy_function(search, (questions, tf.cast(vectors, tf.float32)), list(kinds.values()))
    batch, n_docs = questions.shape[0], options["n_docs"]
    shapes = {"retrieved_doc_embeds": (batch, n_docs, vectors.shape[1]), "doc_ids": (batch, n_docs)}
    shapes["doc_mask"] = shapes["doc_ids"]
    rows = (None if batch is None else batch * n_docs, None)
    return {name: tf.ensure_shape(tensor, shapes.get(name, rows)) for name, tensor in zip(kinds, found, strict=True)}


def to_device(value: Any) -> tf.Tensor:
    """A tensor, array or nested lists as a tensor, placed by TensorFlow; numbers in lists become int64 or float32."""
    if isinstance(value, tf.Tensor | tf.Variable):
        return tf.convert_to_tensor(value)
    array = to_numpy(value)
    if isinstance(value, list | tuple) and array.dtype == np.float64:
        array = array.astype(np.float32)
    return tf.convert_to_tensor(array)
