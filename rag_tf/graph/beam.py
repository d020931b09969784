"""Beam search and greedy search as one loop in a graph: the twin of rag_core.generation's, for
where no Python may run.

It decides as `BeamSearch` does, ties included, and is tested against it case by case. Its own
shapes stay as they are from step to step, so XLA compiles it where those of the scorer's state do,
too.
Letters: Q searches, K beams, C candidates a step, P start tokens, t tokens so far, M most tokens, V
vocabulary, n sequences handed back for each search, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.graph.rules import GraphRules
from rag_tf.graph.state import (
    BeamHypotheses,
    BeamState,
    GreedyState,
    LoopState,
    SearchResult,
    ends_sequence,
    has_no_nan,
    last_tokens,
    pad_token,
    pick,
    token_buffer,
    write_column,
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
) -> SearchResult:
    """Run all searches to their end.

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
    spec = SearchSpec(options, vocab_size, int(starts.shape[1]))
    divisors = tf.constant(spec.divisors())
    limit = options.max_length
    (end,) = tf.while_loop(
        lambda now: (now.length < limit) & ~tf.reduce_all(now.searches.finished),
        lambda now: [spec.step(scorer, reorder, divisors, now)],
        [spec.begin(starts, dtype, state)],
        maximum_iterations=limit - spec.prompt_length,
    )
    return spec.finish(end.searches, end.length, divisors, options.num_return_sequences)


def end_tokens_alone(vocab_size: int, eos_token_ids: Sequence[int]) -> str | None:
    """Says in words that a vocabulary holds nothing but end tokens; None where it holds more."""
    if vocab_size > len(set(eos_token_ids)):
        return None
    return f"a vocabulary of {vocab_size} leaves nothing but the end tokens {eos_token_ids}"


class SearchSpec:
    """What the searches are to do, as far as it is part of a graph: `max_length` is not, but for a
    rule that needs it.

    Two specs that make the same graph are equal, so that a `Graph` takes them for the same switch.

    Args:
        options: as `resolve_options` returns them.
        vocab_size: V.
        prompt_length: P.

    Raises:
        ValueError: as `search` does.
    """

    def __init__(self, options: GenerationConfig, vocab_size: int, prompt_length: int) -> None:
        no_choice = end_tokens_alone(vocab_size, options.eos_token_ids)
        if no_choice is not None:
            raise ValueError(no_choice)
        self.options = options
        self.vocab_size = vocab_size
        self.prompt_length = prompt_length
        self.beams = options.num_beams
        self.rules = GraphRules(options, vocab_size, prompt_length)
        candidates = max(2, 1 + len(options.eos_token_ids)) * self.beams
        self.candidates = min(candidates, self.beams * vocab_size)
        not_compiled = {"num_return_sequences", "return_dict_in_generate"}
        if options.exponential_decay_length_penalty is None:
            not_compiled |= {"max_length", "max_new_tokens"}
        compiled = {k: v for k, v in vars(options).items() if k not in not_compiled}
        self.key = repr((vocab_size, prompt_length, compiled))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpec) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def divisors(self) -> np.ndarray:
        """What a score is divided by, for each generated length up to M: Python's own powers."""
        penalty = self.options.length_penalty
        powers = [float(length**penalty) for length in range(1, self.options.max_length + 1)]
        return np.array([1.0, *powers])

    def begin(self, starts: tf.Tensor, dtype: tf.DType, decoder: Any = ()) -> LoopState:
        """Before the first step, from start tokens (Q, P)."""
        tokens = token_buffer(starts, self.options, self.options.max_length)
        searches = (
            _first_beams(self, tokens, dtype) if self.beams > 1 else _first_greedy(self, tokens)
        )
        return LoopState(tf.constant(self.prompt_length), tf.constant(True), searches, decoder)

    def step(
        self, scorer: Scorer, reorder: Reorder, divisors: tf.Tensor, now: LoopState
    ) -> LoopState:
        """One more token for every search that goes on; shapes stay."""
        if self.beams > 1:
            after = _BeamStep(self, divisors, now).taken(scorer, reorder)
        else:
            after = _greedy_step(self, scorer, now)
        return _with_shapes_of(now, after)

    def finish(
        self,
        searches: BeamState | GreedyState,
        length: tf.Tensor,
        divisors: tf.Tensor,
        num_return_sequences: int,
    ) -> SearchResult:
        """What searches of `length` tokens hand back."""
        if isinstance(searches, GreedyState):
            return SearchResult(searches.tokens, searches.lengths, searches.sums, length)
        now = LoopState(length, tf.constant(True), searches, ())
        return _BeamStep(self, divisors, now).finished(num_return_sequences)


