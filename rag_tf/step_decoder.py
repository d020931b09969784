"""Scores of the next token, with what the networks saw on the way: contexts encoded once, beams
riding on them.

Letters: N documents of a search, Q searches, K beams, R contexts, S context length, t tokens so
far, d width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.contexts import checked_ids, checked_mask, checked_tensor, table_size
from rag_tf.decode_state import DecodeState
from rag_tf.graph import Graph
from rag_tf.layers import Trace, as_encoder_output
from rag_tf.modules import widen
from rag_tf.seq2seq import Generator
from rag_tf.step_scores import marginal_scores


def is_traced(options: GenerationConfig) -> bool:
    """Whether a call hands back attentions or hidden states."""
    return bool(
        options.return_dict_in_generate
        and (options.output_attentions or options.output_hidden_states)
    )


def _marginal(logits: tf.Tensor, log_priors: tf.Tensor | None) -> tf.Tensor:
    """Logits (Q*N, K, T, V) -> scores (Q, K, V) of the token after the last one."""
    logits = widen(logits[:, :, -1])  # (Q*N, K, V)
    if log_priors is None:
        return logits
    apart = tf.concat([tf.shape(log_priors), tf.shape(logits)[1:]], axis=0)
    return marginal_scores(tf.reshape(logits, apart), log_priors)


def _step(
    generator: Any, fed: tf.Tensor, state: DecodeState, log_priors: tf.Tensor | None
) -> tuple[tf.Tensor, Sequence[Any] | None]:
    """One step as one graph.

    New tokens (Q*N, K, T) -> scores (Q, K, V), and the cache that they have been added to.
    """
    return _marginal(generator.decode(fed, state), log_priors), state.cache


# for steps that are no graph: of another's generator, and of ours where it hands out what it saw
_MARGINAL = Graph(_marginal)


class Decoder:
    """Scores of the next token for Q searches of K beams.

    Args:
        generator: offers `start` and `decode` (see rag_tf.seq2seq).
        encoder_hidden: (Q*N, S, d); N is 1 where there is no prior.
        encoder_mask: (Q*N, S) bool.
        beams: K.
        options: `max_length`, `use_cache`, `guidance_scale` and what to trace are read.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain
            generator.
        without: scores the same searches without their documents; what these add is then weighed by
            `guidance_scale`.
        traced: whether to note attentions and hidden states.
    """

    def __init__(
        self,
        generator: Any,
        encoder_hidden: tf.Tensor,
        encoder_mask: tf.Tensor,
        *,
        beams: int,
        options: GenerationConfig,
        log_priors: tf.Tensor | None = None,
        without: Decoder | None = None,
        traced: bool = False,
    ) -> None:
        self.generator, self.log_priors, self.options = generator, log_priors, options
        self.without, self.traced = without, traced
        self.docs = 1 if log_priors is None else int(log_priors.shape[1])
        self.searches, self.beams = int(encoder_hidden.shape[0]) // self.docs, beams
        self._keep(np.arange(self.searches))
        self.fed = 0  # positions that the cache holds
        self.traces: list[list[Any]] = []
        length = options.max_length if options.use_cache else None
        self.state = generator.start(encoder_hidden, encoder_mask, beams=beams, max_length=length)

    def scores(self, tokens: np.ndarray) -> tf.Tensor:
        """Tokens so far (Q, K, t) -> logits or marginal log-probabilities (Q, K, V), zeros for
        searches let go of.
        """
        # (Q*N, K, t or new ones)
        fed = tokens[self.running][..., self.fed :].repeat(self.docs, axis=0)
        if self.options.use_cache:
            self.fed = tokens.shape[2]
        scores = self._decode(tf.constant(fed))  # (Q, K, V)
        if len(self.running) < self.searches:
            whole = tf.concat([[self.searches], tf.shape(scores)[1:]], axis=0)
            scores = tf.scatter_nd(tf.constant(self.running[:, None], tf.int32), scores, whole)
        return scores if self.without is None else self._guided(scores, self.without.scores(tokens))

    def _decode(self, fed: tf.Tensor) -> tf.Tensor:
        generator, length = self.generator, int(fed.shape[2])
        if self.traced or not in_graphs(generator, self.state):
            return _MARGINAL(self._logits(fed), self.priors)
        generator.reserve(self.state, length)
        graph = generator.graph("decoding step", partial(_step, generator))
        scores, cache = graph(fed, self.state, self.priors)
        self.state.finish(cache, length)
        return scores

    def _logits(self, fed: tf.Tensor) -> tf.Tensor:
        if not self.traced:
            return self.generator.decode(fed, self.state)
        trace = Trace(self.options.output_hidden_states, self.options.output_attentions)
        logits = self.generator.decode(fed, self.state, trace=trace)
        self.traces.append(trace.result())
        return logits

    def _guided(self, scores: tf.Tensor, without: tf.Tensor) -> tf.Tensor:
        scores, without = tf.nn.log_softmax(scores), tf.nn.log_softmax(without)
        guided = without + (self.options.guidance_scale or 1.0) * (scores - without)
        return tf.where(tf.equal(scores, -np.inf), scores, guided)

    def reorder(self, sources: np.ndarray) -> None:
        """Beam k of search q continues beam `sources[q, k]` (Q, K)."""
        self.state.reorder(tf.constant(sources[self.running].repeat(self.docs, axis=0)))
        if self.without is not None:
            self.without.reorder(sources)

    def drop(self, finished: np.ndarray) -> None:
        """Lets go of finished searches (Q,) once they are half of what is computed.

        A trace keeps all its rows.
        """
        if self.without is not None:
            self.without.drop(finished)
        alive = ~finished[self.running]
        few = 2 * alive.sum() <= len(alive)
        if self.traced or not few or not alive.any() or not hasattr(self.state, "select"):
            return
        self.state = self.state.select(tf.constant(np.flatnonzero(alive.repeat(self.docs))))
        self._keep(self.running[alive])

    def _keep(self, running: np.ndarray) -> None:
        self.running = running
        self.priors = None if self.log_priors is None else tf.gather(self.log_priors, running)

    def seen(self) -> dict[str, Any]:
        """The decoder's fields of `GenerateOutput`: for each step a tuple, one a layer."""
        names = ("decoder_hidden_states", "decoder_attentions", "cross_attentions")
        parts = zip(*self.traces, strict=True) if self.traces else ()
        return {
            name: steps for name, steps in zip(names, parts, strict=False) if steps[0] is not None
        }


