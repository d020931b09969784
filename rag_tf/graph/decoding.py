"""Generation of both heads as one graph, from contexts to sequences: `rag_core.generation.decode` where no
Python may run.

Letters: B questions, N documents a question, K beams, W = N * K sequences found for a question, C
most candidates of a question, L their longest, S context length, M most tokens, R rows, n sequences
handed back for each question, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.decode_state import DecodeState
from rag_tf.graph.beam import Reorder, Scorer, search
from rag_tf.graph.state import Found
from rag_tf.marginalize import doc_log_probs, logsumexp, sequence_joint, target_log_probs
from rag_tf.modules import widen
from rag_tf.step_scores import marginal_scores

# numbers of a block of logits held at once while rescoring: 256 MB in float32
_BLOCK = 2**26


def token_graph(
    model: Any, options: GenerationConfig, ids: tf.Tensor, mask: tf.Tensor, scores: tf.Tensor
) -> dict[str, tf.Tensor]:
    """RAG-Token generation; to be called within a graph.

    Args:
        model: a RagTokenForGeneration whose generator is a `rag_tf.seq2seq.Generator`.
        options: as `token_options` returns them.
        ids: contexts (B*N, S), int64.
        mask: (B*N, S) bool.
        scores: of the documents, (B, N).

    Returns:
        `sequences` (B*n, T) int64 and, with beams, `sequences_scores` (B*n,).
    """
    ids, mask = _trimmed(ids, mask)
    found = _searched(
        model.generator,
        options,
        model.generator.encode(ids, mask, False),
        mask,
        doc_log_probs(scores),
    )
    result = {"sequences": found.sequences[:, : found.width]}
    return result if found.scores is None else result | {"sequences_scores": found.scores}


def sequence_graph(
    model: Any,
    options: GenerationConfig,
    ids: tf.Tensor,
    mask: tf.Tensor,
    scores: tf.Tensor,
    *,
    num_return_sequences: int = 1,
    do_deduplication: bool = True,
) -> dict[str, tf.Tensor]:
    """RAG-Sequence generation with thorough decoding; to be called within a graph.

    Args:
        model: a RagSequenceForGeneration whose generator is a `rag_tf.seq2seq.Generator`.
        options: of the searches, as `sequence_options` returns them.
        ids, mask, scores: as in `token_graph`.
        num_return_sequences: n.
        do_deduplication: whether a candidate found twice counts once.

    Returns:
        `sequences` (B*n, L) int64 and `sequences_scores` (B*n,), rows left over as in
        `rag_core.generation.generate_sequence`.
    """
    generator, pad = model.generator, options.pad_token_id
    # the searches read their mask off the pad tokens (compatibility Q23)
    own = tf.ones_like(ids, tf.bool) if pad is None or pad in options.eos_token_ids else ids != pad
    read, real = _trimmed(ids, own)
    hidden = generator.encode(read, real, False)
    found = _searched(generator, options, hidden, real, None)
    filler = model.config.generator.pad_token_id or 0
    # (B, C, L), (B, C)
    tokens, exists = _candidates(found, tf.shape(scores)[0], filler, do_deduplication)

    def anew() -> tuple[tf.Tensor, tf.Tensor]:
        read, real = _trimmed(ids, mask)
        return generator.encode(read, real, False), real

    hidden, real = tf.cond(tf.reduce_all(mask == own), lambda: (hidden, real), anew)
    weights = _thorough(model, hidden, real, doc_log_probs(scores), tokens, exists)  # (B, C)
    # rows of pads, for questions with fewer candidates than wanted
    none = [tf.shape(tokens)[0], num_return_sequences]
    lowest = tf.constant(-float("inf"), weights.dtype)
    weights = tf.concat([tf.where(exists, weights, lowest), tf.fill(none, lowest)], axis=1)
    tokens = tf.concat(
        [tokens, tf.fill([*none, tf.shape(tokens)[2]], tf.constant(filler, tf.int64))], axis=1
    )
    best, order = tf.math.top_k(weights, num_return_sequences)  # of equals the earlier one first
    chosen = tf.gather(tokens, order, batch_dims=1)  # (B, n, L)
    return {
        "sequences": tf.reshape(chosen, [-1, tf.shape(tokens)[2]]),
        "sequences_scores": tf.reshape(best, [-1]),
    }


def _trimmed(ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Without the columns at the end that are padding in every row."""
    places = tf.where(tf.reduce_any(mask, axis=0), tf.range(tf.shape(mask)[1]), 0)
    width = tf.reduce_max(places) + 1
    return ids[:, :width], mask[:, :width]