def _with_shapes_of(before: Any, after: Any) -> Any:
    """The new state, whose static shapes tf.while_loop wants unchanged."""
    if tf.executing_eagerly():
        return after
    return tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), after, before)


def _first_beams(spec: SearchSpec, tokens: tf.Tensor, dtype: tf.DType) -> BeamState:
    """From tokens (Q, M)."""
    searches = tf.shape(tokens)[0]
    beams = spec.beams
    tokens = tf.repeat(tokens[:, None], beams, axis=1)  # (Q, K, M)
    indices = -tf.ones_like(tokens)
    # all beams of a search are equal at first: only one may speak
    scores = tf.constant([[0.0] + [-1e9] * (beams - 1)], dtype)
    hypotheses = BeamHypotheses(
        scores=tf.fill([searches, beams], tf.constant(np.inf, tf.float64)),
        sums=tf.zeros([searches, beams], dtype),
        lengths=tf.zeros([searches, beams], tf.int32),
        tokens=tokens,
        indices=indices,
        count=tf.zeros([searches, 1], tf.int32),
    )
    return BeamState(
        number=tf.range(tf.cast(searches, tf.int64)),
        tokens=tokens,
        indices=indices,
        scores=tf.repeat(scores, searches, axis=0),
        finished=tf.zeros([searches], tf.bool),
        hypotheses=hypotheses,
    )


