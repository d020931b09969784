"""What searches in a graph keep from step to step, and how it is written to.

Letters: Q searches, K beams, A or B of a search's things, P start tokens, t tokens so far, M most
tokens, n sequences handed back for each search.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from rag_core.generation import GenerationConfig


class SearchResult(NamedTuple):
    """What the searches hand back, as rag_core.generation.SearchResult does, but as tensors, all M
    columns wide.

    Attributes:
        sequences: (Q * n, M) int64, start tokens and end token included, right-padded.
        lengths: (Q * n,) tokens before the padding, int32.
        sum_log_probs: (Q * n,) sum of the step scores of the generated tokens, end token included.
        width: columns that rag_core.generation.beam would hand back, a scalar.
        scores: (Q * n,) sum of log-probabilities / generated tokens ** length_penalty; None without
            beams.
        beam_indices: (Q * n, M) row, of the Q * K, that generated token i continued, then -1; None
            without beams.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    sum_log_probs: tf.Tensor
    width: tf.Tensor
    scores: tf.Tensor | None = None
    beam_indices: tf.Tensor | None = None


class BeamHypotheses(NamedTuple):
    """The K best finished sequences of each search, in the order in which they came.

    Empty places lie in front.
    """

    scores: tf.Tensor  # (Q, K) float64, as Python computes them
    sums: tf.Tensor  # (Q, K)
    lengths: tf.Tensor  # (Q, K)
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    count: tf.Tensor  # (Q, 1) how many there are


class BeamState(NamedTuple):
    """What beam searches know after a step."""

    number: tf.Tensor  # (Q,) int64, of each search
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    scores: tf.Tensor  # (Q, K)
    finished: tf.Tensor  # (Q,)
    hypotheses: BeamHypotheses


class GreedyState(NamedTuple):
    """What greedy searches know after a step; a row is a search of one beam."""

    number: tf.Tensor  # (Q,) int64, of each search
    tokens: tf.Tensor  # (Q, M)
    lengths: tf.Tensor  # (Q,)
    sums: tf.Tensor  # (Q,) float64
    finished: tf.Tensor  # (Q,)


class LoopState(NamedTuple):
    """All that a step changes."""

    length: tf.Tensor  # t
    # whether no score was NaN so far; what to make of one, rag_core decides
    all_finite: tf.Tensor
    searches: Any  # BeamState or GreedyState
    decoder: Any  # nested tensors of the scorer's


def pad_token(options: GenerationConfig) -> tf.Tensor:
    """What a search that is over goes on with."""
    return tf.constant(options.pad_token_id or 0, tf.int64)


def ends_sequence(tokens: tf.Tensor, options: GenerationConfig) -> tf.Tensor:
    """True where a token ends its sequence."""
    ended = tf.zeros_like(tokens, tf.bool)
    for end_token in options.eos_token_ids:
        ended |= tokens == end_token
    return ended


def token_buffer(starts: tf.Tensor, options: GenerationConfig, limit: int) -> tf.Tensor:
    """Start tokens (Q, P) -> (Q, M), padded."""
    rest = tf.fill([tf.shape(starts)[0], limit - starts.shape[1]], pad_token(options))
    return tf.concat([tf.cast(starts, tf.int64), rest], axis=1)


def write_column(buffer: tf.Tensor, column: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The buffer (..., M) with `values` (...) in one column."""
    is_here = tf.equal(tf.range(tf.shape(buffer)[-1]), column)
    return tf.where(is_here, values[..., None], buffer)


def has_no_nan(scores: tf.Tensor) -> tf.Tensor:
    """Whether all are numbers: a sum is one only then, and costs less than to look at each."""
    return ~tf.math.is_nan(tf.reduce_sum(scores))


def last_tokens(tokens: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """(..., M) of `length` tokens -> (..., 1)."""
    return tf.gather(tokens, length[None] - 1, axis=-1)


def pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """(Q, A, ...) at places (Q, B) -> (Q, B, ...)."""
    return tf.gather(x, places, batch_dims=1)