def _searched(
    generator: Any,
    options: GenerationConfig,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    log_priors: tf.Tensor | None,
) -> Found:
    """One search for each context (R, S, d), or with `log_priors` (B, N) for each question."""
    beams = options.num_beams
    searches = tf.shape(hidden)[0] if log_priors is None else tf.shape(log_priors)[0]
    first = generator.start(hidden, mask, beams=beams, max_length=options.max_length)
    scorer, reorder, kept = steps(generator, first, log_priors, beams)
    starts = tf.fill([searches, 1], tf.constant(options.decoder_start_token_id, tf.int64))
    dtype = tf.float64 if hidden.dtype == tf.float64 else tf.float32
    return search(scorer, reorder, kept, starts, options, _vocabulary(generator), dtype)


def steps(
    generator: Any, state: DecodeState, log_priors: tf.Tensor | None, beams: int
) -> tuple[Scorer, Reorder, list[tf.Tensor]]:
    """How a search gets its scores: what `beam.search` takes, and the state as the tensors
    that a loop carries.

    Args:
        generator: a `rag_tf.seq2seq.Generator`.
        state: as its `start` returns it.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain
            generator.
        beams: K.
    """
    docs = 1 if log_priors is None else tf.shape(log_priors)[1]

    def scorer(tokens: tf.Tensor, kept: Any) -> tuple[tf.Tensor, Any]:
        now = resumed(state, kept, beams)
        fed = tf.repeat(tokens, docs, axis=0)  # (Q*N, K, 1)
        # a single position is spared its mask and the swapping of axes
        fed.set_shape((None, *tokens.shape[1:]))
        logits = widen(generator.decode(fed, now)[:, :, -1])  # (Q*N, K, V)
        if log_priors is not None:
            apart = tf.concat([tf.shape(log_priors), tf.shape(logits)[1:]], axis=0)
            logits = marginal_scores(tf.reshape(logits, apart), log_priors)  # (Q, K, V)
        elif beams > 1:
            logits = tf.nn.log_softmax(logits)
        return logits, _kept(now)

    def reorder(kept: Any, sources: tf.Tensor) -> Any:
        now = resumed(state, kept, beams)
        now.reorder(tf.repeat(sources, docs, axis=0))
        return _kept(now)

    return scorer, reorder, _kept(state)


def resumed(state: DecodeState, kept: Sequence[tf.Tensor], beams: int) -> DecodeState:
    """A state like `state`, made of the tensors that a loop carries."""
    left = iter(kept)
    parts = [None if part is None else next(left) for part in tf.nest.flatten(state)]
    now = replace(tf.nest.pack_sequence_as(state, parts), beams=beams)
    return now if beams > 1 else replace(now, source=None)


def _kept(state: DecodeState) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(state) if part is not None]


def _vocabulary(generator: Any) -> int:
    return int(generator.get_output_embeddings().weight.shape[0])


def _candidates(
    found: Found, questions: tf.Tensor, pad: int, deduplicate: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """The twin of `collect_candidates`.

    (B, C, L) distinct candidates in the order found, and which exist (B, C).
    """
    width = found.sequences.shape[1]
    rows = tf.reshape(found.sequences, [questions, -1, width])  # (B, W, M)
    lengths = tf.reshape(found.lengths, tf.shape(rows)[:2])  # (B, W)
    distinct = tf.ones_like(lengths)
    if deduplicate:
        same = tf.reduce_all(rows[:, :, None] == rows[:, None], axis=3)  # (B, W, W)
        first = tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32)
        distinct = tf.cast(first == tf.range(tf.shape(rows)[1]), tf.int32)
    count = tf.reduce_sum(distinct, axis=1)  # (B,)
    most = tf.reduce_max(count)
    places = tf.math.top_k(distinct, most).indices  # (B, C); those that count first, in their order
    exists = tf.range(most) < count[:, None]
    longest = tf.reduce_max(lengths)
    tokens = tf.gather(rows, places, batch_dims=1)[:, :, :longest]
    real = exists[..., None] & (tf.range(longest) < tf.reduce_max(lengths, axis=1)[:, None, None])
    return tf.where(real, tokens, tf.constant(pad, tf.int64)), exists