class _BeamStep:
    """A step of rag_core.generation.BeamSearch, all searches at once."""

    def __init__(self, spec: SearchSpec, divisors: tf.Tensor, now: LoopState) -> None:
        self.spec = spec
        self.options = spec.options
        self.beams = spec.beams
        self.divisors = divisors
        self.now = now
        self.searches: BeamState = now.searches
        self.limit = tf.shape(now.searches.tokens)[-1]  # M

    def taken(self, scorer: Scorer, reorder: Reorder) -> LoopState:
        """All that the step changes."""
        length = self.now.length
        old = self.searches
        vocab_size = self.spec.vocab_size
        total, decoder = self._total_scores(scorer)  # (Q, K, V)
        # of equals the lowest index goes first
        flat = tf.reshape(total, [-1, self.beams * vocab_size])
        values, places = tf.math.top_k(flat, self.spec.candidates)  # (Q, C)
        written = tf.cast(places % vocab_size, tf.int64)
        sources = places // vocab_size
        ended = ends_sequence(written, self.options)
        active = ~old.finished[:, None]
        generated = length + 1 - self.spec.prompt_length
        # only a candidate among the first K may end a sequence
        hypotheses = self._with_ended(
            values[:, : self.beams],
            sources[:, : self.beams],
            ended[:, : self.beams] & active,
            generated,
        )
        finished = old.finished | self._is_done(hypotheses, values[:, 0], generated)
        # the best K that go on, in their order
        going_on = tf.math.top_k(tf.cast(~ended, tf.int32), self.beams).indices  # (Q, K)
        written = tf.where(active, pick(written, going_on), pad_token(self.options))
        sources = tf.where(active, pick(sources, going_on), 0)
        searches = BeamState(
            number=old.number,
            tokens=write_column(pick(old.tokens, sources), length, written),
            indices=self._with_rows(sources, generated),
            scores=tf.where(active, pick(values, going_on), tf.zeros([], values.dtype)),
            finished=finished,
            hypotheses=hypotheses,
        )
        all_finite = self.now.all_finite & has_no_nan(total)
        return LoopState(length + 1, all_finite, searches, reorder(decoder, sources))

    def _total_scores(self, scorer: Scorer) -> tuple[tf.Tensor, Any]:
        """(Q, K, V) what each beam's tokens and the next one sum up to; the scorer's state."""
        old = self.searches
        scores, decoder = scorer(last_tokens(old.tokens, self.now.length), self.now.decoder)
        scores = self.spec.rules(
            tf.reshape(scores, [-1, self.spec.vocab_size]),
            tf.reshape(old.tokens, [-1, self.limit]),
            self.now.length,
        )
        scores = tf.reshape(scores, [-1, self.beams, self.spec.vocab_size])
        return scores + old.scores[..., None], decoder

    def _divided(self, sums: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        return tf.cast(sums, tf.float64) / tf.gather(self.divisors, generated)

    def _with_rows(self, sources: tf.Tensor, generated: tf.Tensor) -> tf.Tensor:
        """The ancestry of beams (Q, A) that continue `sources`, (Q, A, M): rows of all beams."""
        rows = self.searches.number[:, None] * self.beams + tf.cast(sources, tf.int64)
        return write_column(pick(self.searches.indices, sources), generated - 1, rows)

    def _with_ended(
        self, sums: tf.Tensor, sources: tf.Tensor, ended: tf.Tensor, generated: tf.Tensor
    ) -> BeamHypotheses:
        """The hypotheses with the sequences that end here, (Q, K) each."""
        return self._with_added(
            sums=sums,
            lengths=tf.fill(tf.shape(sources), self.now.length),
            tokens=pick(self.searches.tokens, sources),
            indices=self._with_rows(sources, generated),
            is_added=ended,
            generated=generated,
        )

    def _with_added(
        self,
        *,
        sums: tf.Tensor,
        lengths: tf.Tensor,
        tokens: tf.Tensor,
        indices: tf.Tensor,
        is_added: tf.Tensor,
        generated: tf.Tensor,
    ) -> BeamHypotheses:
        """Up to K sequences more for each search, one after the other, where `is_added` (Q, K)."""
        beams = self.beams
        old = self.searches.hypotheses
        count = old.count
        best_scores = old.scores
        scores = self._divided(sums, generated)
        slots = tf.range(beams)[None]  # (1, K)
        places = tf.zeros_like(sums, tf.int32) + slots  # (Q, K) in [old ones, new ones]
        for k in range(beams):
            score = scores[:, k : k + 1]  # (Q, 1)
            is_full = count >= beams  # (Q, 1)
            is_better = score > tf.reduce_min(best_scores, axis=1, keepdims=True)
            enters = is_added[:, k : k + 1] & (~is_full | is_better)
            lowest = tf.argmin(best_scores, axis=1, output_type=tf.int32)[:, None]
            # who leaves: the newcomer, the first of the lowest, or an empty place in front
            leaves = tf.where(enters, tf.where(is_full, lowest, 0), beams)
            stay = slots + tf.cast(slots >= leaves, tf.int32)
            newcomer = tf.fill(tf.shape(leaves), beams + k)
            best_scores = pick(tf.concat([best_scores, score], axis=1), stay)
            places = pick(tf.concat([places, newcomer], axis=1), stay)
            count += tf.cast(enters & ~is_full, tf.int32)

        def chosen(before: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            return pick(tf.concat([before, new], axis=1), places)

        return BeamHypotheses(
            scores=best_scores,
            sums=chosen(old.sums, sums),
            lengths=chosen(old.lengths, lengths),
            tokens=chosen(old.tokens, tokens),
            indices=chosen(old.indices, indices),
            count=count,
        )

    def _is_done(
        self, hypotheses: BeamHypotheses, best: tf.Tensor, generated: tf.Tensor
    ) -> tf.Tensor:
        """(Q,) whether a search is over, given its best candidate."""
        is_full = hypotheses.count[:, 0] >= self.beams
        if self.options.early_stopping is True:
            return is_full
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            generated = self.limit - self.spec.prompt_length
        worst = tf.reduce_min(hypotheses.scores, axis=1)
        return is_full & (worst >= self._divided(best, generated))

    def finished(self, num_return_sequences: int) -> SearchResult:
        """End the searches: beams still running compete with the finished ones."""
        old = self.searches
        length = self.now.length
        limit = self.limit
        hypotheses = self._with_added(
            sums=old.scores,
            lengths=tf.fill(tf.shape(old.scores), length),
            tokens=old.tokens,
            indices=old.indices,
            is_added=tf.zeros_like(old.scores, tf.bool) | ~old.finished[:, None],
            generated=tf.maximum(length - self.spec.prompt_length, 1),
        )
        # of equals the later one first
        reversed_scores = hypotheses.scores[:, ::-1]
        best = self.beams - 1 - tf.math.top_k(reversed_scores, num_return_sequences).indices

        def of_best(x: tf.Tensor, shape: list[Any]) -> tf.Tensor:
            return tf.reshape(pick(x, best), shape)

        scores = of_best(hypotheses.scores, [-1])
        sums = of_best(hypotheses.sums, [-1])
        lengths = of_best(hypotheses.lengths, [-1])
        tokens = of_best(hypotheses.tokens, [-1, limit])
        indices = of_best(hypotheses.indices, [-1, limit])
        width = tf.minimum(tf.reduce_max(lengths) + 1, limit)
        if self.options.eos_token_ids:
            end_token = tf.constant(self.options.eos_token_ids[0], tf.int64)
            is_end = tf.range(limit) == lengths[:, None]
            tokens = tf.where(is_end, end_token, tokens)
            lengths = tf.minimum(lengths + 1, width)
        return SearchResult(tokens, lengths, sums, width, tf.cast(scores, sums.dtype), indices)


def _first_greedy(spec: SearchSpec, tokens: tf.Tensor) -> GreedyState:
    """From tokens (Q, M)."""
    rows = tf.shape(tokens)[0]
    return GreedyState(
        number=tf.range(tf.cast(rows, tf.int64)),
        tokens=tokens,
        lengths=tf.fill([rows], spec.prompt_length),
        sums=tf.zeros([rows], tf.float64),
        finished=tf.zeros([rows], tf.bool),
    )


def _greedy_step(spec: SearchSpec, scorer: Scorer, now: LoopState) -> LoopState:
    """A step of rag_core.generation.RowSearch without sampling."""
    old: GreedyState = now.searches
    scores, decoder = scorer(last_tokens(old.tokens, now.length)[:, None], now.decoder)
    scores = spec.rules(scores[:, 0], old.tokens, now.length)  # (Q, V)
    chosen = tf.argmax(scores, axis=1)  # the lowest index of equals
    log_probs = tf.gather(scores, chosen, batch_dims=1) - tf.reduce_logsumexp(scores, axis=1)
    added = tf.where(old.finished, tf.zeros([], tf.float64), tf.cast(log_probs, tf.float64))
    written = tf.where(old.finished, pad_token(spec.options), chosen)
    searches = GreedyState(
        number=old.number,
        tokens=write_column(old.tokens, now.length, written),
        lengths=old.lengths + tf.cast(~old.finished, tf.int32),
        sums=old.sums + added,
        finished=old.finished | ends_sequence(written, spec.options),
    )
    return LoopState(now.length + 1, now.all_finite & has_no_nan(scores), searches, decoder)
