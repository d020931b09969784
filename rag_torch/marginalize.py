"""RAG's marginalisation as pure functions (paper, section 2.1). All in float32 or wider, also under
autocast.

Letters: B questions, N documents a question, T target length, V vocabulary, D vector size; "..."
any axes in between, such as the candidates or beams of a question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Numbers of a piece that a loss works on at a time: what a CPU's cache holds,
_PIECE_CPU = 2**19
# and what keeps a GPU busy.
_PIECE_GPU = 2**25


def widen(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide)


def split_docs(x: Tensor, n_docs: int) -> Tensor:
    """(B*N, ...) -> (B, N, ...)."""
    return x.unflatten(0, (-1, n_docs))


def doc_scores(question: Tensor, docs: Tensor, doc_mask: Tensor | None = None) -> Tensor:
    """Inner products of question and document vectors.

    Args:
        question: question vectors (B, D).
        docs: document vectors (B, N, D).
        doc_mask: (B, N) bool, False where the search found no document: score -inf, posterior
            exactly 0.

    Returns:
        (B, N) in float32 or wider: half precision could not tell scores near 75 apart.
    """
    # A product and a sum, not a matrix product: autocast would run that one in half precision.
    products = widen(question)[:, None] * widen(docs)  # (B, N, D)
    scores = products.sum(-1)  # (B, N)
    if doc_mask is None:
        return scores
    return scores.masked_fill(~doc_mask.bool(), -torch.inf)


def doc_log_probs(scores: Tensor) -> Tensor:
    """log p(z|x) of the retrieved documents, (B, N) -> (B, N)."""
    return widen(scores).log_softmax(1)


def expand_like(log_probs: Tensor, like: Tensor) -> Tensor:
    """(B, N) with as many trailing axes of length 1 as (B, N, ...) has."""
    trailing = (1,) * (like.dim() - 2)
    return log_probs.reshape(log_probs.shape + trailing)


def token_log_probs(logits: Tensor, log_probs: Tensor) -> Tensor:
    """RAG-Token: log sum_z p(z|x) p(y_i|x, z, y_<i) for every token of the vocabulary.

    Args:
        logits: (B, N, ..., V).
        log_probs: log p(z|x), (B, N).

    Returns:
        (B, ..., V).
    """
    logits = widen(logits)
    normaliser = logits.logsumexp(-1, keepdim=True)  # (B, N, ..., 1)
    shift = expand_like(log_probs, logits) - normaliser
    return (logits + shift).logsumexp(1)


def target_log_probs(logits: Tensor, target: Tensor) -> Tensor:
    """log p of each target token, without a normalised copy of the logits, nor one for the
    gradient.

    Args:
        logits: (B, N, ..., T, V).
        target: (B, ..., T) token ids.

    Returns:
        (B, N, ..., T).
    """
    index = target[:, None, ..., None]
    index = index.expand(*logits.shape[:-1], 1)  # (B, N, ..., T, 1)
    # torch.compile fuses these by itself.
    if torch.compiler.is_compiling():
        return _logits_at(logits, index) - widen(logits).logsumexp(-1)
    log_probs, _ = _TargetLogProbs.apply(logits, index)
    return log_probs


def _logits_at(logits: Tensor, index: Tensor) -> Tensor:
    """(..., V) logits, (..., 1) ids -> (...), widened."""
    picked = logits.gather(-1, index)  # (..., 1)
    return widen(picked.squeeze(-1))


class _TargetLogProbs(torch.autograd.Function):
    """(..., V) logits, (..., 1) ids -> (...) log-probabilities and normalisers (the latter without
    a gradient).

    Both ways go through the logits in pieces, so that besides the logits only their gradient is
    ever as large.
    """

    @staticmethod
    def forward(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The normaliser is kept for the gradient."""
        pieces = [widen(piece).logsumexp(-1) for piece in _pieces(logits, logits)]
        normaliser = torch.cat(pieces).view(logits.shape[:-1])
        return _logits_at(logits, index) - normaliser, normaliser

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Called by PyTorch after `forward`."""
        _, normaliser = output
        ctx.mark_non_differentiable(normaliser)
        ctx.save_for_backward(*inputs, normaliser)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient at a logit.

        (1 if it is the target's, else 0) - its probability, times the target's gradient.
        """
        logits, index, normaliser = ctx.saved_tensors
        grad = _without_traces(grads[0][..., None])  # (..., 1)
        # A gradient of this gradient is wanted: nothing may be written in place.
        if torch.is_grad_enabled():
            spread = -grad * widen(logits).softmax(-1)  # (..., V)
            spread = spread.scatter_add(-1, index, grad)
            return spread.to(logits.dtype), None
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        pieces = zip(
            _pieces(result, logits),
            _pieces(logits, logits),
            _pieces(normaliser[..., None], logits),
            _pieces(-grad, logits),
            strict=True,
        )
        for out, piece, shift, factor in pieces:
            # In half precision `shift` is wider: the difference needs memory of its own.
            if out.dtype != shift.dtype:
                out.copy_(torch.sub(piece, shift).exp_().mul_(factor))
            else:
                torch.sub(piece, shift, out=out).exp_().mul_(factor)
            if out.device.type == "cpu":
                out.copy_(_without_traces(out))
        result.scatter_add_(-1, index, grad.to(logits.dtype))
        return result, None


