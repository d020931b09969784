"""RAG's marginalisation as pure functions (paper, section 2.1). All in float32 or wider, also under
mixed precision.

Letters: B questions, N documents a question, T target length, V vocabulary, D vector size; "..."
any axes in between, such as the candidates or beams of a question. Ranks are static, sizes need not
be: all of it runs in open graphs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rag_tf.modules import widen


def promote(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """The tensors in one dtype, the widest of theirs, float32 at least."""
    wide = [widen(tensor) for tensor in tensors]
    dtype = tf.float32
    if any(tensor.dtype == tf.float64 for tensor in wide):
        dtype = tf.float64
    return [tf.cast(tensor, dtype) for tensor in wide]


def masked_fill(x: tf.Tensor, mask: Any, value: float) -> tf.Tensor:
    """`value` where `mask` (broadcastable) is True, x elsewhere.

    No gradient comes from what is filled.
    """
    return tf.where(mask, tf.constant(value, x.dtype), x)


def logsumexp(x: tf.Tensor, axis: int, keepdims: bool = False) -> tf.Tensor:
    """log of the sum of exponentials.

    Where all are -inf, -inf with a gradient of 0 (tf.reduce_logsumexp gives NaN).
    """
    top = tf.stop_gradient(tf.reduce_max(x, axis, keepdims=True))
    top = masked_fill(top, ~tf.math.is_finite(top), 0.0)
    total = tf.reduce_sum(tf.exp(x - top), axis, keepdims=True)
    is_zero = tf.equal(total, 0.0)
    log_total = tf.math.log(masked_fill(total, is_zero, 1.0)) + top
    result = masked_fill(log_total, is_zero, -float("inf"))
    if keepdims:
        return result
    return tf.squeeze(result, axis)


def doc_scores(
    question: tf.Tensor, docs: tf.Tensor, doc_mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Inner products of question and document vectors.

    Args:
        question: question vectors (B, D).
        docs: document vectors (B, N, D).
        doc_mask: (B, N) bool, False where the search found no document: score -inf, posterior
            exactly 0.

    Returns:
        (B, N) in float32 or wider: half precision could not tell scores near 75 apart.
    """
    question, docs = promote(question, docs)
    scores = tf.reduce_sum(question[:, None] * docs, -1)  # (B, N)
    if doc_mask is None:
        return scores
    return masked_fill(scores, ~tf.cast(doc_mask, tf.bool), -float("inf"))


def doc_log_probs(scores: tf.Tensor) -> tf.Tensor:
    """log p(z|x) of the retrieved documents, (B, N) -> (B, N)."""
    scores = widen(scores)
    log_probs = scores - logsumexp(scores, 1, keepdims=True)
    # Where no document was found at all, -inf less -inf would be NaN.
    return masked_fill(log_probs, tf.equal(scores, -float("inf")), -float("inf"))


