"""Beam search and greedy search as one loop in a graph: the twin of rag_core.beam, for where no Python may run.

It decides as rag_core.beam does, ties included, and is tested against it case by case. XLA compiles it: all shapes stay
as they are from step to step.
Letters: Q searches, K beams, C candidates a step, P start tokens, t tokens so far, M most tokens, V vocabulary,
n sequences handed back for each search, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.graph_rules import GraphRules

Scorer = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]]
"""(newest tokens (Q, K, 1), state) -> scores of the next token (Q, K, V), and the state after them."""
Reorder = Callable[[Any, tf.Tensor], Any]
"""(state, sources (Q, K)) -> the state in which beam k of search q continues beam sources[q, k]."""


class Found(NamedTuple):
    """What the searches hand back, as rag_core.beam.Finished does, but all M columns wide.

    Attributes:
        sequences: (Q * n, M) int64, start tokens and end token included, right-padded.
        lengths: (Q * n,) tokens before the padding, int32.
        sum_log_probs: (Q * n,) sum of the step scores of the generated tokens, end token included.
        width: columns that rag_core.beam would hand back, a scalar.
        scores: (Q * n,) sum of log-probabilities / generated tokens ** length_penalty; None without beams.
        beam_indices: (Q * n, M) row, of the Q * K, that generated token i continued, then -1; None without beams.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    sum_log_probs: tf.Tensor
    width: tf.Tensor
    scores: tf.Tensor | None = None
    beam_indices: tf.Tensor | None = None


class _Pool(NamedTuple):
    """The K best finished sequences of each search, in the order in which they came; empty places lie in front."""

    scores: tf.Tensor  # (Q, K) float64, as Python computes them
    sums: tf.Tensor  # (Q, K)
    lengths: tf.Tensor  # (Q, K)
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    kept: tf.Tensor  # (Q, 1) how many there are


class _Beams(NamedTuple):
    length: tf.Tensor  # t
    tokens: tf.Tensor  # (Q, K, M)
    indices: tf.Tensor  # (Q, K, M)
    scores: tf.Tensor  # (Q, K)
    finished: tf.Tensor  # (Q,)
    pool: _Pool
    state: Any


class _Rows(NamedTuple):
    length: tf.Tensor  # t
    tokens: tf.Tensor  # (R, M)
    lengths: tf.Tensor  # (R,)
    sums: tf.Tensor  # (R,) float64
    finished: tf.Tensor  # (R,)
    state: Any


def search(
    scorer: Scorer,
    reorder: Reorder,
    state: Any,
    starts: tf.Tensor,
    options: GenerationConfig,
    vocab_size: int,
    dtype: tf.DType = tf.float32,
) -> Found:
    """Runs all searches to their end.

    Args:
        scorer: scores the next token; log-probabilities where there are beams.
        reorder: moves the state to other beams.
        state: nested tensors, which the scorer has been fed all start tokens but the last with; their shapes stay.
        starts: (Q, P) int64 what the searches begin with; P must be known.
        options: as `resolve_options` returns them; `max_length` counts the start tokens.
        vocab_size: V.
        dtype: of the scores.

    Raises:
        ValueError: an option that is not offered in a graph, or a vocabulary of nothing but end tokens.
    """
    prompt = int(starts.shape[1])
    if vocab_size <= len(set(options.eos_token_ids)):
        raise ValueError(f"a vocabulary of {vocab_size} leaves nothing but the end tokens {options.eos_token_ids}")
    rules = GraphRules(options, vocab_size, prompt)
    if options.num_beams > 1:
        return _BeamLoop(scorer, reorder, options, rules, prompt).run(state, starts, dtype)
    return _greedy(scorer, state, starts, options, rules)


def _pad(options: GenerationConfig) -> tf.Tensor:
    return tf.constant(options.pad_token_id or 0, tf.int64)


def _ends(tokens: tf.Tensor, options: GenerationConfig) -> tf.Tensor:
    """True where a token ends its sequence."""
    ended = tf.zeros_like(tokens, tf.bool)
    for token in options.eos_token_ids:
        ended |= tokens == token
    return ended


def _buffer(starts: tf.Tensor, options: GenerationConfig) -> tf.Tensor:
    """Start tokens (Q, P) -> (Q, M), padded."""
    rest = tf.fill([tf.shape(starts)[0], options.max_length - starts.shape[1]], _pad(options))
    return tf.concat([tf.cast(starts, tf.int64), rest], axis=1)


