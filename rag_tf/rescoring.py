"""Probabilities of whole candidates: the mathematics of RAG-Sequence's weighing (paper, section
2.5).

What is scored, and in which pieces, is decided in rag_core.generation. Letters: B questions, N
documents a question, n of them, R rows, C candidates of a question, L their length, M = C * L, P
distinct beginnings of candidates, p of them at once, d width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import PrefixTree
from rag_tf import marginalize
from rag_tf.decode_state import DecodeState, Tree
from rag_tf.graph import Graph
from rag_tf.marginalize import logsumexp, sequence_joint
from rag_tf.modules import widen


def candidate_scores(
    each: Any,
    total: Any,
    log_priors: tf.Tensor,
    pad_mask: tf.Tensor,
    drop_first: tf.Tensor | None,
    epsilon: float,
    vocab_size: int,
) -> np.ndarray:
    """See `rag_core.generation.Engine.candidate_scores`."""
    drop: tf.Tensor | bool = False
    if drop_first is not None:
        drop = drop_first
    joint = sequence_joint(tf.constant(each), log_priors, pad_mask, drop)  # (B, N, C)
    score = logsumexp(joint, 1)
    if total is not None:
        spread = sequence_joint(tf.constant(total), vocab_size * log_priors, pad_mask)
        score = (1.0 - epsilon) * score + epsilon / vocab_size * logsumexp(spread, 1)
    return score.numpy()


def tree_log_probs(
    generator: Any,
    state: DecodeState,
    rows: slice,
    width: int,
    tree: PrefixTree,
    targets: tf.Tensor,
    block: int,
    smooth: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """See `rag_core.generation.Engine.tree_log_probs`."""
    graph = generator.graph("rescoring", partial(_tree_log_probs, generator))
    contexts = DecodeState(state.cross, state.cross_allowed)  # without what the searches wrote
    height = max(1, block // ((rows.stop - rows.start) * generator.config.vocab_size))
    return graph(
        contexts,
        tf.constant([rows.start, rows.stop, width], tf.int32),
        _as_tensors(tree),
        targets,
        tf.constant(height),
        smooth,
    )


def _as_tensors(tree: PrefixTree) -> tuple[tf.Tensor, ...]:
    return (
        tf.constant(tree.tokens),
        tf.constant(tree.positions, tf.int32),
        tf.constant(tree.continues),
        tf.constant(tree.nodes, tf.int32),
    )


def _tree_log_probs(
    generator: Any,
    contexts: DecodeState,
    part: tf.Tensor,
    tree: tuple[tf.Tensor, ...],
    targets: tf.Tensor,
    height: tf.Tensor,
    smooth: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`tree_log_probs` as one graph.

    Args:
        generator: decodes.
        contexts: a state without a cache, of all contexts.
        part: (3,) first context, the one after the last, and columns.
        tree: a `PrefixTree` in its parts.
        targets: (C, L).
        height: p, positions whose logits are held at once.
        smooth: whether the second result is wanted; zeros otherwise.
    """
    prefixes, positions, continues, nodes = tree
    state = contexts.part(slice(part[0], part[1]), part[2])
    state.tree = Tree(positions, continues)
    rows, count = part[1] - part[0], tf.shape(prefixes)[0]
    x = generator._decoded(tf.tile(prefixes[None, None], (rows, 1, 1)), state)  # (n, P, d)
    nodes, ids = tf.reshape(nodes, (-1,)), tf.reshape(targets, (-1,))  # (M,)
    zeros = tf.zeros((rows, tf.size(ids)), widen(x).dtype)

    def block(top: tf.Tensor, each: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Adds the targets that continue positions `top` to `top + height`."""
        logits = generator._logits(x[:, top : top + height])  # (n, p, V)
        here = (nodes >= top) & (nodes < top + height)
        at = tf.where(here, nodes - top, 0)
        first = tf.range(rows)[:, None] * tf.shape(logits)[1] + at  # (n, M)
        logits = tf.reshape(logits, (-1, logits.shape[-1]))  # (n*p, V)
        shift = logsumexp(widen(logits), -1)  # (n*p,)
        columns = tf.broadcast_to(tf.cast(ids, tf.int32), tf.shape(first))  # (n, M)
        chosen = tf.gather_nd(logits, tf.stack([first, columns], -1))
        each = tf.where(here, widen(chosen) - tf.gather(shift, first), each)
        if smooth:
            sums = tf.reduce_sum(widen(logits), -1) - logits.shape[-1] * shift
            total = tf.where(here, tf.gather(sums, first), total)
        return top + height, each, total

    # one after the other: the point is to hold one block of logits
    start = (tf.constant(0), zeros, zeros)
    _, each, total = tf.while_loop(lambda top, *_: top < count, block, start, parallel_iterations=1)
    apart = tf.concat([[rows], tf.shape(targets)], 0)
    return tf.reshape(each, apart), tf.reshape(total, apart)


def target_log_probs(
    generator: Any, state: Any, tokens: tf.Tensor, targets: tf.Tensor, smooth: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """See `rag_core.generation.Engine.target_log_probs`."""
    return _LOG_PROBS(generator.decode(tokens, state), targets, smooth)


def _log_probs(
    logits: tf.Tensor, targets: tf.Tensor, smooth: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Logits (R, C, L, V) -> what `target_log_probs` returns."""
    each = marginalize.target_log_probs(logits[:, None], targets)[:, 0]
    if not smooth:
        return each, None
    wide = widen(logits)
    size = tf.cast(tf.shape(wide)[-1], wide.dtype)
    return each, tf.reduce_sum(wide, -1) - size * logsumexp(wide, -1)


_LOG_PROBS = Graph(_log_probs)
