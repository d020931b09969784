"""Generation of both heads as one graph, from contexts to sequences: rag_core.generation.decode
where no Python may run.

Letters: B questions, N documents a question, K beams, W = N * K sequences found for a question, C
most candidates of a question, L their longest, S context length, M most tokens, R rows, n sequences
handed back for each question, d width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from rag_core.generation import GenerationConfig
from rag_tf.decode_state import DecodeState
from rag_tf.graph.beam import Reorder, Scorer, search
from rag_tf.graph.state import SearchResult
from rag_tf.marginalize import (
    doc_log_probs,
    logsumexp,
    sequence_joint,
    split_docs,
    target_log_probs,
)
from rag_tf.modules import widen
from rag_tf.step_scores import marginal_scores

# numbers of a block of logits held at once while rescoring: 256 MB in float32
_BLOCK = 2**26


class Decoded(NamedTuple):
    """What was generated, and from what.

    Attributes:
        output: `sequences` (B*n, T) int64 and perhaps `sequences_scores` (B*n,).
        hidden: the encoder's states (B*N, S, d), with the mask as given.
        mask: (B*N, S) bool.
    """

    output: dict[str, tf.Tensor]
    hidden: tf.Tensor
    mask: tf.Tensor


def token_graph(
    model: Any, options: GenerationConfig, ids: tf.Tensor, mask: tf.Tensor, scores: tf.Tensor
) -> Decoded:
    """RAG-Token generation; to be called within a graph.

    Args:
        model: a RagTokenForGeneration whose generator is a `rag_tf.seq2seq.Generator`.
        options: as `token_options` returns them.
        ids: contexts (B*N, S), int64.
        mask: (B*N, S) bool.
        scores: of the documents, (B, N).

    Returns:
        Sequences, with scores where there are beams.
    """
    ids, mask = _trimmed(ids, mask)
    hidden = model.generator.encode(ids, mask, False)
    result = _searched(model.generator, options, hidden, mask, doc_log_probs(scores))
    output = {"sequences": result.sequences[:, : result.width]}
    if result.scores is not None:
        output["sequences_scores"] = result.scores
    return Decoded(output, hidden, mask)


def sequence_graph(
    model: Any,
    options: GenerationConfig,
    ids: tf.Tensor,
    mask: tf.Tensor,
    scores: tf.Tensor,
    *,
    num_return_sequences: int = 1,
    do_deduplication: bool = True,
) -> Decoded:
    """RAG-Sequence generation with thorough decoding; to be called within a graph.

    Args:
        model: a RagSequenceForGeneration whose generator is a `rag_tf.seq2seq.Generator`.
        options: of the searches, as `sequence_options` returns them.
        ids, mask, scores: as in `token_graph`.
        num_return_sequences: n.
        do_deduplication: whether a candidate found twice counts once.

    Returns:
        Sequences (B*n, L) and scores, rows left over as in `rag_core.generation.generate_sequence`.
    """
    generator = model.generator
    # the searches read their mask off the pad tokens (compatibility Q23)
    pad = options.pad_token_id
    inferred = tf.ones_like(ids, tf.bool)
    if pad is not None and pad not in options.eos_token_ids:
        inferred = ids != pad
    read, is_real = _trimmed(ids, inferred)
    hidden = generator.encode(read, is_real, False)
    result = _searched(generator, options, hidden, is_real, None)
    filler = model.config.generator.pad_token_id or 0
    # (B, C, L), (B, C)
    tokens, exists = _candidates(result, tf.shape(scores)[0], filler, do_deduplication)

    def encode_again() -> tuple[tf.Tensor, tf.Tensor]:
        read, is_real = _trimmed(ids, mask)
        return generator.encode(read, is_real, False), is_real

    is_same = tf.reduce_all(mask == inferred)
    hidden, is_real = tf.cond(is_same, lambda: (hidden, is_real), encode_again)
    weights = _thorough(model, hidden, is_real, doc_log_probs(scores), tokens, exists)  # (B, C)
    lowest = tf.constant(-float("inf"), weights.dtype)
    weights = tf.where(exists, weights, lowest)
    # rows of pads, for questions with fewer candidates than are to be handed back
    questions = tf.shape(tokens)[0]
    longest = tf.shape(tokens)[2]
    no_tokens = tf.fill([questions, num_return_sequences, longest], tf.constant(filler, tf.int64))
    tokens = tf.concat([tokens, no_tokens], axis=1)
    weights = tf.concat([weights, tf.fill([questions, num_return_sequences], lowest)], axis=1)
    best, order = tf.math.top_k(weights, num_return_sequences)  # of equals the earlier one first
    chosen = tf.gather(tokens, order, batch_dims=1)  # (B, n, L)
    output = {
        "sequences": tf.reshape(chosen, [-1, longest]),
        "sequences_scores": tf.reshape(best, [-1]),
    }
    return Decoded(output, hidden, is_real)


def _trimmed(ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Without the columns at the end that are padding in every row."""
    is_used = tf.reduce_any(mask, axis=0)  # (S,)
    places = tf.where(is_used, tf.range(tf.shape(mask)[1]), 0)
    width = tf.reduce_max(places) + 1
    return ids[:, :width], mask[:, :width]


