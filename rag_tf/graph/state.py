"""What searches in a graph keep from step to step, and how it is written to.

Letters: Q searches, K beams, A or B of a search's things, P start tokens, t tokens so far, M most
tokens, n sequences handed back for each search.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from rag_core.generation import GenerationConfig


class Found(NamedTuple):
    """What the searches hand back, as rag_core.generation.SearchResult does, but all M columns wide.

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


class Pool(NamedTuple):
    """The K best finished sequences of each search, in the order in which they came.

    Empty places lie in front.
    """

    scores: tf.Tensor  # (Q, K) float64, as Python computes them
    sums: tf.Tensor  # (Q, K)
    lengths: tf.Tensor  # (Q, K)
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    kept: tf.Tensor  # (Q, 1) how many there are


class Beams(NamedTuple):
    """What beam searches know after a step."""

    number: tf.Tensor  # (Q,) int64, of each search
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    scores: tf.Tensor  # (Q, K)
    finished: tf.Tensor  # (Q,)
    pool: Pool


class Rows(NamedTuple):
    """What greedy searches know after a step; a row is a search of one beam."""

    number: tf.Tensor  # (Q,) int64, of each search
    tokens: tf.Tensor  # (Q, M)
    lengths: tf.Tensor  # (Q,)
    sums: tf.Tensor  # (Q,) float64
    finished: tf.Tensor  # (Q,)


class Moment(NamedTuple):
    """All that a step changes."""

    length: tf.Tensor  # t
    # whether all scores were numbers so far; what to make of others, rag_core decides
    sound: tf.Tensor
    searches: Any  # Beams or Rows
    state: Any


def pad_of(options: GenerationConfig) -> tf.Tensor:
    return tf.constant(options.pad_token_id or 0, tf.int64)


def ends(tokens: tf.Tensor, options: GenerationConfig) -> tf.Tensor:
    """True where a token ends its sequence."""
    ended = tf.zeros_like(tokens, tf.bool)
    for token in options.eos_token_ids:
        ended |= tokens == token
    return ended


def buffer(starts: tf.Tensor, options: GenerationConfig, limit: int) -> tf.Tensor:
    """Start tokens (Q, P) -> (Q, M), padded."""
    rest = tf.fill([tf.shape(starts)[0], limit - starts.shape[1]], pad_of(options))
    return tf.concat([tf.cast(starts, tf.int64), rest], axis=1)


def written_at(buffer: tf.Tensor, place: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`values` (...) in column `place` of the buffer (..., M)."""
    here = tf.equal(tf.range(tf.shape(buffer)[-1]), place)
    return tf.where(here, values[..., None], buffer)


def all_numbers(scores: tf.Tensor) -> tf.Tensor:
    """Whether all are numbers: a sum is one only then, and costs less than to look at each."""
    return ~tf.math.is_nan(tf.reduce_sum(scores))


def last_tokens(tokens: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return tf.gather(tokens, length[None] - 1, axis=-1)


def pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """(Q, A, ...) at places (Q, B) -> (Q, B, ...)."""
    return tf.gather(x, places, batch_dims=1)