def _written(buffer: tf.Tensor, place: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`values` (...) in column `place` of the buffer (..., M)."""
    here = tf.equal(tf.range(tf.shape(buffer)[-1]), place)
    return tf.where(here, values[..., None], buffer)


def _last_tokens(tokens: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return tf.gather(tokens, length[None] - 1, axis=-1)


def _pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """(Q, A, ...) at places (Q, B) -> (Q, B, ...)."""
    return tf.gather(x, places, batch_dims=1)


def _as_before(new: Any, old: Any) -> Any:
    """The new state, whose static shapes tf.while_loop wants unchanged."""

    def same(x: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        return x if tf.executing_eagerly() else tf.ensure_shape(x, before.shape)

    return tf.nest.map_structure(same, new, old)


class _BeamLoop:
    """rag_core.beam.BeamSearch, all searches at once."""

    def __init__(
        self, scorer: Scorer, reorder: Reorder, options: GenerationConfig, rules: GraphRules, prompt: int
    ) -> None:
        self.scorer, self.reorder, self.options, self.rules, self.prompt = scorer, reorder, options, rules, prompt
        self.beams, self.vocab_size = options.num_beams, rules.vocab_size
        wanted = max(2, 1 + len(options.eos_token_ids)) * self.beams
        self.candidates = min(wanted, self.beams * self.vocab_size)
        # what a score is divided by, for each generated length: Python's own powers
        penalty = options.length_penalty
        self.divisors = np.array([1.0] + [float(i**penalty) for i in range(1, options.max_length + 1)])

    def run(self, state: Any, starts: tf.Tensor, dtype: tf.DType) -> Found:
        searches, beams = tf.shape(starts)[0], self.beams
        tokens = tf.repeat(_buffer(starts, self.options)[:, None], beams, axis=1)  # (Q, K, M)
        indices = -tf.ones_like(tokens)
        # all beams of a search are equal at first: only one may speak
        first = tf.constant([[0.0] + [-1e9] * (beams - 1)], dtype)
        pool = _Pool(
            tf.fill([searches, beams], tf.constant(np.inf, tf.float64)),
            tf.zeros([searches, beams], dtype),
            tf.zeros([searches, beams], tf.int32),
            tokens,
            indices,
            tf.zeros([searches, 1], tf.int32),
        )
        scores, finished = tf.repeat(first, searches, axis=0), tf.zeros([searches], tf.bool)
        start = _Beams(tf.constant(self.prompt), tokens, indices, scores, finished, pool, state)
        limit = self.options.max_length
        (end,) = tf.while_loop(
            lambda loop: (loop.length < limit) & ~tf.reduce_all(loop.finished),
            self._step,
            [start],
            maximum_iterations=limit - self.prompt,
        )
        return self._finish(end)

    def _divided(self, sums: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        return tf.cast(sums, tf.float64) / tf.gather(tf.constant(self.divisors), generated)

    def _rows(self, like: tf.Tensor, sources: tf.Tensor) -> tf.Tensor:
        """Beams (Q, A) of the searches as rows of the Q * K."""
        first = tf.range(tf.shape(like, tf.int64)[0])[:, None] * self.beams
        return first + tf.cast(sources, tf.int64)

    def _step(self, loop: _Beams) -> list[_Beams]:
        beams, size, now, tokens = self.beams, self.vocab_size, loop.length, loop.tokens
        scores, state = self.scorer(_last_tokens(tokens, now), loop.state)
        rows = tf.reshape(tokens, [-1, self.options.max_length])
        scores = self.rules(tf.reshape(scores, [-1, size]), rows, now)
        total = tf.reshape(scores, [-1, beams, size]) + loop.scores[..., None]
        # of equals the lowest index goes first
        values, places = tf.math.top_k(tf.reshape(total, [-1, beams * size]), self.candidates)  # (Q, C)
        written, sources = tf.cast(places % size, tf.int64), places // size
        ended, alive = _ends(written, self.options), ~loop.finished[:, None]
        generated = now + 1 - self.prompt
        closing = values[:, :beams], sources[:, :beams], ended[:, :beams] & alive
        pool = self._closed(loop, *closing, generated)
        finished = loop.finished | self._settled(pool, values[:, 0], generated)
        # the best K that go on, in their order
        going = tf.math.top_k(tf.cast(~ended, tf.int32), beams).indices  # (Q, K)
        written = tf.where(alive, _pick(written, going), _pad(self.options))
        sources = tf.where(alive, _pick(sources, going), 0)
        values = tf.where(alive, _pick(values, going), tf.zeros([], values.dtype))
        tokens = _written(_pick(tokens, sources), now, written)
        indices = _written(_pick(loop.indices, sources), now - self.prompt, self._rows(tokens, sources))
        state = self.reorder(state, sources)
        return [_as_before(_Beams(now + 1, tokens, indices, values, finished, pool, state), loop)]

    def _closed(
        self, loop: _Beams, sums: tf.Tensor, sources: tf.Tensor, ended: tf.Tensor, generated: tf.Tensor
    ) -> _Pool:
        """The pool with the sequences that end here, (Q, K) each."""
        indices = _written(_pick(loop.indices, sources), generated - 1, self._rows(sums, sources))
        lengths = tf.fill(tf.shape(sources), loop.length)
        return self._admit(loop.pool, sums, lengths, _pick(loop.tokens, sources), indices, ended, generated)

    def _admit(
        self,
        pool: _Pool,
        sums: tf.Tensor,
        lengths: tf.Tensor,
        tokens: tf.Tensor,
        indices: tf.Tensor,
        wanted: tf.Tensor,
        generated: tf.Tensor,
    ) -> _Pool:
        """Adds up to K sequences to each pool, one after the other, where `wanted` (Q, K)."""
        beams, kept, kept_scores = self.beams, pool.kept, pool.scores
        scores = self._divided(sums, generated)
        slots = tf.range(beams)[None]  # (1, K)
        places = tf.zeros_like(sums, tf.int32) + slots  # (Q, K) in [pool, new ones]
        for k in range(beams):
            score, full = scores[:, k : k + 1], kept >= beams  # (Q, 1)
            better = score > tf.reduce_min(kept_scores, axis=1, keepdims=True)
            enters = wanted[:, k : k + 1] & (~full | better)
            lowest = tf.argmin(kept_scores, axis=1, output_type=tf.int32)[:, None]
            # who leaves: the newcomer, the first of the lowest, or an empty place in front
            leaves = tf.where(enters, tf.where(full, lowest, 0), beams)
            stay = slots + tf.cast(slots >= leaves, tf.int32)
            kept_scores = _pick(tf.concat([kept_scores, score], axis=1), stay)
            places = _pick(tf.concat([places, tf.fill(tf.shape(leaves), beams + k)], axis=1), stay)
            kept += tf.cast(enters & ~full, tf.int32)

        def chosen(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            return _pick(tf.concat([old, new], axis=1), places)

        return _Pool(
            kept_scores,
            chosen(pool.sums, sums),
            chosen(pool.lengths, lengths),
            chosen(pool.tokens, tokens),
            chosen(pool.indices, indices),
            kept,
        )

    def _settled(self, pool: _Pool, best: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        """(Q,) whether a search is over, given its best candidate."""
        full = pool.kept[:, 0] >= self.beams
        if self.options.early_stopping is True:
            return full
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            generated = tf.constant(self.options.max_length - self.prompt)
        return full & (tf.reduce_min(pool.scores, axis=1) >= self._divided(best, generated))

    def _finish(self, loop: _Beams) -> Found:
        lengths = tf.fill(tf.shape(loop.scores), loop.length)
        running = tf.zeros_like(loop.scores, tf.bool) | ~loop.finished[:, None]
        generated = tf.maximum(loop.length - self.prompt, 1)
        pool = self._admit(loop.pool, loop.scores, lengths, loop.tokens, loop.indices, running, generated)
        # of equals the later one first
        later = self.beams - 1 - tf.math.top_k(pool.scores[:, ::-1], self.options.num_return_sequences).indices
        scores, sums, lengths = (tf.reshape(_pick(x, later), [-1]) for x in (pool.scores, pool.sums, pool.lengths))
        limit = self.options.max_length
        tokens, indices = (tf.reshape(_pick(x, later), [-1, limit]) for x in (pool.tokens, pool.indices))
        width = tf.minimum(tf.reduce_max(lengths) + 1, limit)
        if self.options.eos_token_ids:
            end = tf.fill(tf.shape(lengths), tf.constant(self.options.eos_token_ids[0], tf.int64))
            tokens = tf.where(tf.range(limit) == lengths[:, None], end[:, None], tokens)
            lengths = tf.minimum(lengths + 1, width)
        return Found(tokens, lengths, sums, width, tf.cast(scores, sums.dtype), indices)


def _greedy(scorer: Scorer, state: Any, starts: tf.Tensor, options: GenerationConfig, rules: GraphRules) -> Found:
    """rag_core.beam.RowSearch without sampling; a row is a search of one beam."""
    prompt, limit = int(starts.shape[1]), options.max_length
    rows = tf.shape(starts)[0]

    def step(loop: _Rows) -> list[_Rows]:
        scores, state = scorer(_last_tokens(loop.tokens, loop.length)[:, None], loop.state)
        scores = rules(scores[:, 0], loop.tokens, loop.length)  # (R, V)
        chosen = tf.argmax(scores, axis=1)  # the lowest index of equals
        log_probs = tf.gather(scores, chosen, batch_dims=1) - tf.reduce_logsumexp(scores, axis=1)
        sums = loop.sums + tf.where(loop.finished, tf.zeros([], tf.float64), tf.cast(log_probs, tf.float64))
        written = tf.where(loop.finished, _pad(options), chosen)
        lengths = loop.lengths + tf.cast(~loop.finished, tf.int32)
        finished = loop.finished | _ends(written, options)
        tokens = _written(loop.tokens, loop.length, written)
        return [_as_before(_Rows(loop.length + 1, tokens, lengths, sums, finished, state), loop)]

    start = _Rows(
        tf.constant(prompt),
        _buffer(starts, options),
        tf.fill([rows], prompt),
        tf.zeros([rows], tf.float64),
        tf.zeros([rows], tf.bool),
        state,
    )
    (end,) = tf.while_loop(
        lambda loop: (loop.length < limit) & ~tf.reduce_all(loop.finished),
        step,
        [start],
        maximum_iterations=limit - prompt,
    )
    return Found(end.tokens, end.lengths, end.sums, end.length)
