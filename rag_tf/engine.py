"""The operations on tensors that rag_core's generation asks for, in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import (
    Engine,
    GenerationConfig,
    Hooks,
    LogitsProcessor,
    SearchResult,
    is_native,
)
from rag_tf import contexts, rescoring, step_scores
from rag_tf.decode_state import DecodeState
from rag_tf.graph import Graph, search_in_graph
from rag_tf.layers import Trace
from rag_tf.marginalize import doc_log_probs, logsumexp
from rag_tf.modules import dim, widen

# Numbers of a block of logits held at once while rescoring.
_BLOCK = 2**23


class TensorEngine(Engine):
    """See `rag_core.generation.Engine`."""

    framework = "tf"
    # The number of beams is compiled into a step's graph, and each beam has a cache of its own.
    shares_first_step = False
    has_graphs = True

    facts = staticmethod(contexts.facts)
    checked_ids = staticmethod(contexts.checked_ids)
    checked_mask = staticmethod(contexts.checked_mask)
    checked_questions = staticmethod(contexts.checked_questions)
    table_size = staticmethod(contexts.table_size)
    doc_log_probs = staticmethod(doc_log_probs)
    apply_warpers = staticmethod(step_scores.apply_warpers)
    guided_scores = staticmethod(step_scores.guided_scores)
    target_log_probs = staticmethod(rescoring.target_log_probs)
    tree_log_probs = staticmethod(rescoring.tree_log_probs)
    candidate_scores = staticmethod(rescoring.candidate_scores)

    def tensor(self, array: Any, like: Any = None) -> tf.Tensor:
        return tf.convert_to_tensor(array)  # TensorFlow finds the place

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor)

    def has_nan(self, x: tf.Tensor) -> bool:
        return bool(tf.reduce_any(tf.math.is_nan(x)))

    def bool_mask(self, mask: tf.Tensor | None, like: tf.Tensor) -> tf.Tensor:
        if mask is None:
            return tf.ones(like.shape[:2], tf.bool)
        return tf.cast(mask, tf.bool)

    def used_width(self, mask: tf.Tensor) -> int:
        used = np.flatnonzero(mask.numpy().any(axis=0))
        if len(used) == 0:
            return 1
        return int(used[-1]) + 1

    def same_mask(self, mask: tf.Tensor, other: tf.Tensor) -> bool:
        width = int(other.shape[1])
        return np.array_equal(mask[:, :width], other) and not np.any(mask[:, width:])

    def take_rows(self, x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, rows)

    def repeat_rows(self, x: tf.Tensor, times: int) -> tf.Tensor:
        return tf.repeat(x, times, axis=0)

    def scatter_rows(self, x: tf.Tensor, rows: tf.Tensor, count: int) -> tf.Tensor:
        shape = tf.concat([[count], tf.shape(x)[1:]], axis=0)
        return tf.scatter_nd(tf.cast(rows, tf.int32)[:, None], x, shape)

    def buffer(self, shape: tuple[int, ...], like: tf.Tensor) -> np.ndarray:
        return np.zeros(shape, like.dtype.as_numpy_dtype)

    def generation_context(self, model: Any) -> AbstractContextManager[Any]:
        if not tf.executing_eagerly():
            raise RuntimeError(
                "generate() decides in Python between its steps, and cannot be part of a "
                "tf.function: call it outside, or make a graph of the whole with "
                "rag_tf.export.export_saved_model"
            )
        # A generator alone has no precision of its own.
        if not hasattr(model, "precision"):
            return nullcontext()
        return model.precision()

    def on_device(self, module: Any) -> AbstractContextManager[Any]:
        # TensorFlow places a generator of one's own itself.
        if not hasattr(module, "on_device"):
            return nullcontext()
        return module.on_device()

    def draw_seed(self) -> int:
        return int(tf.random.uniform((), maxval=2**62, dtype=tf.int64))

    def encode_distinct(self, generator: Any, input_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        both = np.concatenate([input_ids.numpy(), mask.numpy()], axis=1)  # (R, 2S)
        _, first, place = np.unique(both, axis=0, return_index=True, return_inverse=True)
        if len(first) == len(both):
            return generator.encode(input_ids, mask)
        hidden = generator.encode(tf.gather(input_ids, first), tf.gather(mask, first))
        return tf.gather(hidden, place.reshape(-1))

    def decode_step(
        self,
        generator: Any,
        state: Any,
        tokens: tf.Tensor,
        log_priors: tf.Tensor | None,
        traced: tuple[bool, bool] | None = None,
    ) -> tuple[tf.Tensor, Any]:
        if traced is not None:
            trace = Trace(*traced)
            logits = generator.decode(tokens, state, trace=trace)
            return _MARGINAL(logits, log_priors), trace.result()
        if not is_native(generator) or not isinstance(state, DecodeState):
            logits = generator.decode(tokens, state)
            return _MARGINAL(logits, log_priors), None
        length = int(tokens.shape[2])
        generator.reserve(state, length)
        graph = generator.graph("decoding step", partial(_step, generator))
        scores, cache = graph(tokens, state, log_priors)
        state.finish(cache, length)
        return scores, None

    def log_softmax(self, scores: tf.Tensor, inplace: bool) -> tf.Tensor:
        return tf.nn.log_softmax(scores)

    def apply_processors(
        self, scores: tf.Tensor, processors: Sequence[LogitsProcessor], inplace: bool
    ) -> tf.Tensor:
        return step_scores.apply_processors(scores, processors)

    def choose_tokens(
        self, scores: tf.Tensor, noise: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens, log_probs = _TOKENS(scores, _optional(noise))
        return tokens.numpy(), log_probs.numpy()

    def choose_candidates(
        self,
        scores: tf.Tensor,
        sums: np.ndarray,
        active: np.ndarray,
        noise: np.ndarray | None,
        count: int,
        inplace: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        so_far = tf.constant(sums, scores.dtype)
        values, places = _CANDIDATES(
            scores, so_far, tf.constant(active), _optional(noise), tf.constant(count)
        )
        return values.numpy(), places.numpy()

    def search_in_graph(
        self, decoder: Any, options: GenerationConfig, hooks: Hooks, starts: np.ndarray
    ) -> SearchResult | None:
        return search_in_graph(decoder, options, hooks, starts)

    def block_size(self, like: tf.Tensor) -> int:
        return _BLOCK


ENGINE = TensorEngine()


def _optional(array: np.ndarray | None) -> tf.Tensor | None:
    if array is None:
        return None
    return tf.constant(array)


def _marginal(logits: tf.Tensor, log_priors: tf.Tensor | None) -> tf.Tensor:
    """Logits (q*N, K, T, V) -> scores (q*K, V) of the token after the last one."""
    scores = widen(logits[:, :, -1])  # (q*N, K, V)
    if log_priors is not None:
        sizes = tf.concat([tf.shape(log_priors), tf.shape(scores)[1:]], axis=0)
        by_doc = tf.reshape(scores, sizes)  # (q, N, K, V)
        scores = step_scores.marginal_scores(by_doc, log_priors)  # (q, K, V)
    return tf.reshape(scores, (-1, dim(scores, 2)))


def _step(
    generator: Any, tokens: tf.Tensor, state: DecodeState, log_priors: tf.Tensor | None
) -> tuple[tf.Tensor, Any]:
    """One step as one graph: scores (q*K, V), and the cache that the tokens have been added to."""
    logits = generator.decode(tokens, state)
    return _marginal(logits, log_priors), state.cache


def _chosen_tokens(scores: tf.Tensor, noise: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    drawn = scores
    if noise is not None:
        drawn = scores + tf.cast(noise, scores.dtype)
    _, places = step_scores.best_candidates(drawn, 1)  # (Q, 1)
    tokens = places[:, 0]
    chosen = tf.gather(scores, tokens, batch_dims=1)
    return tokens, chosen - logsumexp(scores, 1)


def _chosen_candidates(
    scores: tf.Tensor,
    so_far: tf.Tensor,
    active: tf.Tensor,
    noise: tf.Tensor | None,
    count: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    total = scores + tf.reshape(so_far, [-1, 1])  # (Q*K, V)
    searches = tf.shape(so_far)[0]

    def of_active(x: tf.Tensor) -> tf.Tensor:
        by_search = tf.reshape(x, tf.stack([searches, -1]))  # (Q, K*V)
        return tf.gather(by_search, active)  # (q, K*V)

    if noise is None:
        return step_scores.best_candidates(of_active(total), count)
    drawn = total + tf.cast(noise, total.dtype)
    _, places = step_scores.best_candidates(of_active(drawn), count)
    return tf.gather(of_active(total), places, batch_dims=1), places


# They close over no weights, so one of each serves every model. The first is for steps that are no
# graph themselves: of another's generator, and of ours where it hands out what it saw.
_MARGINAL = Graph(_marginal)
_TOKENS = Graph(_chosen_tokens)
_CANDIDATES = Graph(_chosen_candidates)
