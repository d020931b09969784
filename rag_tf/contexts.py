"""What a RAG model reads: documents joined with questions and their scores, given or retrieved, and
checked.

Tensors, NumPy arrays and lists are taken, and become tensors here. Values are looked at only
outside of graphs, shapes as far as they are known.
Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core import arguments
from rag_core.arguments import Given
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
        """The same without the columns on the right that are padding in every row (they change
        no result).
        """
        mask = self.context_attention_mask
        if mask is None:
            return self
        used = tf.reduce_any(tf.cast(mask, tf.bool), 0)  # (S,)
        ends = tf.range(1, tf.shape(used)[0] + 1)
        length = tf.maximum(1, tf.reduce_max(tf.where(used, ends, 1)))
        ids = self.context_input_ids
        ids = None if ids is None else ids[:, :length]
        return replace(self, context_input_ids=ids, context_attention_mask=mask[:, :length])


def facts(name: str, value: tf.Tensor) -> Given:
    """What can be told of a tensor without looking at its numbers."""
    kind = "i"
    if value.dtype.is_floating:
        kind = "f"
    elif value.dtype.is_complex:
        kind = "c"
    elif value.dtype.is_bool:
        kind = "b"
    return Given(name, shape_of(value), kind, value.dtype.name)


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
        ValueError: only some of the three are given, none and there is no retriever, their shapes
            disagree, an id is outside the generator's `vocabulary`, or the mask holds other numbers
            than 0 and 1.
    """
    parts = {
        "context_input_ids": context_input_ids,
        "context_attention_mask": context_attention_mask,
        "doc_scores": doc_scores,
    }
    if not arguments.check_contexts(parts, has_retriever):
        return None
    scores = given_scores(doc_scores, n_docs)
    ids = checked_tensor("context_input_ids", context_input_ids)
    told = facts("context_input_ids", ids)
    arguments.check_integers(told)
    arguments.check_context_rows(told, facts("doc_scores", scores), n_docs)
    mask = checked_tensor("context_attention_mask", context_attention_mask)
    arguments.check_mask(facts("context_attention_mask", mask), told.shape, told.name)
    check_values(told.name, ids, vocabulary, "context_attention_mask", mask)
    return Contexts(ids, mask, scores, n_docs)


def check_values(
    name: str,
    ids: tf.Tensor | None,
    size: int | None,
    mask_name: str = "attention_mask",
    mask: tf.Tensor | None = None,
) -> None:
    """Looks at ids, which a table of `size` rows must have, and at their mask; not in a graph.

    Raises:
        ValueError: an id outside 0 to `size` - 1, or a mask with other numbers than 0 and 1.
    """
    if not tf.executing_eagerly():
        return
    if ids is not None and size is not None:
        values = ids.numpy()
        if values.size:
            arguments.check_vocabulary(name, values.min(), values.max(), size)
    if mask is not None and not mask.dtype.is_bool:
        values = mask.numpy()
        if mask.dtype.is_floating:
            values = np.where((values == 0) | (values == 1), 0, values)
        if values.size:
            arguments.check_mask_values(mask_name, float(values.min()), float(values.max()))


def checked_mask(
    name: str, mask: Any, shape: tuple[int | None, ...] | None, of: str
) -> tf.Tensor | None:
    """A mask as a tensor, refused if it is not of a shape or holds other numbers than 0 and 1.

    Raises:
        TypeError: not a tensor or array of numbers.
        ValueError: naming both shapes, or a number.
    """
    if mask is None:
        return None
    mask = checked_tensor(name, mask)
    arguments.check_mask(facts(name, mask), shape, of)
    check_values(name, None, None, name, mask)
    return mask


def given_scores(doc_scores: Any, n_docs: int) -> tf.Tensor:
    """The caller's document scores (B, N), checked, in float32 or wider.

    Raises:
        TypeError: not a tensor or array of real numbers.
        ValueError: missing, not (B, n_docs), NaN or plus infinity, or a question without a single
            document.
    """
    if doc_scores is None:
        raise ValueError(
            "doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of those "
            "contexts"
        )
    doc_scores = checked_tensor("doc_scores", doc_scores)
    arguments.check_scores(facts("doc_scores", doc_scores), n_docs)
    scores = widen(doc_scores)
    if tf.executing_eagerly():
        best = scores.numpy().max(1)  # NaN where any is
        if not np.isfinite(best).all():
            arguments.refuse_scores(doc_scores.numpy().tolist())
    return scores


