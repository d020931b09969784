"""The searches of `generate` as a loop in a graph: no step of it comes back to Python.

Python has its turn where half of the searches are over, so that the others go on alone. What calls
for Python in each step is left to `rag_core.generation.loop`.
Letters: Q searches, K beams, N documents of a search, P start tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import Decoder, GenerationConfig, SearchResult, is_native
from rag_tf.decode_state import DecodeState
from rag_tf.graph.beam import Plan
from rag_tf.graph.decoding import resumed, steps
from rag_tf.graph.function import Graph, tracing
from rag_tf.graph.rules import offered
from rag_tf.graph.state import Found, Moment

# Sets of options that are remembered, those that were asked for last.
_REMEMBERED = 32


def searched(
    decoder: Decoder, options: GenerationConfig, starts: np.ndarray
) -> SearchResult | None:
    """Runs all searches to their end, if a graph can; None where it can't, and then nothing has
    changed.

    Args:
        decoder: scores the next token.
        options: as `resolve_options` returns them.
        starts: (Q, P) the tokens that the searches start from.

    Returns:
        What rag_core.generation.beam would hand back.
    """
    generator, state = decoder.generator, decoder.state
    in_graphs = is_native(generator) and isinstance(state, DecodeState)
    plain = (
        not decoder.guided
        and not decoder.traced
        and options.use_cache
        and not options.output_scores
    )
    if not plain or decoder.beams != options.num_beams or starts.shape[1] > 1:
        return None
    if not tracing() or not in_graphs or generator.in_training(None) or not offered(options):
        return None
    size = int(generator.get_output_embeddings().weight.shape[0])
    if size <= len(set(options.eos_token_ids)):
        return None
    plan = Plan(options, size, starts.shape[1])
    graph = generator.graph("search", _Search(generator))
    if not graph.function.worth(plan, decoder.active_log_priors is not None, graph.most()):
        return None
    return _Run(decoder, options, plan, graph).result(starts)


class _Search:
    """What the graph does: steps until it is Python's turn."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.asked: dict[tuple[Plan, bool], None] = {}

    def worth(self, plan: Plan, mixed: bool, most: float) -> bool:
        """Whether to make its graph, which takes seconds: when the same options are asked for
        again.

        So neither a single answer nor many options tried out once wait for it; nor do more options
        in rotation than there is memory for graphs (`most`), each of which would be made anew every
        time.
        """
        asked = plan, mixed
        known = asked in self.asked
        self.asked.pop(asked, None)
        self.asked[asked] = None  # the last one
        for old in list(self.asked)[: -max(1, int(min(_REMEMBERED, most)))]:
            self.asked.pop(old, None)  # another thread may have been here
        return known

    def __call__(
        self,
        plan: Plan,
        state: DecodeState,
        log_priors: tf.Tensor | None,
        divisors: tf.Tensor,
        now: Moment,
        stop: tf.Tensor,
    ) -> tuple[DecodeState, Moment]:
        """Goes on before the length `stop`, while all scores are numbers and more than half of
        the searches go on.
        """
        scorer, reorder, kept = steps(self.generator, state, log_priors, plan.beams)
        searches = tf.size(now.searches.finished)

        def going(now: Moment) -> tf.Tensor:
            alive = searches - tf.reduce_sum(tf.cast(now.searches.finished, tf.int32))
            return (now.length < stop) & now.sound & (2 * alive > searches)

        (end,) = tf.while_loop(
            going,
            lambda now: [plan.step(scorer, reorder, divisors, now)],
            [now._replace(state=kept)],
        )
        return resumed(state, end.state, plan.beams), end._replace(state=())


class _Run:
    """One call's searches, as they get fewer."""

    def __init__(
        self, decoder: Decoder, options: GenerationConfig, plan: Plan, graph: Graph
    ) -> None:
        self.generator, self.options, self.plan, self.graph = (
            decoder.generator,
            options,
            plan,
            graph,
        )
        # the decoder's own state stays as it is, for Python to begin with if the graph does not
        # come to an end
        self.state, self.priors, self.docs = (
            replace(decoder.state),
            decoder.active_log_priors,
            decoder.docs,
        )
        self.over: list[Any] = []  # searches that have been let go of

    def result(self, starts: np.ndarray) -> SearchResult | None:
        """What the searches from (Q, P) found; None where scores were no numbers."""
        limit, length = self.options.max_length, starts.shape[1]
        dtypes = [self.state.cross[0][0].dtype] + (
            [] if self.priors is None else [self.priors.dtype]
        )
        dtype = tf.float64 if tf.float64 in dtypes else tf.float32
        divisors = tf.constant(self.plan.divisors())
        now = self.plan.begin(tf.constant(starts), dtype)
        while length < limit and len(now.searches.finished):
            stop = self._room(length, limit)
            state, now = self.graph(
                self.plan, self.state, self.priors, divisors, now, tf.constant(stop)
            )
            if not now.sound:
                return None
            length = int(now.length)
            self.state = replace(
                state, beams=self.state.beams, max_length=self.state.max_length, position=length - 1
            )
            now = now._replace(searches=self._alive(now.searches))
        wanted = self.options.num_return_sequences
        return _finished(_FOUND(self.plan, self._all(now.searches), now.length, divisors, wanted))

    def _room(self, length: int, limit: int) -> int:
        """How long sequences of `length` tokens may get before it is Python's turn again,
        `limit` at most.
        """
        with suppress(ValueError):
            self.generator.reserve(self.state, limit - length)
            return limit
        # The network has fewer positions. Whether they are enough, the searches will show, step by
        # step.
        self.generator.reserve(self.state, 1)
        return length + 1

    def _alive(self, searches: Any) -> Any:
        """Lets go of the searches that are over, once they are half of all."""
        over = searches.finished.numpy()
        if 2 * over.sum() < len(over):
            return searches
        self.over.append(_ROWS(searches, tf.constant(np.flatnonzero(over))))
        alive = np.flatnonzero(~over)
        if len(alive):
            self.state = self.state.select(tf.constant(np.flatnonzero((~over).repeat(self.docs))))
            self.priors = None if self.priors is None else tf.gather(self.priors, alive)
        return _ROWS(searches, tf.constant(alive))

    def _all(self, searches: Any) -> Any:
        """All searches in their first order."""
        if not self.over:
            return searches
        whole = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), searches, *self.over)
        return _ROWS(whole, tf.constant(np.argsort(whole.number.numpy())))


def _rows(searches: Any, at: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda x: tf.gather(x, at), searches)


def _found(plan: Plan, searches: Any, length: tf.Tensor, divisors: tf.Tensor, wanted: int) -> Found:
    return plan.finish(searches, length, divisors, wanted)


# they close over no weights, so one of each serves every model
_ROWS, _FOUND = Graph(_rows), Graph(_found)


def _finished(found: Found) -> SearchResult:
    """As rag_core.generation.beam hands it back."""
    width = int(found.width)
    sequences, lengths = found.sequences[:, :width].numpy(), found.lengths.numpy().astype(np.int64)
    if found.scores is None or found.beam_indices is None:
        return SearchResult(sequences, lengths, found.sum_log_probs.numpy())
    indices = found.beam_indices[:, :width].numpy()
    return SearchResult(
        sequences, lengths, found.sum_log_probs.numpy(), found.scores.numpy(), indices
    )
