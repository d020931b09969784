"""How TensorFlow looks at what a caller hands a model: tensors, ids, masks, contexts and scores.

The checks over it stand in `rag_core.modeling.InputChecks`; here they go by their names. Tensors,
NumPy arrays and lists are taken, and become tensors here. Values are looked at only outside of
graphs.

Letters: B questions, N documents a question, Q question length, R rows, S context length, D vector
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.arguments import TensorFacts
from rag_core.backends import to_numpy
from rag_core.modeling import ContextsBase, InputChecks
from rag_tf.marginalize import masked_fill, widen

# Columns within which rows are of like length: few enough kinds, and little padding.
_LIKE = 32


def used_length(mask: tf.Tensor) -> tf.Tensor:
    """How many columns of a mask (R, S) are left without those on the right that are padding in
    every row; 1 or more.
    """
    used = tf.reduce_any(tf.cast(mask, tf.bool), 0)  # (S,)
    ends = tf.range(1, tf.shape(used)[0] + 1)
    return tf.maximum(1, tf.reduce_max(tf.where(used, ends, 1)))


def rows_of_like_length(mask: np.ndarray) -> list[np.ndarray]:
    """Numbers of rows of a mask (R, S), those together that end within the same 32 columns."""
    columns = np.arange(1, mask.shape[1] + 1)
    lengths = np.max(mask.astype(bool) * columns, axis=1)  # (R,)
    kinds = -(-lengths // _LIKE)
    return [np.flatnonzero(kinds == kind).astype(np.int32) for kind in np.unique(kinds)]


def shape_of(value: Any) -> tuple[int | None, ...] | None:
    """The shape as far as it is known, None in place of unknown sizes (or for all of it)."""
    if value.shape.rank is None:
        return None
    return tuple(value.shape)


class Contexts(ContextsBase):
    """See `rag_core.modeling.ContextsBase`."""

    used_length = staticmethod(used_length)


class TensorChecks(InputChecks):
    """See `rag_core.modeling.InputChecks`."""

    contexts = Contexts
    masked_fill = staticmethod(masked_fill)
    widen = staticmethod(widen)

    def tensor(self, name: str, value: Any) -> tf.Tensor:
        if isinstance(value, tf.Tensor):
            return value
        if isinstance(value, list | tuple | np.ndarray | np.generic | tf.Variable):
            try:
                tensor = self.to_device(value)
            except (TypeError, ValueError):  # ragged
                tensor = None
            if tensor is not None and tensor.dtype != tf.string:
                return tensor
        raise TypeError(
            f"{name} must be a tf.Tensor, got {type(value).__name__}: use return_tensors='tf'"
        )

    def to_device(self, value: Any, like: tf.Tensor | None = None) -> tf.Tensor:
        """A tensor, array or nested lists as a tensor, placed by TensorFlow.

        Numbers in lists become int64 or float32.
        """
        if isinstance(value, tf.Tensor | tf.Variable):
            return tf.convert_to_tensor(value)
        array = to_numpy(value)
        if isinstance(value, list | tuple) and array.dtype == np.float64:
            array = array.astype(np.float32)
        return tf.convert_to_tensor(array)

    def facts(self, name: str, value: tf.Tensor) -> TensorFacts:
        kind = "i"
        if value.dtype.is_floating:
            kind = "f"
        elif value.dtype.is_complex:
            kind = "c"
        elif value.dtype.is_bool:
            kind = "b"
        return TensorFacts(name, shape_of(value), kind, value.dtype.name)

    def can_look(self) -> bool:
        return tf.executing_eagerly()

    def looking_is_free(self, value: tf.Tensor) -> bool:
        return True  # TensorFlow waits for a device at most operations anyway

    def bounds(self, tensors: Sequence[tf.Tensor]) -> list[tuple[float, float]]:
        arrays = [tensor.numpy() for tensor in tensors]
        if not all(array.size for array in arrays):
            return []
        return [(array.min().item(), array.max().item()) for array in arrays]

    def has_finite_rows(self, scores: tf.Tensor) -> bool:
        # the largest of a row is NaN where any is
        return bool(np.isfinite(scores.numpy().max(1)).all())

    def table_rows(self, table: Any) -> int:
        return table.num_embeddings


CHECKS = TensorChecks()

check_text = CHECKS.check_text
checked_ids = CHECKS.checked_ids
checked_mask = CHECKS.checked_mask
checked_questions = CHECKS.checked_questions
checked_tensor = CHECKS.tensor
facts = CHECKS.facts
table_size = CHECKS.table_size
to_device = CHECKS.to_device


def search_in_graph(
    retriever: Any,
    questions: tf.Tensor,
    vectors: tf.Tensor,
    options: dict[str, Any],
    tokenized: bool,
) -> dict[str, tf.Tensor]:
    """Search as a node of the caller's graph, which calls back to Python: such a graph cannot be
    exported.

    Args:
        retriever: a `RagRetriever`, or any callable like it.
        questions: (B, Q).
        vectors: (B, D).
        options: `n_docs` and what else the retriever is called with.
        tokenized: whether it returns `tokenized_doc_ids` and `tokenized_doc_attention_mask`.

    Returns:
        What the retriever returns, as tensors; always with `doc_mask`.
    """
    dtypes: dict[str, Any] = {
        "context_input_ids": tf.int64,
        "context_attention_mask": tf.int64,
        "retrieved_doc_embeds": tf.float32,
        "doc_ids": tf.int64,
        "doc_mask": tf.bool,
    }
    if vectors.dtype == tf.float64:
        dtypes["retrieved_doc_embeds"] = tf.float64
    if tokenized:
        dtypes |= {"tokenized_doc_ids": tf.int64, "tokenized_doc_attention_mask": tf.int64}
        tokenizer = getattr(retriever, "ctx_encoder_tokenizer", None)
        if getattr(tokenizer, "keeps_segments", False):
            dtypes["tokenized_doc_token_type_ids"] = tf.int64

    def search(ids: np.ndarray, question_vectors: np.ndarray) -> list[np.ndarray]:
        retrieved = retriever(ids, question_vectors, return_tensors="np", **options)
        all_found = np.ones(np.shape(retrieved["doc_ids"]), bool)
        retrieved = {"doc_mask": all_found, **retrieved}
        # A node of a graph returns the types that it was declared with.
        return [
            to_numpy(retrieved[name]).astype(dtype.as_numpy_dtype) for name, dtype in dtypes.items()
        ]

    inputs = (questions, tf.cast(vectors, tf.float32))
    tensors = tf.numpy_function(search, inputs, list(dtypes.values()))
    batch = questions.shape[0]
    n_docs = options["n_docs"]
    shapes = {
        "retrieved_doc_embeds": (batch, n_docs, vectors.shape[1]),
        "doc_ids": (batch, n_docs),
        "doc_mask": (batch, n_docs),
    }
    rows = None
    if batch is not None:
        rows = batch * n_docs
    return {
        name: tf.ensure_shape(tensor, shapes.get(name, (rows, None)))
        for name, tensor in zip(dtypes, tensors, strict=True)
    }
