"""The searches of `generate` as a loop in a graph: no step of it comes back to Python.

Python has its turn where half of the searches are over, so that the others go on alone. What calls
for Python in each step is left to rag_core.generation.loop; `why_not` says what that is.
Letters: Q searches, K beams, N documents of a search, P start tokens, M most tokens.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import Decoder, GenerationConfig, Hooks, SearchResult, is_native
from rag_tf.decode_state import DecodeState
from rag_tf.graph import state as graph_state
from rag_tf.graph.beam import SearchSpec, end_tokens_alone
from rag_tf.graph.decoding import steps, vocabulary
from rag_tf.graph.function import Graph, makes_graphs
from rag_tf.graph.rules import refused_option
from rag_tf.graph.state import LoopState

# Sets of options that are remembered, those that were asked for last.
_REMEMBERED = 32
# Steps of the graph until it is asked again whether anybody waits for the answers.
_STEPS_UNTIL_ASKED = 8
_LOG = logging.getLogger("rag_tf")


def search_in_graph(
    decoder: Decoder, options: GenerationConfig, hooks: Hooks, starts: np.ndarray
) -> SearchResult | None:
    """Run all searches to their end, if a graph can and is to; None where not, and then nothing has
    changed.

    A graph is made for a set of options that is asked for the second time: making it takes seconds,
    for which a single answer would wait, and so would each of many options tried out once. With
    `hooks.graph` True it is made at once, with False never. Why it is not, is logged.

    Args:
        decoder: scores the next token.
        options: as `resolve_options` returns them.
        hooks: the caller's functions, and whether a graph is to be.
        starts: (Q, P) the tokens that the searches start from.

    Raises:
        ValueError: with `hooks.graph` True where a graph can't be.
    """
    reason = "graph=False" if hooks.graph is False else why_not(decoder, options, hooks, starts)
    if reason is None:
        generator = decoder.generator
        spec = SearchSpec(options, vocabulary(generator), starts.shape[1])
        graph = generator.graph("search", _SearchSteps(generator))
        is_marginal = decoder.active_log_priors is not None
        is_repeated = graph.function.is_repeated(spec, is_marginal, graph.capacity())
        if is_repeated or hooks.graph:
            result = _Run(decoder, options, hooks, spec, graph).result(starts)
            if result is not None:
                return result
            reason = "some score is NaN"
        else:
            reason = "these options are asked for the first time, and their graph takes seconds"
    if hooks.graph:
        raise ValueError(
            f"graph must not be True where a graph can't be: {reason}. Leave it out, and such calls "
            "run step by step"
        )
    _LOG.debug("generate runs step by step: %s", reason)
    return None


def why_not(
    decoder: Decoder, options: GenerationConfig, hooks: Hooks, starts: np.ndarray
) -> str | None:
    """Why these searches can't run in a graph, in words; None where they can.

    Args:
        decoder, options, hooks, starts: as in `search_in_graph`.
    """
    for name in ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"):
        if getattr(hooks, name):
            return f"{name} is called in each step"
    refused = refused_option(options)
    if refused is not None:
        return refused
    if decoder.traced:
        return "attentions and hidden states are handed out step by step"
    if options.output_scores:
        return "output_scores=True hands out the scores of each step"
    if not options.use_cache:
        return "use_cache=False decodes all tokens anew in each step"
    if decoder.beams != options.num_beams:
        return f"num_return_sequences={decoder.beams} without beams"
    if starts.shape[1] > 1:
        return "decoder_input_ids: answers begin with more than the start token"
    generator = decoder.generator
    if not is_native(generator) or not isinstance(decoder.state, DecodeState):
        return f"{type(generator).__name__} is not a generator of rag_tf's own"
    if generator.in_training(None):
        return "the generator is in training mode, in which each step draws its dropout"
    if not makes_graphs():
        return "within once() no graphs are made"
    return end_tokens_alone(vocabulary(generator), options.eos_token_ids)


class _SearchSteps:
    """What the graph does: steps until it is Python's turn."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.asked: dict[tuple[SearchSpec, bool], None] = {}  # the last one at the end

    def is_repeated(self, spec: SearchSpec, is_marginal: bool, capacity: float) -> bool:
        """Whether the same options have been asked for before, not too long ago.

        Of more options in rotation than there is memory for graphs (`capacity`), none counts as
        repeated: each graph would be made anew every time.
        """
        request = spec, is_marginal
        is_known = request in self.asked
        self.asked.pop(request, None)
        self.asked[request] = None
        remembered = max(1, int(min(_REMEMBERED, capacity)))
        for forgotten in list(self.asked)[:-remembered]:
            self.asked.pop(forgotten, None)  # another thread may have been here
        return is_known

    def __call__(
        self,
        spec: SearchSpec,
        state: DecodeState,
        log_priors: tf.Tensor | None,
        divisors: tf.Tensor,
        now: LoopState,
        stop: tf.Tensor,
    ) -> tuple[dict[str, Any], LoopState]:
        """Go on before the length `stop`, while no score is NaN and more than half of the searches
        go on.

        Returns:
            `DecodeState.tensors()`, and what the searches know.
        """
        scorer, reorder, tensors = steps(self.generator, state, log_priors, spec.beams)
        searches = tf.size(now.searches.finished)

        def goes_on(now: LoopState) -> tf.Tensor:
            active = searches - tf.reduce_sum(tf.cast(now.searches.finished, tf.int32))
            return (now.length < stop) & now.all_finite & (2 * active > searches)

        (end,) = tf.while_loop(
            goes_on,
            lambda now: [spec.step(scorer, reorder, divisors, now)],
            [now._replace(decoder=tensors)],
        )
        return end.decoder, end._replace(decoder=())


