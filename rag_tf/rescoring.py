"""RAG-Sequence's weighing of candidates (paper, section 2.5): against every document, or by the searches' own scores.

Letters: B questions, N documents a question, K beams, C candidates of a question, L their length, S context length,
d width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.beam import Finished
from rag_core.candidates import Candidates
from rag_tf.graphs import Graph
from rag_tf.layers import DecodeState
from rag_tf.marginalize import logsumexp, sequence_joint, target_log_probs
from rag_tf.modules import widen
from rag_tf.step_decoder import in_graphs, placed

# numbers of a (rows, candidates, L, V) block of logits held at once while rescoring: 256 MB in float32
_BLOCK = 2**26


def fast_scores(found: Candidates, finished: Finished, log_priors: np.ndarray, beams: int) -> np.ndarray:
    """log of the sum of p(z|x) p(y|x, z) over the documents whose search found y, (B, C)."""
    questions, docs = log_priors.shape
    each = finished.sum_log_probs.reshape(questions, docs, beams) + log_priors[:, :, None]
    return found.pooled(each.reshape(questions, docs * beams))


def thorough_scores(
    model: Any, hidden: tf.Tensor, mask: tf.Tensor, log_priors: tf.Tensor, found: Candidates
) -> tf.Tensor:
    """-NLL of every candidate as 4.37.2's forward computes it with `exclude_bos_score` (Q10-Q13, Q16), (B, C)."""
    config, generator, tokens = model.config, model.generator, found.tokens  # (B, C, L)
    pad = config.generator.pad_token_id
    end = np.full_like(tokens[..., :1], -1 if pad is None else pad)
    target = np.concatenate([tokens[..., 1:], end], axis=-1)
    pad_mask = target == end
    target = np.where(pad_mask, 0, target)
    epsilon = config.label_smoothing
    with placed(generator):
        each, total = _scored(generator, hidden, mask, tokens, target, int(log_priors.shape[1]), epsilon > 0)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop = np.zeros((1, 1, 1), dtype=bool)
    if bos is not None:
        drop = ((target[..., 0] == bos) | ~found.exists).all(axis=1)[:, None, None]  # one answer a question, (B, 1, 1)
    score = logsumexp(sequence_joint(each, log_priors, tf.constant(pad_mask), tf.constant(drop)), 1)  # (B, C)
    if total is None:
        return score
    size = config.generator.vocab_size
    smooth = logsumexp(sequence_joint(total, size * log_priors, tf.constant(pad_mask)), 1)
    return (1.0 - epsilon) * score + epsilon / size * smooth


def _each(logits: tf.Tensor, target: tf.Tensor, smooth: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Logits (rows, c, L, V) -> log-probability of each target token, and the sum over the vocabulary, (rows, c, L)."""
    each = target_log_probs(logits[:, None], target)[:, 0]
    if not smooth:
        return each, None
    wide = widen(logits)
    return each, tf.reduce_sum(wide, -1) - tf.cast(tf.shape(wide)[-1], wide.dtype) * logsumexp(wide, -1)


def _block(generator: Any, tokens: tf.Tensor, target: tf.Tensor, state: DecodeState, smooth: bool) -> Any:
    """`_each` of candidates (rows, c, L), as one graph."""
    return _each(generator.decode(tokens, state), target, smooth)


_EACH = Graph(_each)


def _scored(
    generator: Any, hidden: tf.Tensor, mask: tf.Tensor, tokens: np.ndarray, target: np.ndarray, docs: int, smooth: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Log-probability of each target token, (B, N, C, L), and with `smooth` the sum over the vocabulary beside it.

    Candidates ride on the beams' axis of the contexts whose encoder states exist; blocks bound the logits held at once.
    """
    count, length = tokens.shape[1:]
    rows = int(hidden.shape[0])
    tokens, target = (x.repeat(docs, axis=0) for x in (tokens, target))  # (B*N, C, L)
    size = length * getattr(generator.config, "vocab_size", 2**16)
    width = max(1, min(count, _BLOCK // size))
    height = max(1, min(rows, _BLOCK // (size * width)))
    each, total = [], []
    for top in range(0, rows, height):
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)
        for left in range(0, count, width):
            some = slice(left, left + width)
            fed, wanted = tf.constant(tokens[at, some]), tf.constant(target[at, some])  # (rows, c, L)
            if in_graphs(generator, state):
                generator.reserve(state, length)
                found, sums = generator.graph("rescoring", partial(_block, generator))(fed, wanted, state, smooth)
            else:
                found, sums = _EACH(generator.decode(fed, state), wanted, smooth)
            each.append(found)
            total.append(sums)
    shape = (rows // docs, docs, count, length)

    def whole(parts: list[tf.Tensor]) -> tf.Tensor:
        across = -(-count // width)
        lines = [tf.concat(parts[i : i + across], axis=1) for i in range(0, len(parts), across)]
        return tf.reshape(tf.concat(lines, axis=0), shape)

    return whole(each), whole(total) if smooth else None