def _searched(
    generator: Any,
    options: GenerationConfig,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    log_priors: tf.Tensor | None,
) -> SearchResult:
    """One search for each context (R, S, d), or with `log_priors` (B, N) for each question."""
    beams = options.num_beams
    if log_priors is None:
        searches = tf.shape(hidden)[0]
    else:
        searches = tf.shape(log_priors)[0]
    state = generator.start(hidden, mask, beams=beams, max_length=options.max_length)
    scorer, reorder, tensors = steps(generator, state, log_priors, beams)
    starts = tf.fill([searches, 1], tf.constant(options.decoder_start_token_id, tf.int64))
    dtype = tf.float32
    if hidden.dtype == tf.float64:
        dtype = tf.float64
    return search(scorer, reorder, tensors, starts, options, vocabulary(generator), dtype)


def steps(
    generator: Any, state: DecodeState, log_priors: tf.Tensor | None, beams: int
) -> tuple[Scorer, Reorder, dict[str, Any]]:
    """How a search gets its scores: what `beam.search` takes, and the state as the tensors that a
    loop carries.

    Args:
        generator: a `rag_tf.seq2seq.Generator`.
        state: as its `start` returns it.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain
            generator.
        beams: K.
    """
    docs: Any = 1
    if log_priors is not None:
        docs = tf.shape(log_priors)[1]
    # A number, and a beam alone has no other to continue: then no step moves the cache.
    first = replace(state, beams=beams)
    if beams == 1:
        first.source = None

    def scorer(tokens: tf.Tensor, tensors: Any) -> tuple[tf.Tensor, Any]:
        now = first.with_tensors(tensors)
        fed = tf.repeat(tokens, docs, axis=0)  # (Q*N, K, 1)
        # a single position is spared its mask and the swapping of axes
        fed.set_shape((None, *tokens.shape[1:]))
        logits = generator.decode(fed, now)  # (Q*N, K, 1, V)
        logits = widen(logits[:, :, -1])  # (Q*N, K, V)
        if log_priors is not None:
            sizes = tf.concat([tf.shape(log_priors), tf.shape(logits)[1:]], axis=0)
            by_doc = tf.reshape(logits, sizes)  # (Q, N, K, V)
            logits = marginal_scores(by_doc, log_priors)  # (Q, K, V)
        elif beams > 1:
            logits = tf.nn.log_softmax(logits)
        return logits, now.tensors()

    def reorder(tensors: Any, sources: tf.Tensor) -> Any:
        now = first.with_tensors(tensors)
        now.reorder(tf.repeat(sources, docs, axis=0))
        return now.tensors()

    return scorer, reorder, first.tensors()


def vocabulary(generator: Any) -> int:
    """V."""
    return int(generator.get_output_embeddings().weight.shape[0])