class _Run:
    """One call's searches, as they get fewer.

    The decoder's own state stays as it is, for Python to begin with if the graph does not come to
    an end.
    """

    def __init__(
        self,
        decoder: Decoder,
        options: GenerationConfig,
        hooks: Hooks,
        spec: SearchSpec,
        graph: Graph,
    ) -> None:
        self.hooks = hooks
        self.searches = decoder.searches
        self.generator = decoder.generator
        self.docs = decoder.docs
        self.options = options
        self.spec = spec
        self.graph = graph
        self.state: DecodeState = decoder.state
        self.log_priors = decoder.active_log_priors
        self.over: list[Any] = []  # searches that have been let go of

    def result(self, starts: np.ndarray) -> SearchResult | None:
        """What the searches from (Q, P) found; None where scores were no numbers."""
        limit = self.options.max_length
        length = starts.shape[1]
        divisors = tf.constant(self.spec.divisors())
        now = self.spec.begin(tf.constant(starts), self._score_dtype())
        while length < limit and len(now.searches.finished):
            stop = tf.constant(self._stop(length, limit))
            tensors, now = self.graph(self.spec, self.state, self.log_priors, divisors, now, stop)
            if not now.all_finite:
                return None
            self.state = self.state.with_tensors(tensors)
            length = self.state.position + 1  # the newest token is not in the cache yet
            now = now._replace(searches=self._active(self._awaited(now.searches)))
        searches = self._all(now.searches)
        num_return_sequences = self.options.num_return_sequences
        return _to_numpy(_FINISH(self.spec, searches, now.length, divisors, num_return_sequences))

    def _score_dtype(self) -> tf.DType:
        dtypes = [self.state.cross[0][0].dtype]
        if self.log_priors is not None:
            dtypes.append(self.log_priors.dtype)
        return tf.float64 if tf.float64 in dtypes else tf.float32

    def _awaited(self, searches: Any) -> Any:
        """The searches, those ended that nobody waits for any longer."""
        if self.hooks.cancelled is None:
            return searches
        given_up = tf.constant(self.hooks.given_up(self.searches))
        return searches._replace(finished=searches.finished | tf.gather(given_up, searches.number))

    def _stop(self, length: int, limit: int) -> int:
        """How long sequences of `length` tokens may get before it is Python's turn again,
        `limit` at most.
        """
        with suppress(ValueError):
            self.generator.reserve(self.state, limit - length)
            if self.hooks.cancelled is None:
                return limit
            return min(limit, length + _STEPS_UNTIL_ASKED)
        # The network has fewer positions. Whether they are enough, the searches will show, step by
        # step.
        self.generator.reserve(self.state, 1)
        return length + 1

    def _active(self, searches: Any) -> Any:
        """The searches that go on, without the others once they are half of all."""
        finished = searches.finished.numpy()
        if 2 * finished.sum() < len(finished):
            return searches
        self.over.append(_TAKE(searches, tf.constant(np.flatnonzero(finished))))
        active = np.flatnonzero(~finished)
        if len(active):
            contexts = np.flatnonzero((~finished).repeat(self.docs))
            self.state = self.state.select(tf.constant(contexts))
            if self.log_priors is not None:
                self.log_priors = tf.gather(self.log_priors, active)
        return _TAKE(searches, tf.constant(active))

    def _all(self, searches: Any) -> Any:
        """All searches in their first order."""
        if not self.over:
            return searches
        whole = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), searches, *self.over)
        return _TAKE(whole, tf.constant(np.argsort(whole.number.numpy())))


def _take(searches: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), searches)


def _finish(
    spec: SearchSpec,
    searches: Any,
    length: tf.Tensor,
    divisors: tf.Tensor,
    num_return_sequences: int,
) -> graph_state.SearchResult:
    return spec.finish(searches, length, divisors, num_return_sequences)


# they close over no weights, so one of each serves every model
_TAKE = Graph(_take)
_FINISH = Graph(_finish)


def _to_numpy(result: graph_state.SearchResult) -> SearchResult:
    """As rag_core.generation.beam hands it back."""
    width = int(result.width)
    sequences = result.sequences[:, :width].numpy()
    lengths = result.lengths.numpy().astype(np.int64)
    sums = result.sum_log_probs.numpy()
    if result.scores is None or result.beam_indices is None:
        return SearchResult(sequences, lengths, sums)
    indices = result.beam_indices[:, :width].numpy()
    return SearchResult(sequences, lengths, sums, result.scores.numpy(), indices)
