"""Beam search and greedy search as one loop in a graph: the twin of rag_core.generation's, for
where no Python may run.

It decides as `BeamSearch` does, ties included, and is tested against it case by case. Its own
shapes stay as they are from step to step, so XLA compiles it where those of the scorer's state do,
too.
Letters: Q searches, K beams, C candidates a step, P start tokens, t tokens so far, M most tokens, V
vocabulary, n sequences handed back for each search, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.graph.rules import GraphRules
from rag_tf.graph.state import (
    Beams,
    Found,
    Moment,
    Pool,
    Rows,
    all_numbers,
    buffer,
    ends,
    last_tokens,
    pad_of,
    pick,
    written_at,
)

Scorer = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]]
"""(newest tokens (Q, K, 1), state) -> scores of the next token (Q, K, V), and the state after them."""
Reorder = Callable[[Any, tf.Tensor], Any]
"""(state, sources (Q, K)) -> the state in which beam k of search q continues beam sources[q, k]."""


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
        state: nested tensors, which the scorer has been fed all start tokens but the last with;
            their shapes stay.
        starts: (Q, P) int64 what the searches begin with; P must be known.
        options: as `resolve_options` returns them; `max_length` counts the start tokens.
        vocab_size: V.
        dtype: of the scores.

    Raises:
        ValueError: an option that is not offered in a graph, or a vocabulary of nothing but end
            tokens.
    """
    plan = Plan(options, vocab_size, int(starts.shape[1]))
    divisors, limit = tf.constant(plan.divisors()), options.max_length
    (end,) = tf.while_loop(
        lambda now: (now.length < limit) & ~tf.reduce_all(now.searches.finished),
        lambda now: [plan.step(scorer, reorder, divisors, now)],
        [plan.begin(starts, dtype, state)],
        maximum_iterations=limit - plan.prompt,
    )
    return plan.finish(end.searches, end.length, divisors, options.num_return_sequences)