def _without_traces(grad: Tensor) -> Tensor:
    """The gradient with zeros where it is too small to change a sum with any other.

    Where one document explains an answer, what the others are to learn is so little that further back
    it leaves the range of normal numbers, and a CPU takes ten times as long over a step.
    """
    least = torch.finfo(torch.promote_types(grad.dtype, torch.float32)).tiny ** 0.5
    return nn.functional.hardshrink(grad, least)


def _pieces(x: Tensor, logits: Tensor) -> Iterator[Tensor]:
    """(..., n) -> (rows, n) pieces, as many rows at a time as `logits` (..., V) are worked on."""
    size = _PIECE_GPU
    if logits.device.type == "cpu":
        size = _PIECE_CPU
    rows = max(1, size // logits.shape[-1])
    flat = x.reshape(-1, x.shape[-1])
    yield from flat.split(rows)


def answer_log_probs(logits: Tensor, labels: Tensor, pad_token_id: int) -> Tensor:
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
    scores = target_log_probs(logits.detach(), target)  # (B, N, T)
    return scores.masked_fill(pad_mask[:, None], 0.0).sum(-1)


def total(x: Tensor) -> Tensor:
    """The sum of all numbers."""
    return x.sum()


def emdr2(answers: Tensor, scores: Tensor) -> Tensor:
    """The retriever's half of EMDR2 (Sachan et al. 2021, arXiv 2106.05346, section 2.3):
    -log sum_z p(y|x, z) p(z|x), where p(y|x, z) is taken as it is.

    Args:
        answers: log p(y|x, z), (B, N); no gradient goes into it.
        scores: document scores (B, N).

    Returns:
        (B,), in nats.
    """
    joint = answers.detach() + doc_log_probs(scores)
    return -joint.logsumexp(1)


def pdist(answers: Tensor, scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Perplexity distillation (Izacard et al. 2022, arXiv 2208.03299, section 2.2): the divergence
    KL(q || p(z|x)) of p(z|x) from q, the softmax of log p(y|x, z) / temperature.

    Args:
        answers: log p(y|x, z), (B, N); no gradient goes into it.
        scores: document scores (B, N); documents of score -inf have no share in q either.
        temperature: of q, above 0.

    Returns:
        (B,), in nats.
    """
    absent = widen(scores).isneginf()
    prior = doc_log_probs(scores)
    teacher = answers.detach() / temperature
    teacher = teacher.masked_fill(absent, -torch.inf).log_softmax(1)
    # Where q is 0, 0 * (-inf - -inf) would be NaN.
    difference = (teacher - prior).masked_fill(absent, 0.0)
    return (teacher.exp() * difference).sum(1)


def passage_scores(questions: Tensor, passages: Tensor) -> Tensor:
    """Inner products of each question with each passage.

    Args:
        questions: (B, D).
        passages: (C, D).

    Returns:
        (B, C) in float32 or wider.
    """
    dtype = torch.promote_types(widen(questions).dtype, passages.dtype)
    with torch.autocast(questions.device.type, enabled=False):
        return questions.to(dtype) @ passages.to(dtype).T


def contrastive(scores: Tensor, positive: Tensor, masked: Tensor) -> Tensor:
    """-log of the softmax over passages at each question's own (Karpukhin et al. 2020, arXiv
    2004.04906, section 3.2).

    Args:
        scores: (B, C).
        positive: (B,), the columns of the questions' own passages.
        masked: (B, C) bool, True = no passage for that question to be told from.

    Returns:
        (B,), in nats.
    """
    log_probs = scores.masked_fill(masked, -torch.inf).log_softmax(1)
    return -log_probs.gather(1, positive[:, None]).squeeze(1)


def shift_left(labels: Tensor, pad_token_id: int) -> Tensor:
    """Labels (B, T) -> what each position should predict.

    One to the left, a pad at the end, -100 as pad.
    """
    end = labels.new_full((labels.shape[0], 1), pad_token_id)
    shifted = torch.cat([labels[:, 1:], end], 1)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def token_joint(logits: Tensor, log_probs: Tensor, target: Tensor) -> Tensor:
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
    target_scores = target_log_probs(logits, target)
    return target_scores + expand_like(log_probs, target_scores)


def sequence_joint(
    target_scores: Tensor,
    log_probs: Tensor,
    pad_mask: Tensor,
    drop_first: Tensor | bool = False,
) -> Tensor:
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
    mask = pad_mask[:, None]  # (B, 1, ..., T)
    scored = target_scores.masked_fill(mask, 0.0)
    first = scored[..., 0]
    if isinstance(drop_first, Tensor):
        first = first.masked_fill(drop_first, 0.0)
    elif drop_first:
        first = torch.zeros_like(first)
    prior = expand_like(log_probs, first)
    joint = first + scored[..., 1:].sum(-1)
    if scored.shape[-1] > 1:
        joint = joint + prior.masked_fill(mask[..., 1], 0.0)
    return joint.masked_fill(prior.isneginf(), -torch.inf)


def smoothed(
    nll: Tensor, smooth: Tensor | None, epsilon: float, vocab_size: int, reduce_loss: bool
) -> Tensor:
    """(1 - epsilon) * nll + epsilon / V * smooth, summed over the batch with `reduce_loss`
    (never a mean).
    """
    loss = nll
    if smooth is not None:
        loss = (1.0 - epsilon) * nll + epsilon / vocab_size * smooth
    if reduce_loss:
        return loss.sum()
    return loss


def token_nll(
    logits: Tensor,
    scores: Tensor,
    labels: Tensor,
    pad_token_id: int,
    *,
    epsilon: float = 0.0,
    reduce_loss: bool = False,
) -> Tensor:
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
        target_scores = marginal.gather(-1, target[..., None])  # (B, T, 1)
        target_scores = target_scores.squeeze(-1)
        sums = marginal.sum(-1)  # (B, T)
        smooth = -sums.masked_fill(pad_mask, 0.0).sum(1)
    else:
        joint = token_joint(logits, log_probs, target)  # (B, N, T)
        target_scores = joint.logsumexp(1)  # (B, T)
    nll = -target_scores.masked_fill(pad_mask, 0.0).sum(1)
    return smoothed(nll, smooth, epsilon, logits.shape[-1], reduce_loss)


def sequence_nll(
    logits: Tensor,
    scores: Tensor,
    labels: Tensor,
    pad_token_id: int,
    *,
    bos_token_id: int | None = None,
    exclude_bos_score: bool = False,
    epsilon: float = 0.0,
    reduce_loss: bool = False,
) -> Tensor:
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
    drop: Tensor | bool = False
    if exclude_bos_score and bos_token_id is not None:
        drop = (target[:, 0] == bos_token_id).all()
    target_scores = target_log_probs(logits, target)  # (B, N, T)
    joint = sequence_joint(target_scores, log_probs, pad_mask, drop)  # (B, N)
    nll = -joint.logsumexp(1)
    vocab_size = logits.shape[-1]
    smooth = None
    if epsilon > 0:
        wide = widen(logits)
        total = wide.sum(-1) - vocab_size * wide.logsumexp(-1)  # (B, N, T)
        smooth = -sequence_joint(total, vocab_size * log_probs, pad_mask).logsumexp(1)
    return smoothed(nll, smooth, epsilon, vocab_size, reduce_loss)