def expand_like(log_probs: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """(B, N) with as many trailing axes of length 1 as (B, N, ...) has."""
    return log_probs[(..., *[tf.newaxis] * (like.shape.rank - 2))]


def token_log_probs(logits: tf.Tensor, log_probs: tf.Tensor) -> tf.Tensor:
    """RAG-Token: log sum_z p(z|x) p(y_i|x, z, y_<i) for every token of the vocabulary.

    Args:
        logits: (B, N, ..., V).
        log_probs: log p(z|x), (B, N).

    Returns:
        (B, ..., V).
    """
    logits, log_probs = promote(logits, log_probs)
    normaliser = logsumexp(logits, -1, keepdims=True)  # (B, N, ..., 1)
    # Both are added at once, so that there is one further (B, N, ..., V) and not two.
    shift = expand_like(log_probs, logits) - normaliser
    return logsumexp(logits + shift, 1)


def target_log_probs(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """log p of each target token, without a normalised copy of the logits, nor one for the
    gradient.

    Args:
        logits: (B, N, ..., T, V).
        target: (B, ..., T) token ids.

    Returns:
        (B, N, ..., T).
    """
    index = tf.broadcast_to(target[:, None], tf.shape(logits)[:-1])  # (B, N, ..., T)
    return _target_log_probs(logits, index)


@tf.custom_gradient
def _target_log_probs(logits: tf.Tensor, index: tf.Tensor) -> Any:
    """(..., V) logits, (...) ids -> (...) log-probabilities.

    A gradient that holds one more (..., V), not three.
    """
    normaliser = logsumexp(widen(logits), -1)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        # At a logit (1 if it is the target's, else 0) - its probability, times dy: each step in the
        # last one's memory.
        shift = masked_fill(normaliser, tf.equal(normaliser, -float("inf")), 0.0)
        spread = tf.exp(widen(logits) - shift[..., None]) * -dy[..., None]
        rows = tf.reshape(spread, (-1, tf.shape(logits)[-1]))
        columns = tf.reshape(tf.cast(index, tf.int32), (-1,))
        numbers = tf.range(tf.shape(rows)[0])
        places = tf.stack([numbers, columns], 1)
        rows = tf.tensor_scatter_nd_add(rows, places, tf.reshape(dy, (-1,)))
        slopes = tf.reshape(rows, tf.shape(logits))
        return tf.cast(slopes, logits.dtype), None

    target_logits = tf.gather(logits, index, batch_dims=logits.shape.rank - 1)
    return widen(target_logits) - normaliser, gradient


def answer_log_probs(logits: tf.Tensor, labels: tf.Tensor, pad_token_id: int) -> tf.Tensor:
    """log p(y|x, z) of whole answers, without gradient.

    Args:
        logits: (B, N, T, V).
        labels: (B, T) token ids; the first is not predicted, pads and -100 are not scored.
        pad_token_id: the generator's pad token.

    Returns:
        (B, N).
    """
    target = shift_left(labels, pad_token_id)
    pad_mask = target == pad_token_id  # (B, T)
    scores = target_log_probs(tf.stop_gradient(logits), target)  # (B, N, T)
    return tf.reduce_sum(masked_fill(scores, pad_mask[:, None], 0.0), -1)


def total(x: tf.Tensor) -> tf.Tensor:
    """The sum of all numbers."""
    return tf.reduce_sum(x)


def emdr2(answers: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """The retriever's half of EMDR2 (Sachan et al. 2021, arXiv 2106.05346, section 2.3):
    -log sum_z p(y|x, z) p(z|x), where p(y|x, z) is taken as it is.

    Args:
        answers: log p(y|x, z), (B, N); no gradient goes into it.
        scores: document scores (B, N).

    Returns:
        (B,), in nats.
    """
    answers, prior = promote(tf.stop_gradient(answers), doc_log_probs(scores))
    return -logsumexp(answers + prior, 1)


def pdist(answers: tf.Tensor, scores: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
    """Perplexity distillation (Izacard et al. 2022, arXiv 2208.03299, section 2.2): the divergence
    KL(q || p(z|x)) of p(z|x) from q, the softmax of log p(y|x, z) / temperature.

    Args:
        answers: log p(y|x, z), (B, N); no gradient goes into it.
        scores: document scores (B, N); documents of score -inf have no share in q either.
        temperature: of q, above 0.

    Returns:
        (B,), in nats.
    """
    answers, prior = promote(tf.stop_gradient(answers), doc_log_probs(scores))
    absent = tf.equal(prior, -float("inf"))
    teacher = doc_log_probs(masked_fill(answers / temperature, absent, -float("inf")))
    # Where q is 0, 0 * (-inf - -inf) would be NaN.
    difference = masked_fill(teacher - prior, absent, 0.0)
    return tf.reduce_sum(tf.exp(teacher) * difference, 1)


def passage_scores(questions: tf.Tensor, passages: tf.Tensor) -> tf.Tensor:
    """Inner products of each question with each passage.

    Args:
        questions: (B, D).
        passages: (C, D).

    Returns:
        (B, C) in float32 or wider.
    """
    questions, passages = promote(questions, passages)
    return tf.matmul(questions, passages, transpose_b=True)


def contrastive(scores: tf.Tensor, positive: tf.Tensor, masked: tf.Tensor) -> tf.Tensor:
    """-log of the softmax over passages at each question's own (Karpukhin et al. 2020, arXiv
    2004.04906, section 3.2).

    Args:
        scores: (B, C).
        positive: (B,), the columns of the questions' own passages.
        masked: (B, C) bool, True = no passage for that question to be told from.

    Returns:
        (B,), in nats.
    """
    log_probs = doc_log_probs(masked_fill(scores, masked, -float("inf")))
    return -tf.gather(log_probs, positive, batch_dims=1)


def shift_left(labels: tf.Tensor, pad_token_id: int) -> tf.Tensor:
    """Labels (B, T) -> what each position should predict.

    One to the left, a pad at the end, -100 as pad.
    """
    rows = tf.shape(labels)[0]
    end = tf.fill([rows, 1], tf.cast(pad_token_id, labels.dtype))
    shifted = tf.concat([labels[:, 1:], end], 1)
    return masked_fill(shifted, shifted == -100, pad_token_id)


def token_joint(logits: tf.Tensor, log_probs: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """RAG-Token: log p(z|x) p(y_i|x, z, y_<i) of each target token and document.

    Its logsumexp over axis 1 is the marginal; normalised over axis 1 it is the posterior of each
    token.

    Args:
        logits: (B, N, ..., T, V).
        log_probs: log p(z|x), (B, N).
        target: (B, ..., T) token ids.

    Returns:
        (B, N, ..., T).
    """
    target_scores, log_probs = promote(target_log_probs(logits, target), log_probs)
    return target_scores + expand_like(log_probs, target_scores)


def sequence_joint(
    target_scores: tf.Tensor,
    log_probs: tf.Tensor,
    pad_mask: tf.Tensor,
    drop_first: tf.Tensor | bool = False,
) -> tf.Tensor:
    """RAG-Sequence: log p(z|x) p(y|x, z) of whole targets, as the reference adds it up.

    The document's log-probability is added to the target's second token, so a target without a
    second token goes without (kept: compatibility Q12). A document of score -inf never counts.

    Args:
        target_scores: log-probability of each target token, (B, N, ..., T).
        log_probs: log p(z|x), (B, N).
        pad_mask: (B, ..., T) bool, True = not scored.
        drop_first: leave out the first token; a bool or bools broadcastable to (B, 1, ...).

    Returns:
        (B, N, ...).
    """
    target_scores, log_probs = promote(target_scores, log_probs)
    mask = pad_mask[:, None]  # (B, 1, ..., T)
    scored = masked_fill(target_scores, mask, 0.0)
    first = masked_fill(scored[..., 0], drop_first, 0.0)
    prior = expand_like(log_probs, first)
    # A slice, not an index: of targets with one token it is empty, and its sum zero.
    second = masked_fill(prior[..., None], mask[..., 1:2], 0.0)  # (B, N, ..., 1 or 0)
    rest = tf.reduce_sum(scored[..., 1:], -1)
    joint = first + rest + tf.reduce_sum(second, -1)
    return masked_fill(joint, tf.equal(prior, -float("inf")), -float("inf"))


def smoothed(
    nll: tf.Tensor, smooth: tf.Tensor | None, epsilon: float, vocab_size: Any, reduce_loss: bool
) -> tf.Tensor:
    """(1 - epsilon) * nll + epsilon / V * smooth, summed over the batch with `reduce_loss`
    (never a mean).
    """
    loss = nll
    if smooth is not None:
        loss = (1.0 - epsilon) * nll + epsilon / tf.cast(vocab_size, nll.dtype) * smooth
    if reduce_loss:
        return tf.reduce_sum(loss)
    return loss


def token_nll(
    logits: tf.Tensor,
    scores: tf.Tensor,
    labels: tf.Tensor,
    pad_token_id: int,
    *,
    epsilon: float = 0.0,
    reduce_loss: bool = False,
) -> tf.Tensor:
    """RAG-Token's negative log-likelihood (paper, section 2.4).

    Args:
        logits: (B, N, T, V).
        scores: document scores (B, N).
        labels: (B, T) token ids; the first is not predicted, pads and -100 are not scored.
        pad_token_id: the generator's pad token.
        epsilon: label smoothing.
        reduce_loss: sum over the batch.

    Returns:
        (B,), or a scalar with `reduce_loss`.
    """
    target = shift_left(labels, pad_token_id)
    pad_mask = target == pad_token_id  # (B, T)
    log_probs = doc_log_probs(scores)
    smooth = None
    if epsilon > 0:
        marginal = token_log_probs(logits, log_probs)  # (B, T, V)
        target_scores = tf.gather(marginal, target, batch_dims=2)
        totals = tf.reduce_sum(marginal, -1)  # (B, T)
        smooth = -tf.reduce_sum(masked_fill(totals, pad_mask, 0.0), 1)
    else:
        joint = token_joint(logits, log_probs, target)  # (B, N, T)
        target_scores = logsumexp(joint, 1)  # (B, T)
    scored = masked_fill(target_scores, pad_mask, 0.0)
    nll = -tf.reduce_sum(scored, 1)
    return smoothed(nll, smooth, epsilon, tf.shape(logits)[-1], reduce_loss)


def sequence_nll(
    logits: tf.Tensor,
    scores: tf.Tensor,
    labels: tf.Tensor,
    pad_token_id: int,
    *,
    bos_token_id: int | None = None,
    exclude_bos_score: bool = False,
    epsilon: float = 0.0,
    reduce_loss: bool = False,
) -> tf.Tensor:
    """RAG-Sequence's negative log-likelihood (paper, section 2.4).

    Args:
        logits, scores, labels, pad_token_id, reduce_loss: as in `token_nll`.
        bos_token_id: what `exclude_bos_score` looks for.
        exclude_bos_score: leave out the first scored token if it is BOS in every row.
        epsilon: label smoothing; the smoothing term counts the document's log-probability V times
            (Q14).

    Returns:
        (B,), or a scalar with `reduce_loss`.
    """
    target = shift_left(labels, pad_token_id)
    pad_mask = target == pad_token_id  # (B, T)
    log_probs = doc_log_probs(scores)
    drop: tf.Tensor | bool = False
    if exclude_bos_score and bos_token_id is not None:
        drop = tf.reduce_all(target[:, 0] == bos_token_id)
    target_scores = target_log_probs(logits, target)  # (B, N, T)
    joint = sequence_joint(target_scores, log_probs, pad_mask, drop)  # (B, N)
    smooth = None
    size = tf.shape(logits)[-1]
    if epsilon > 0:
        wide, log_probs = promote(logits, log_probs)
        count = tf.cast(size, wide.dtype)
        total = tf.reduce_sum(wide, -1) - count * logsumexp(wide, -1)  # (B, N, T)
        smooth_joint = sequence_joint(total, count * log_probs, pad_mask)  # (B, N)
        smooth = -logsumexp(smooth_joint, 1)
    return smoothed(-logsumexp(joint, 1), smooth, epsilon, size, reduce_loss)


# For graphs: the same of logits as the generator returns them, (B*N, T, V), with N as a tensor.


def split_docs(x: tf.Tensor, n_docs: Any) -> tf.Tensor:
    """(B*N, ...) -> (B, N, ...)."""
    sizes = tf.concat([[-1, n_docs], tf.shape(x)[1:]], 0)
    return tf.reshape(x, sizes)


def rows_marginal(logits: tf.Tensor, scores: tf.Tensor, n_docs: tf.Tensor) -> tf.Tensor:
    """`token_log_probs` of rows and scores."""
    return token_log_probs(split_docs(logits, n_docs), doc_log_probs(scores))


def rows_token_nll(
    logits: tf.Tensor,
    scores: tf.Tensor,
    target: tf.Tensor,
    n_docs: tf.Tensor,
    pad: int,
    options: dict[str, Any],
) -> tf.Tensor:
    """`token_nll` of rows."""
    return token_nll(split_docs(logits, n_docs), scores, target, pad, **options)


def rows_sequence_nll(
    logits: tf.Tensor,
    scores: tf.Tensor,
    target: tf.Tensor,
    n_docs: tf.Tensor,
    pad: int,
    options: dict[str, Any],
) -> tf.Tensor:
    """`sequence_nll` of rows."""
    return sequence_nll(split_docs(logits, n_docs), scores, target, pad, **options)