def check_loss(
    logits: Any, scores: Any, n_docs: int, target: Any = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The tensors of a loss, refused if they do not fit each other.

    Raises:
        TypeError, ValueError: see `rag_core.arguments.check_loss`.
    """
    logits, scores = checked_tensor("seq_logits", logits), checked_tensor("doc_scores", scores)
    ids = None if target is None else checked_tensor("target", target)
    told = None if ids is None else facts("target", ids)
    arguments.check_loss(facts("seq_logits", logits), facts("doc_scores", scores), n_docs, told)
    given_scores(scores, n_docs)
    if ids is not None:
        check_values("target (but for -100)", masked_fill(ids, ids == -100, 0), logits.shape[-1])
    return logits, scores, ids


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
    arguments.check_integers(facts(name, ids))
    check_values(name, ids, size)
    return ids


def checked_labels(
    labels: Any, decoder_input_ids: Any, pad_token_id: int, vocabulary: int | None
) -> tf.Tensor:
    """Labels (B, T) with pads for -100.

    Raises:
        TypeError: not integers.
        ValueError: an id that is neither in the vocabulary nor -100, or another shape than that of
            the decoder's input.
    """
    labels = checked_ids("labels", labels)
    labels = masked_fill(labels, labels == -100, pad_token_id)
    checked_ids("labels (but for -100)", labels, vocabulary)
    if decoder_input_ids is not None:
        fed = checked_tensor("decoder_input_ids", decoder_input_ids)
        if differs(labels, shape_of(fed)):
            raise ValueError(
                f"labels must have the shape of decoder_input_ids, {shape_of(fed)}, got "
                f"{shape_of(labels)}"
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
    raise TypeError(
        f"{name} must be a tf.Tensor, got {type(value).__name__}: use return_tensors='tf'"
    )


def shape_of(value: Any) -> tuple[int | None, ...] | None:
    """The shape as far as it is known, None in place of unknown sizes (or for all of it)."""
    return None if value.shape.rank is None else tuple(value.shape)


def differs(value: tf.Tensor, wanted: tuple[int | None, ...] | None) -> bool:
    """Whether a shape is known not to be the wanted one; None = any size, or not known."""
    return arguments.differs(shape_of(value), wanted)


def checked_questions(
    input_ids: Any, attention_mask: Any, vocabulary: int | None = None
) -> tf.Tensor:
    """The questions' ids (B, Q), if they can be encoded.

    Raises:
        TypeError: something other than tensors and arrays, or ids that are no integers.
        ValueError: no ids, not (B, Q), empty, outside the encoder's `vocabulary`, or a mask of
            another shape or with other numbers than 0 and 1.
    """
    if input_ids is None:
        raise ValueError(
            "input_ids must be given to retrieve documents (or pass the three context arguments)"
        )
    ids = checked_tensor("input_ids", input_ids)
    told = facts("input_ids", ids)
    arguments.check_integers(told)
    arguments.check_questions(told)
    checked_mask("attention_mask", attention_mask, told.shape, told.name)
    check_values(told.name, ids, vocabulary)
    return ids


def check_text(ids: Any, embeds: Any, mask: Any = None, types: Any = None) -> None:
    """Refuses what an encoder cannot read; see `rag_core.arguments.check_text`."""
    given = {
        "input_ids": ids,
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "token_type_ids": types,
    }
    told = {
        name: facts(name, checked_tensor(name, each))
        for name, each in given.items()
        if each is not None
    }
    read = told["input_ids" if embeds is None else "inputs_embeds"]
    arguments.check_text(read, told.get("attention_mask"), told.get("token_type_ids"))
    if mask is not None:
        check_values(
            read.name, None, None, "attention_mask", checked_tensor("attention_mask", mask)
        )


def search_in_graph(
    retriever: Any,
    questions: tf.Tensor,
    vectors: tf.Tensor,
    options: dict[str, Any],
    tokenized: bool,
) -> dict[str, tf.Tensor]:
    """A search as a node of the caller's graph, which calls back to Python: such a graph cannot be
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

    found = tf.numpy_function(
        search, (questions, tf.cast(vectors, tf.float32)), list(kinds.values())
    )
    batch, n_docs = questions.shape[0], options["n_docs"]
    shapes = {"retrieved_doc_embeds": (batch, n_docs, vectors.shape[1]), "doc_ids": (batch, n_docs)}
    shapes["doc_mask"] = shapes["doc_ids"]
    rows = (None if batch is None else batch * n_docs, None)
    return {
        name: tf.ensure_shape(tensor, shapes.get(name, rows))
        for name, tensor in zip(kinds, found, strict=True)
    }


def to_device(value: Any) -> tf.Tensor:
    """A tensor, array or nested lists as a tensor, placed by TensorFlow.

    Numbers in lists become int64 or float32.
    """
    if isinstance(value, tf.Tensor | tf.Variable):
        return tf.convert_to_tensor(value)
    array = to_numpy(value)
    if isinstance(value, list | tuple) and array.dtype == np.float64:
        array = array.astype(np.float32)
    return tf.convert_to_tensor(array)