def in_graphs(generator: Any, state: Any) -> bool:
    """Whether a generator's `decode` can be part of a graph with this state: ours can."""
    return isinstance(generator, Generator) and isinstance(state, DecodeState)


def placed(generator: Any) -> Any:
    """Within it TensorFlow computes where the generator's weights are, where the generator says."""
    return generator.placed() if hasattr(generator, "placed") else contextlib.nullcontext()


def trim(input_ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Contexts (R, S) and their bool mask, without the columns at the end that are padding in
    every row.
    """
    used = np.flatnonzero(mask.numpy().any(axis=0))
    width = int(used[-1]) + 1 if len(used) else 1
    return input_ids[:, :width], mask[:, :width]


def encode_distinct(generator: Any, input_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Encoder states (R, S, d) of contexts (R, S); a context that occurs twice is encoded once."""
    both = np.concatenate([input_ids.numpy(), mask.numpy()], axis=1)
    _, first, place = np.unique(both, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(both):
        return generator.encode(input_ids, mask)
    return tf.gather(
        generator.encode(tf.gather(input_ids, first), tf.gather(mask, first)), place.reshape(-1)
    )


def encode_seen(
    generator: Any, input_ids: tf.Tensor, mask: tf.Tensor, options: GenerationConfig
) -> tuple[tf.Tensor, dict[str, Any]]:
    """Encoder states (R, S, d) and, where the options ask, the encoder's fields of
    `GenerateOutput`.

    Raises:
        ValueError: a generator of one's own that cannot be traced.
    """
    if not is_traced(options):
        return encode_distinct(generator, input_ids, mask), {}
    if (
        not hasattr(generator, "get_encoder")
        or "trace" not in inspect.signature(generator.decode).parameters
    ):
        raise ValueError(
            "output_attentions and output_hidden_states need a generator that has get_encoder() "
            f"and whose decode(tokens, state, trace) notes them; {type(generator).__name__} lacks "
            "one of the two"
        )
    wanted = {
        "output_attentions": options.output_attentions,
        "output_hidden_states": options.output_hidden_states,
    }
    outputs = as_encoder_output(
        generator.get_encoder()(input_ids=input_ids, attention_mask=mask, **wanted)
    )
    seen = {
        "encoder_attentions": outputs.attentions,
        "encoder_hidden_states": outputs.hidden_states,
    }
    return outputs.last_hidden_state, seen


def without_documents(
    generator: Any, options: GenerationConfig, negative_prompt: tuple[Any, Any], questions: int
) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Encoder states (B, S', d) and mask of the contexts that guidance contrasts the documents
    with.

    Args:
        generator: the generator.
        options: `guidance_scale` is read; None and 1 ask for nothing.
        negative_prompt: ids (B, S') and their mask; without ids the generator's empty text.
        questions: B.
    """
    if options.guidance_scale in (None, 1):
        return None
    ids, mask = negative_prompt
    if ids is None:
        config = generator.config
        empty = [i for i in (config.bos_token_id, config.eos_token_id) if isinstance(i, int)]
        ids, mask = np.tile(np.array([empty], dtype=np.int64), (questions, 1)), None
    ids = checked_ids("negative_prompt_ids", ids, table_size(generator))
    mask = None if mask is None else checked_tensor("negative_prompt_attention_mask", mask)
    fits = ids.shape.rank == 2 and len(ids) == questions and ids.shape[1]
    if not fits or (mask is not None and mask.shape != ids.shape):
        raise ValueError(
            f"negative_prompt_ids and negative_prompt_attention_mask must be ({questions}, S), a "
            f"row for each question; got {tuple(ids.shape)} and "
            f"{None if mask is None else tuple(mask.shape)}"
        )
    checked_mask("negative_prompt_attention_mask", mask, tuple(ids.shape), "negative_prompt_ids")
    mask = tf.ones_like(ids, tf.bool) if mask is None else tf.cast(mask, tf.bool)
    return encode_distinct(generator, ids, mask), mask