def _thorough(
    model: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    log_priors: tf.Tensor,
    tokens: tf.Tensor,
    exists: tf.Tensor,
) -> tf.Tensor:
    """The twin of `rag_core.generation.rescoring.thorough_scores`: (B, C)."""
    config, generator = model.config, model.generator
    pad = config.generator.pad_token_id
    end = tf.fill(tf.shape(tokens[..., :1]), tf.constant(-1 if pad is None else pad, tf.int64))
    target = tf.concat([tokens[..., 1:], end], axis=2)
    pad_mask = target == end
    target = tf.where(pad_mask, tf.zeros_like(target), target)
    epsilon, docs = config.label_smoothing, tf.shape(log_priors)[1]
    fed, wanted = (tf.repeat(x, docs, axis=0) for x in (tokens, target))  # (B*N, C, L)
    sums = _scored(generator, hidden, mask, fed, wanted, epsilon > 0)
    apart = tf.concat([tf.shape(log_priors), tf.shape(tokens)[1:]], axis=0)
    each, *total = (tf.reshape(x, apart) for x in sums)  # (B, N, C, L)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop: Any = False
    if bos is not None:
        # one answer a question, (B, 1, 1)
        drop = tf.reduce_all((target[..., 0] == bos) | ~exists, axis=1)[:, None, None]
    score = logsumexp(sequence_joint(each, log_priors, pad_mask, drop), 1)
    if not total:
        return score
    size = config.generator.vocab_size
    smooth = logsumexp(sequence_joint(total[0], size * log_priors, pad_mask), 1)
    return (1.0 - epsilon) * score + epsilon / size * smooth


def _scored(
    generator: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    tokens: tf.Tensor,
    target: tf.Tensor,
    smooth: bool,
) -> list[tf.Tensor]:
    """Log-probability of each target token (R, C, L), and with `smooth` the sum over the vocabulary
    beside it.

    Block by block: a few contexts and candidates at once.
    """
    shape = tf.shape(tokens)
    rows, count, length = shape[0], shape[1], shape[2]
    size = length * _vocabulary(generator)
    width = tf.clip_by_value(_BLOCK // size, 1, count)
    height = tf.clip_by_value(_BLOCK // (size * width), 1, rows)
    dtype, parts = widen(hidden).dtype, 2 if smooth else 1

    def lines(top: tf.Tensor, done: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)

        def block(left: tf.Tensor, line: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            some = slice(left, left + width)
            logits = generator.decode(tokens[at, some], replace(state))  # (r, c, L, V)
            new = [target_log_probs(logits[:, None], target[at, some])[:, 0]]
            if smooth:
                wide = widen(logits)
                new.append(tf.reduce_sum(wide, -1) - _vocabulary(generator) * logsumexp(wide, -1))
            return left + width, _joined(line, new, 1)

        here = tf.minimum(height, rows - top)
        start = [tf.zeros([here, 0, length], dtype)] * parts
        _, line = _loop(lambda left, _: left < count, block, start)
        return top + height, _joined(done, line, 0)

    _, scored = _loop(
        lambda top, _: top < rows, lines, [tf.zeros([0, count, length], dtype)] * parts
    )
    return scored


def _joined(old: list[tf.Tensor], new: list[tf.Tensor], axis: int) -> list[tf.Tensor]:
    return [tf.concat([a, tf.cast(b, a.dtype)], axis) for a, b in zip(old, new, strict=True)]


def _loop(going: Any, body: Any, start: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """tf.while_loop over a number and tensors (., ., .) that grow."""
    open_axes = [tf.TensorShape([None, None, None])] * len(start)
    return tf.while_loop(
        going, body, (tf.constant(0), start), shape_invariants=(tf.TensorShape([]), open_axes)
    )
