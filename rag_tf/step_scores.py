"""The rules of a decoding step, carried out on tensors: logits processors and warpers, and the best
candidates.

What to do is decided in rag_core.generation. Letters: R rows, Q searches, C candidates, V
vocabulary, W = K * V scores of a search's K beams, M pairs of a row and an id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from rag_core.generation import LogitsProcessor, LogitsWarper
from rag_tf.marginalize import promote, token_log_probs
from rag_tf.modules import dim

# Marginal probabilities below it are computed by logarithms: their terms may have vanished.
_SAFE = 1e-30


def marginal_scores(logits: tf.Tensor, log_priors: tf.Tensor) -> tf.Tensor:
    """`token_log_probs` of a step, of logits (Q, N, K, V) and log p(z|x) (Q, N): (Q, K, V).

    By probabilities, in a third of the passes over the numbers, unless one is so small that its
    logarithm would be off.
    """
    logits, log_priors = promote(logits, log_priors)
    shape = [dim(logits, axis) for axis in range(4)]
    each = tf.reshape(tf.nn.softmax(logits), (*shape[:2], -1))  # (Q, N, K*V)
    mixed = tf.matmul(tf.exp(log_priors)[:, None], each)  # (Q, 1, K*V)
    mixed = tf.reshape(mixed, (shape[0], *shape[2:]))
    # A softmax may lose a NaN, a sum does not.
    safe = tf.reduce_all(mixed >= _SAFE) & ~tf.math.is_nan(tf.reduce_sum(logits))
    return tf.cond(safe, lambda: tf.math.log(mixed), lambda: token_log_probs(logits, log_priors))


def _filled(scores: tf.Tensor, value: float) -> tf.Tensor:
    return tf.fill(tf.shape(scores), tf.cast(value, scores.dtype))


def _banned(scores: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """`scores` with -inf where the mask is True."""
    return tf.where(where, tf.cast(-np.inf, scores.dtype), scores)


def _rank(scores: tf.Tensor) -> tf.Tensor:
    """What to sort by: NaN above all numbers, as in torch; TensorFlow promises no place for it."""
    largest = tf.cast(scores.dtype.max, scores.dtype)
    infinity = tf.cast(np.inf, scores.dtype)
    return tf.where(tf.math.is_nan(scores), infinity, tf.minimum(scores, largest))


def _log_softmax(scores: tf.Tensor) -> tf.Tensor:
    # TensorFlow's own loses a NaN here and there, and a broken model would go on as if it were none
    shifted = scores - tf.reduce_max(scores, axis=-1, keepdims=True)
    return shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), axis=-1, keepdims=True))


def _softmax(scores: tf.Tensor) -> tf.Tensor:
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def guided_scores(scores: tf.Tensor, unconditional: tf.Tensor, scale: float) -> tf.Tensor:
    """See `rag_core.generation.Engine.guided_scores`."""
    scores = tf.nn.log_softmax(scores)
    unconditional = tf.nn.log_softmax(unconditional)
    guided = unconditional + scale * (scores - unconditional)
    return tf.where(tf.equal(scores, -np.inf), scores, guided)


def normalised(scores: tf.Tensor) -> tf.Tensor:
    """log_softmax of (R, V); -inf stays -inf where a row holds nothing else.

    NaN would count as largest.
    """
    return tf.where(tf.equal(scores, -np.inf), scores, _log_softmax(scores))


def apply_processors(scores: tf.Tensor, processors: Sequence[LogitsProcessor]) -> tf.Tensor:
    """Carry out logits processors, in order, on `scores` (R, V); new scores (R, V) come back."""
    for processor in processors:
        ids, rows = processor.ids, processor.rows
        if rows is None:
            all_rows = np.arange(int(scores.shape[0]))
            rows = all_rows.repeat(len(ids))
            ids = np.tile(ids, len(all_rows))
        at = tf.constant(np.stack([rows, ids], axis=1), dtype=tf.int64)  # (M, 2)
        if processor.kind == "finite":
            scores = tf.where(tf.math.is_nan(scores), tf.zeros_like(scores), scores)
            scores = tf.clip_by_value(scores, scores.dtype.min, scores.dtype.max)
        elif processor.kind == "keep":
            kept = tf.gather_nd(scores, at)
            scores = tf.tensor_scatter_nd_update(_filled(scores, -np.inf), at, kept)
        elif processor.kind == "force":
            zeros = tf.zeros(len(rows), scores.dtype)
            scores = tf.tensor_scatter_nd_update(_filled(scores, -np.inf), at, zeros)
        else:
            changed = _changed(tf.gather_nd(scores, at), processor)
            scores = tf.tensor_scatter_nd_update(scores, at, changed)
    return scores


def _changed(old: tf.Tensor, processor: LogitsProcessor) -> tf.Tensor:
    if processor.kind == "ban":
        return _filled(old, -np.inf)
    if processor.kind == "add":
        return old + tf.cast(np.asarray(processor.value), old.dtype)
    if processor.kind == "penalise":
        return tf.where(old < 0, old * processor.value, old / processor.value)
    if processor.kind == "decay":
        # A banned token stays banned: -inf + inf is nan, which is taken for the largest
        return tf.where(tf.math.is_inf(old), old, old + tf.abs(old) * processor.value)
    raise ValueError(f"unknown kind of logits processor {processor.kind!r}")


def apply_warpers(
    scores: tf.Tensor, warpers: Sequence[LogitsWarper], min_tokens_to_keep: int
) -> tf.Tensor:
    """Carry out logits warpers, in order, on the distribution softmax(`scores`) (R, V) that is
    sampled from, leaving `min_tokens_to_keep` tokens or more a row.
    """
    vocab_size = int(scores.shape[-1])
    min_tokens_to_keep = min(min_tokens_to_keep, vocab_size)
    for warper in warpers:
        if warper.kind == "temperature":
            scores = scores / warper.value
        elif warper.kind == "normalise":
            scores = normalised(scores)
        elif warper.kind == "top_k":
            count = min(max(int(warper.value), min_tokens_to_keep), vocab_size)
            scores = _banned(scores, scores < _kth_largest(scores, count))
        elif warper.kind == "top_p":
            scores = _top_p(scores, warper.value, min_tokens_to_keep)
        elif warper.kind == "typical_p":
            scores = _typical(scores, warper.value, min_tokens_to_keep)
        elif warper.kind in ("epsilon_cutoff", "eta_cutoff"):
            cut: tf.Tensor | float = warper.value
            if warper.kind == "eta_cutoff":
                by_entropy = warper.value**0.5 * tf.exp(-_entropy(scores))  # (R,)
                cut = tf.minimum(by_entropy, warper.value)[:, None]
            unlikely = _softmax(scores) < cut
            spared = scores >= _kth_largest(scores, min_tokens_to_keep)
            scores = _banned(scores, unlikely & ~spared)
        else:
            raise ValueError(f"unknown kind of logits warper {warper.kind!r}")
    return scores


def _largest(scores: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The `count` largest of each row and their indices, best first.

    Of equals the lowest index first.
    """
    indices = tf.math.top_k(_rank(scores), count, index_type=tf.int64).indices
    return tf.gather(scores, indices, batch_dims=1), indices