def _candidates(
    result: SearchResult, questions: tf.Tensor, pad: int, deduplicate: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """The twin of `collect_candidates`.

    (B, C, L) distinct candidates in the order found, and which exist (B, C).
    """
    width = result.sequences.shape[1]
    rows = tf.reshape(result.sequences, [questions, -1, width])  # (B, W, M)
    lengths = tf.reshape(result.lengths, tf.shape(rows)[:2])  # (B, W)
    is_first = tf.ones_like(lengths)
    if deduplicate:
        is_same = tf.reduce_all(rows[:, :, None] == rows[:, None], axis=3)  # (B, W, W)
        first = tf.argmax(tf.cast(is_same, tf.int32), axis=2, output_type=tf.int32)
        is_first = tf.cast(first == tf.range(tf.shape(rows)[1]), tf.int32)
    count = tf.reduce_sum(is_first, axis=1)  # (B,)
    most = tf.reduce_max(count)
    places = tf.math.top_k(is_first, most).indices  # (B, C); those that count first, in their order
    exists = tf.range(most) < count[:, None]
    longest = tf.reduce_max(lengths)
    tokens = tf.gather(rows, places, batch_dims=1)[:, :, :longest]
    is_within = tf.range(longest) < tf.reduce_max(lengths, axis=1)[:, None, None]
    return tf.where(exists[..., None] & is_within, tokens, tf.constant(pad, tf.int64)), exists


def _thorough(
    model: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    log_priors: tf.Tensor,
    tokens: tf.Tensor,
    exists: tf.Tensor,
) -> tf.Tensor:
    """The twin of rag_core.generation's `thorough_scores`: (B, C)."""
    config = model.config
    epsilon = config.label_smoothing
    docs = tf.shape(log_priors)[1]
    pad = config.generator.pad_token_id
    if pad is None:
        pad = -1  # no token
    end = tf.fill(tf.shape(tokens[..., :1]), tf.constant(pad, tf.int64))
    target = tf.concat([tokens[..., 1:], end], axis=2)
    pad_mask = target == end
    target = tf.where(pad_mask, tf.zeros_like(target), target)
    fed, targets = (tf.repeat(x, docs, axis=0) for x in (tokens, target))  # (B*N, C, L)
    sums = target_sums(model.generator, hidden, mask, fed, targets, epsilon > 0)
    by_doc = [split_docs(x, docs) for x in sums]  # (B, N, C, L)
    drop_first: Any = False
    bos = config.bos_token_id or config.generator.bos_token_id
    if bos is not None:
        # one answer a question, (B, 1, 1)
        has_bos = (target[..., 0] == bos) | ~exists  # (B, C)
        drop_first = tf.reduce_all(has_bos, axis=1)[:, None, None]
    joint = sequence_joint(by_doc[0], log_priors, pad_mask, drop_first)  # (B, N, C)
    score = logsumexp(joint, 1)
    if epsilon <= 0:
        return score
    size = getattr(model.generator.config, "vocab_size", None) or config.generator.vocab_size
    smooth_joint = sequence_joint(by_doc[1], size * log_priors, pad_mask)  # (B, N, C)
    smooth = logsumexp(smooth_joint, 1)
    return (1.0 - epsilon) * score + epsilon / size * smooth


def target_sums(
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
    rows, count, length = tf.unstack(tf.shape(tokens))
    size = length * vocabulary(generator)
    width = tf.clip_by_value(_BLOCK // size, 1, count)
    height = tf.clip_by_value(_BLOCK // (size * width), 1, rows)
    dtype = widen(hidden).dtype
    results = 1
    if smooth:
        results = 2

    def band(top: tf.Tensor, done: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The next few contexts, with all their candidates."""
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)

        def block(left: tf.Tensor, line: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            some = slice(left, left + width)
            logits = generator.decode(tokens[at, some], replace(state))  # (r, c, L, V)
            log_probs = target_log_probs(logits[:, None], target[at, some])  # (r, 1, c, L)
            scored = [log_probs[:, 0]]
            if smooth:
                wide = widen(logits)
                total = tf.reduce_sum(wide, -1) - vocabulary(generator) * logsumexp(wide, -1)
                scored.append(total)
            return left + width, _joined(line, scored, 1)

        empty = tf.zeros([tf.minimum(height, rows - top), 0, length], dtype)
        _, line = _loop(lambda left, _: left < count, block, [empty] * results)
        return top + height, _joined(done, line, 0)

    empty = tf.zeros([0, count, length], dtype)
    _, scored = _loop(lambda top, _: top < rows, band, [empty] * results)
    return scored


def _joined(old: list[tf.Tensor], new: list[tf.Tensor], axis: int) -> list[tf.Tensor]:
    joined = []
    for before, added in zip(old, new, strict=True):
        added = tf.cast(added, before.dtype)
        joined.append(tf.concat([before, added], axis))
    return joined


def _loop(goes_on: Any, body: Any, start: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """tf.while_loop over a number and tensors (., ., .) that grow."""
    open_axes = [tf.TensorShape([None, None, None])] * len(start)
    return tf.while_loop(
        goes_on, body, (tf.constant(0), start), shape_invariants=(tf.TensorShape([]), open_axes)
    )