class Plan:
    """What the searches are to do, as far as it is part of a graph: `max_length` is not, but for a
    rule that needs it.

    Two plans that make the same graph are equal, so that a `Graph` takes them for the same
    switch.

    Args:
        options: as `resolve_options` returns them.
        vocab_size: V.
        prompt: P.

    Raises:
        ValueError: as `search` does.
    """

    def __init__(self, options: GenerationConfig, vocab_size: int, prompt: int) -> None:
        if vocab_size <= len(set(options.eos_token_ids)):
            raise ValueError(
                f"a vocabulary of {vocab_size} leaves nothing but the end tokens "
                f"{options.eos_token_ids}"
            )
        self.options, self.vocab_size, self.prompt, self.beams = (
            options,
            vocab_size,
            prompt,
            options.num_beams,
        )
        self.rules = GraphRules(options, vocab_size, prompt)
        wanted = max(2, 1 + len(options.eos_token_ids)) * self.beams
        self.candidates = min(wanted, self.beams * vocab_size)
        free = {"num_return_sequences", "return_dict_in_generate"}
        if options.exponential_decay_length_penalty is None:
            free |= {"max_length", "max_new_tokens"}
        self.key = repr(
            (vocab_size, prompt, {k: v for k, v in vars(options).items() if k not in free})
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def divisors(self) -> np.ndarray:
        """What a score is divided by, for each generated length up to M: Python's own powers."""
        penalty = self.options.length_penalty
        return np.array([1.0] + [float(i**penalty) for i in range(1, self.options.max_length + 1)])

    def begin(self, starts: tf.Tensor, dtype: tf.DType, state: Any = ()) -> Moment:
        """Before the first step, from start tokens (Q, P)."""
        begin = _first_beams if self.beams > 1 else _first_rows
        searches = begin(self, buffer(starts, self.options, self.options.max_length), dtype)
        return Moment(tf.constant(self.prompt), tf.constant(True), searches, state)

    def step(self, scorer: Scorer, reorder: Reorder, divisors: tf.Tensor, now: Moment) -> Moment:
        """One more token for every search that goes on; shapes stay."""
        if self.beams > 1:
            return _as_before(_BeamStep(self, divisors, now).taken(scorer, reorder), now)
        return _as_before(_greedy_step(self, scorer, now), now)

    def finish(
        self, searches: Beams | Rows, length: tf.Tensor, divisors: tf.Tensor, wanted: int
    ) -> Found:
        """What searches of `length` tokens hand back, `wanted` sequences each."""
        if isinstance(searches, Rows):
            return Found(searches.tokens, searches.lengths, searches.sums, length)
        return _BeamStep(self, divisors, Moment(length, tf.constant(True), searches, ())).finished(
            wanted
        )


def _as_before(new: Any, old: Any) -> Any:
    """The new state, whose static shapes tf.while_loop wants unchanged."""

    def same(x: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        return x if tf.executing_eagerly() else tf.ensure_shape(x, before.shape)

    return tf.nest.map_structure(same, new, old)


def _first_beams(plan: Plan, tokens: tf.Tensor, dtype: tf.DType) -> Beams:
    """From tokens (Q, M)."""
    searches, beams = tf.shape(tokens)[0], plan.beams
    tokens = tf.repeat(tokens[:, None], beams, axis=1)  # (Q, K, M)
    indices = -tf.ones_like(tokens)
    # all beams of a search are equal at first: only one may speak
    first = tf.constant([[0.0] + [-1e9] * (beams - 1)], dtype)
    pool = Pool(
        tf.fill([searches, beams], tf.constant(np.inf, tf.float64)),
        tf.zeros([searches, beams], dtype),
        tf.zeros([searches, beams], tf.int32),
        tokens,
        indices,
        tf.zeros([searches, 1], tf.int32),
    )
    number = tf.range(tf.cast(searches, tf.int64))
    return Beams(
        number,
        tokens,
        indices,
        tf.repeat(first, searches, axis=0),
        tf.zeros([searches], tf.bool),
        pool,
    )


class _BeamStep:
    """A step of rag_core.generation.BeamSearch, all searches at once."""

    def __init__(self, plan: Plan, divisors: tf.Tensor, now: Moment) -> None:
        self.plan, self.options, self.divisors, self.now = plan, plan.options, divisors, now
        self.beams = plan.beams
        self.searches: Beams = now.searches
        self.limit = tf.shape(now.searches.tokens)[-1]  # M

    def _divided(self, sums: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        return tf.cast(sums, tf.float64) / tf.gather(self.divisors, generated)

    def _rows(self, sources: tf.Tensor) -> tf.Tensor:
        """Beams (Q, A) of the searches as rows of all searches' beams."""
        return self.searches.number[:, None] * self.beams + tf.cast(sources, tf.int64)

    def taken(self, scorer: Scorer, reorder: Reorder) -> Moment:
        """All that the step changes."""
        length, old, beams, size = self.now.length, self.searches, self.beams, self.plan.vocab_size
        scores, state = scorer(last_tokens(old.tokens, length), self.now.state)
        scores = self.plan.rules(
            tf.reshape(scores, [-1, size]), tf.reshape(old.tokens, [-1, self.limit]), length
        )
        total = tf.reshape(scores, [-1, beams, size]) + old.scores[..., None]
        # of equals the lowest index goes first
        # (Q, C)
        values, places = tf.math.top_k(tf.reshape(total, [-1, beams * size]), self.plan.candidates)
        written, sources = tf.cast(places % size, tf.int64), places // size
        ended, alive = ends(written, self.options), ~old.finished[:, None]
        generated = length + 1 - self.plan.prompt
        pool = self._closed(
            values[:, :beams], sources[:, :beams], ended[:, :beams] & alive, generated
        )
        finished = old.finished | self._settled(pool, values[:, 0], generated)
        # the best K that go on, in their order
        going = tf.math.top_k(tf.cast(~ended, tf.int32), beams).indices  # (Q, K)
        written = tf.where(alive, pick(written, going), pad_of(self.options))
        sources = tf.where(alive, pick(sources, going), 0)
        values = tf.where(alive, pick(values, going), tf.zeros([], values.dtype))
        tokens = written_at(pick(old.tokens, sources), length, written)
        indices = written_at(pick(old.indices, sources), generated - 1, self._rows(sources))
        searches = Beams(old.number, tokens, indices, values, finished, pool)
        return Moment(
            length + 1, self.now.sound & all_numbers(total), searches, reorder(state, sources)
        )

    def _closed(
        self, sums: tf.Tensor, sources: tf.Tensor, ended: tf.Tensor, generated: tf.Tensor
    ) -> Pool:
        """The pool with the sequences that end here, (Q, K) each."""
        old = self.searches
        indices = written_at(pick(old.indices, sources), generated - 1, self._rows(sources))
        lengths = tf.fill(tf.shape(sources), self.now.length)
        return self._admit(
            old.pool, sums, lengths, pick(old.tokens, sources), indices, ended, generated
        )

    def _admit(
        self,
        pool: Pool,
        sums: tf.Tensor,
        lengths: tf.Tensor,
        tokens: tf.Tensor,
        indices: tf.Tensor,
        wanted: tf.Tensor,
        generated: tf.Tensor,
    ) -> Pool:
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
            kept_scores = pick(tf.concat([kept_scores, score], axis=1), stay)
            places = pick(tf.concat([places, tf.fill(tf.shape(leaves), beams + k)], axis=1), stay)
            kept += tf.cast(enters & ~full, tf.int32)

        def chosen(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            return pick(tf.concat([old, new], axis=1), places)

        return Pool(
            kept_scores,
            chosen(pool.sums, sums),
            chosen(pool.lengths, lengths),
            chosen(pool.tokens, tokens),
            chosen(pool.indices, indices),
            kept,
        )

    def _settled(self, pool: Pool, best: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        """(Q,) whether a search is over, given its best candidate."""
        full = pool.kept[:, 0] >= self.beams
        if self.options.early_stopping is True:
            return full
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            generated = self.limit - self.plan.prompt
        return full & (tf.reduce_min(pool.scores, axis=1) >= self._divided(best, generated))

    def finished(self, wanted: int) -> Found:
        """Ends the searches: beams still running compete with the finished ones."""
        old, length, limit = self.searches, self.now.length, self.limit
        lengths = tf.fill(tf.shape(old.scores), length)
        running = tf.zeros_like(old.scores, tf.bool) | ~old.finished[:, None]
        generated = tf.maximum(length - self.plan.prompt, 1)
        pool = self._admit(
            old.pool, old.scores, lengths, old.tokens, old.indices, running, generated
        )
        # of equals the later one first
        later = self.beams - 1 - tf.math.top_k(pool.scores[:, ::-1], wanted).indices
        scores, sums, lengths = (
            tf.reshape(pick(x, later), [-1]) for x in (pool.scores, pool.sums, pool.lengths)
        )
        tokens, indices = (
            tf.reshape(pick(x, later), [-1, limit]) for x in (pool.tokens, pool.indices)
        )
        width = tf.minimum(tf.reduce_max(lengths) + 1, limit)
        if self.options.eos_token_ids:
            end = tf.fill(tf.shape(lengths), tf.constant(self.options.eos_token_ids[0], tf.int64))
            tokens = tf.where(tf.range(limit) == lengths[:, None], end[:, None], tokens)
            lengths = tf.minimum(lengths + 1, width)
        return Found(tokens, lengths, sums, width, tf.cast(scores, sums.dtype), indices)


def _first_rows(plan: Plan, tokens: tf.Tensor, dtype: tf.DType) -> Rows:
    """From tokens (Q, M)."""
    rows = tf.shape(tokens)[0]
    zeros = tf.zeros([rows], tf.float64)
    return Rows(
        tf.range(tf.cast(rows, tf.int64)),
        tokens,
        tf.fill([rows], plan.prompt),
        zeros,
        tf.zeros([rows], tf.bool),
    )


def _greedy_step(plan: Plan, scorer: Scorer, now: Moment) -> Moment:
    """A step of rag_core.generation.RowSearch without sampling."""
    old: Rows = now.searches
    scores, state = scorer(last_tokens(old.tokens, now.length)[:, None], now.state)
    scores = plan.rules(scores[:, 0], old.tokens, now.length)  # (Q, V)
    chosen = tf.argmax(scores, axis=1)  # the lowest index of equals
    log_probs = tf.gather(scores, chosen, batch_dims=1) - tf.reduce_logsumexp(scores, axis=1)
    sums = old.sums + tf.where(
        old.finished, tf.zeros([], tf.float64), tf.cast(log_probs, tf.float64)
    )
    written = tf.where(old.finished, pad_of(plan.options), chosen)
    lengths = old.lengths + tf.cast(~old.finished, tf.int32)
    finished = old.finished | ends(written, plan.options)
    searches = Rows(
        old.number, written_at(old.tokens, now.length, written), lengths, sums, finished
    )
    return Moment(now.length + 1, now.sound & all_numbers(scores), searches, state)