def _kth_largest(scores: tf.Tensor, count: int) -> tf.Tensor:
    """(R, V) -> (R, 1)."""
    values, _ = _largest(scores, count)
    return values[:, -1:]


def _top_p(scores: tf.Tensor, mass: float, min_tokens_to_keep: int) -> tf.Tensor:
    """Keep the likeliest tokens that make up `mass` together."""
    # Ascending, of equals the lowest index last: that one stays.
    ordered, order = _largest(scores, int(scores.shape[-1]))
    ordered, order = ordered[:, ::-1], order[:, ::-1]
    drop = tf.cumsum(_softmax(ordered), axis=-1) <= 1 - mass
    stay = tf.zeros_like(drop[:, -min_tokens_to_keep:])
    drop = tf.concat([drop[:, :-min_tokens_to_keep], stay], axis=-1)
    return _banned(scores, _back(drop, order))


def _back(sorted_values: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    """What stands at `order[r, i]` before sorting, from what stands at i after it; (R, V)."""
    return tf.gather(sorted_values, tf.argsort(order, axis=-1), batch_dims=1)


def _entropy(scores: tf.Tensor) -> tf.Tensor:
    log_probs = _log_softmax(scores)
    terms = tf.exp(log_probs) * log_probs
    # A probability of 0 adds nothing: 0 * -inf is NaN.
    terms = tf.where(tf.math.is_nan(terms), tf.zeros_like(terms), terms)
    return -tf.reduce_sum(terms, axis=-1)


def _typical(scores: tf.Tensor, mass: float, min_tokens_to_keep: int) -> tf.Tensor:
    """Keep the tokens whose surprise lies nearest the entropy (Meister et al. 2022,
    https://arxiv.org/abs/2202.00666).
    """
    distance = tf.abs(-_log_softmax(scores) - _entropy(scores)[:, None])
    order = tf.argsort(_rank(distance), axis=-1, stable=True)
    ordered = tf.gather(distance, order, batch_dims=1)
    total = tf.cumsum(_softmax(tf.gather(scores, order, batch_dims=1)), axis=-1)
    last = tf.reduce_sum(tf.cast(total < mass, tf.int32), axis=-1, keepdims=True)  # (R, 1)
    last = tf.minimum(last, int(scores.shape[-1]) - 1)
    drop = ordered > tf.gather(ordered, last, batch_dims=1)
    stay = tf.zeros_like(drop[:, :min_tokens_to_keep])
    drop = tf.concat([stay, drop[:, min_tokens_to_keep:]], axis=-1)
    return _banned(scores, _back(drop, order))


def best_candidates(scores: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The `count` largest of `scores` (Q, W) and their indices; of equals the lowest index.

    Returns:
        (Q, count) values and (Q, count) int64 indices (`order_candidates` sorts them).
    """
    return _largest(scores, tf.minimum(count, tf.shape(scores)[-1]))
