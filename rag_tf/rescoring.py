"""RAG-Sequence's weighing of candidates (paper, section 2.5): against every document, or by the
searches' own scores.

Letters: B questions, N documents a question, K beams, C candidates of a question, L their length, S
context length, P distinct beginnings of candidates, M = C * L, d width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import Candidates, Finished, PrefixTree, prefix_tree
from rag_tf.graph import Graph
from rag_tf.layers import DecodeState, Tree
from rag_tf.marginalize import logsumexp, sequence_joint, target_log_probs
from rag_tf.modules import widen
from rag_tf.seq2seq import Generator
from rag_tf.step_decoder import placed

# numbers of a block of logits held at once while rescoring
_BLOCK = 2**23
# positions of a tree at most: their attention mask is quadratic
_PREFIXES = 1024


def fast_scores(
    found: Candidates, finished: Finished, log_priors: np.ndarray, beams: int
) -> np.ndarray:
    """log of the sum of p(z|x) p(y|x, z) over the documents whose search found y, (B, C)."""
    questions, docs = log_priors.shape
    each = finished.sum_log_probs.reshape(questions, docs, beams) + log_priors[:, :, None]
    return found.pooled(each.reshape(questions, docs * beams))


def thorough_scores(
    model: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    log_priors: tf.Tensor,
    found: Candidates,
    state: Any = None,
) -> tf.Tensor:
    """-NLL of every candidate as 4.37.2's forward computes it with `exclude_bos_score` (Q10-Q13,
    Q16), (B, C).

    Args:
        model: a RagSequenceForGeneration.
        hidden: (B*N, S, d) encoder states.
        mask: (B*N, S) bool.
        log_priors: (B, N) log p(z|x).
        found: the candidates.
        state: what `start` returned for these contexts, to spare it, or None.
    """
    config, generator, tokens = model.config, model.generator, found.tokens  # (B, C, L)
    pad = config.generator.pad_token_id
    end = np.full_like(tokens[..., :1], -1 if pad is None else pad)
    target = np.concatenate([tokens[..., 1:], end], axis=-1)
    pad_mask = target == end
    target = np.where(pad_mask, 0, target)
    epsilon, docs = config.label_smoothing, int(log_priors.shape[1])
    with placed(generator):
        if isinstance(generator, Generator):
            state = generator.start(hidden, mask) if state is None else state
            each, total = _scored_by_prefix(
                generator, state, mask, tokens, target, pad_mask, docs, epsilon > 0
            )
        else:
            each, total = _scored(generator, hidden, mask, tokens, target, docs, epsilon > 0)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop = np.zeros((1, 1, 1), dtype=bool)
    if bos is not None:
        # one answer a question, (B, 1, 1)
        drop = ((target[..., 0] == bos) | ~found.exists).all(axis=1)[:, None, None]
    # (B, C)
    score = logsumexp(sequence_joint(each, log_priors, tf.constant(pad_mask), tf.constant(drop)), 1)
    if total is None:
        return score
    size = config.generator.vocab_size
    smooth = logsumexp(sequence_joint(total, size * log_priors, tf.constant(pad_mask)), 1)
    return (1.0 - epsilon) * score + epsilon / size * smooth


def _scored_by_prefix(
    generator: Generator,
    whole: DecodeState,
    mask: tf.Tensor,
    tokens: np.ndarray,
    target: np.ndarray,
    pad_mask: np.ndarray,
    docs: int,
    smooth: bool,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """As `_scored`, each distinct beginning of a question's candidates decoded once: P positions in
    place of C * L.

    Positions that the `pad_mask` (B, C, L) leaves out at the end are not decoded at all.
    """
    questions, count, length = tokens.shape
    block, width = _BLOCK, 4 * generator.config.d_model
    graph = generator.graph("rescoring", partial(_tree_scores, generator))
    each = np.zeros(
        (questions, docs, count, length), widen(whole.cross[0][0][:0]).dtype.as_numpy_dtype
    )
    total = np.zeros_like(each) if smooth else None
    lengths = (~pad_mask * np.arange(1, length + 1)).max(axis=2).clip(min=1)  # (B, C)
    used = (mask.numpy() * np.arange(1, mask.shape[1] + 1)).max(axis=1).clip(min=1)  # (B*N,)
    contexts = DecodeState(whole.cross, whole.cross_allowed)  # without what the searches wrote
    group = max(1, _PREFIXES // length)
    for b, candidates in enumerate(tokens):
        for left in range(0, count, group):
            some = slice(left, left + group)
            tree = prefix_tree(candidates[some], lengths[b, some])
            height = max(1, block // (len(tree.tokens) * width))
            for top in range(0, docs, height):
                rows = slice(top, min(top + height, docs))
                at = slice(b * docs + rows.start, b * docs + rows.stop)
                part = tf.constant([at.start, at.stop, used[at].max()], tf.int32)
                size = max(1, block // ((at.stop - at.start) * generator.config.vocab_size))
                found = graph(
                    contexts,
                    part,
                    _as_tensors(tree),
                    tf.constant(target[b, some]),
                    tf.constant(size),
                    smooth,
                )
                each[b, rows, some] = found[0]
                if total is not None:
                    total[b, rows, some] = found[1]
    return tf.constant(each), None if total is None else tf.constant(total)


def _as_tensors(tree: PrefixTree) -> tuple[tf.Tensor, ...]:
    return (
        tf.constant(tree.tokens),
        tf.constant(tree.positions, tf.int32),
        tf.constant(tree.continues),
        tf.constant(tree.nodes, tf.int32),
    )


def _tree_scores(
    generator: Generator,
    contexts: DecodeState,
    part: tf.Tensor,
    tree: tuple[tf.Tensor, ...],
    target: tf.Tensor,
    size: tf.Tensor,
    smooth: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_scored` for a question's targets (C, L) and some of its documents, (N, C, L); as one
    graph.

    Args:
        generator: decodes.
        contexts: a state without a cache, of all contexts.
        part: (3,) first context, the one after the last, and columns.
        tree: a `PrefixTree` in its parts.
        target: (C, L).
        size: p, positions whose logits are held at once.
        smooth: whether the second result is wanted; zeros otherwise.
    """
    prefixes, positions, continues, nodes = tree
    state = contexts.part(slice(part[0], part[1]), part[2])
    state.tree = Tree(positions, continues)
    rows, count = part[1] - part[0], tf.shape(prefixes)[0]
    x = generator._decoded(tf.tile(prefixes[None, None], (rows, 1, 1)), state)  # (N, P, d)
    nodes, ids = tf.reshape(nodes, (-1,)), tf.reshape(target, (-1,))  # (M,)
    zeros = tf.zeros((rows, tf.size(ids)), widen(x).dtype)

    def block(top: tf.Tensor, each: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Adds the targets that continue positions `top` to `top + size`."""
        logits = generator._logits(x[:, top : top + size])  # (N, p, V)
        here = (nodes >= top) & (nodes < top + size)
        at = tf.where(here, nodes - top, 0)
        first = tf.range(rows)[:, None] * tf.shape(logits)[1] + at  # (N, M)
        logits = tf.reshape(logits, (-1, logits.shape[-1]))  # (N*p, V)
        shift = _normalisers(logits)  # (N*p,)
        chosen = tf.gather_nd(
            logits, tf.stack([first, tf.broadcast_to(tf.cast(ids, tf.int32), tf.shape(first))], -1)
        )
        each = tf.where(here, widen(chosen) - tf.gather(shift, first), each)
        if smooth:
            sums = tf.reduce_sum(widen(logits), -1) - logits.shape[-1] * shift
            total = tf.where(here, tf.gather(sums, first), total)
        return top + size, each, total

    # one after the other: the point is to hold one block of logits
    start = (tf.constant(0), zeros, zeros)
    _, each, total = tf.while_loop(lambda top, *_: top < count, block, start, parallel_iterations=1)
    apart = tf.concat([[rows], tf.shape(target)], 0)
    return tf.reshape(each, apart), tf.reshape(total, apart)


def _normalisers(logits: tf.Tensor) -> tf.Tensor:
    """logsumexp of (n, V) over the vocabulary, (n,)."""
    return logsumexp(widen(logits), -1)


def _scored(
    generator: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    tokens: np.ndarray,
    target: np.ndarray,
    docs: int,
    smooth: bool,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Log-probability of each target token, (B, N, C, L), and with `smooth` the sum over the
    vocabulary beside it.

    Candidates ride on the beams' axis of the contexts whose encoder states exist; blocks bound the
    logits held at once.
    """
    count, length = tokens.shape[1:]
    rows = int(hidden.shape[0])
    tokens, target = (x.repeat(docs, axis=0) for x in (tokens, target))  # (B*N, C, L)
    size, block = length * getattr(generator.config, "vocab_size", 2**16), 8 * _BLOCK
    width = max(1, min(count, block // size))
    height = max(1, min(rows, block // (size * width)))
    each, total = [], []
    for top in range(0, rows, height):
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)
        for left in range(0, count, width):
            some = slice(left, left + width)
            logits = generator.decode(tf.constant(tokens[at, some]), state)  # (rows, c, L, V)
            found, sums = _EACH(logits, tf.constant(target[at, some]), smooth)
            each.append(found)
            total.append(sums)
    shape = (rows // docs, docs, count, length)

    def whole(parts: list[tf.Tensor]) -> tf.Tensor:
        across = -(-count // width)
        lines = [tf.concat(parts[i : i + across], axis=1) for i in range(0, len(parts), across)]
        return tf.reshape(tf.concat(lines, axis=0), shape)

    return whole(each), whole(total) if smooth else None


def _each(logits: tf.Tensor, target: tf.Tensor, smooth: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Logits (rows, c, L, V) -> log-probability of each target token, and the sum over the
    vocabulary, (rows, c, L).
    """
    each = target_log_probs(logits[:, None], target)[:, 0]
    if not smooth:
        return each, None
    wide = widen(logits)
    return each, tf.reduce_sum(wide, -1) - tf.cast(tf.shape(wide)[-1], wide.dtype) * logsumexp(
        wide, -1
    )


_EACH = Graph(_each)
