"""The rules of a decoding step, carried out on tensors: logits processors and warpers, and the best
candidates.

What to do is decided in rag_core.generation. Letters: R rows, Q searches, C candidates, V
vocabulary, W = K * V scores of a search's K beams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rag_core.generation import LogitsProcessor, LogitsWarper
from rag_torch.marginalize import token_log_probs

_LOWEST = float("-inf")
# Measured: scores looked through at a time for the best, which is a CPU's way.
_RUN = 256
# Marginal probabilities below it are computed by logarithms: their terms may have vanished.
_SAFE = 1e-30


def marginal_scores(logits: Tensor, log_priors: Tensor) -> Tensor:
    """`token_log_probs` of a step, of logits (Q, N, K, V) and log p(z|x) (Q, N), in new memory: (Q,
    K, V).

    On a CPU by probabilities, three passes over the numbers in place of nine, unless one is so
    small that its logarithm would be off.
    """
    if logits.device.type == "cpu":
        # Of one question at a time, for a cache to hold.
        probs = torch.empty_like(logits[0])  # (N, K, V)
        mixed = logits.new_empty(len(logits), *logits.shape[2:])  # (Q, K, V)
        priors = log_priors.exp().to(logits.dtype)  # (Q, N)
        for question, prior in enumerate(priors):
            torch.softmax(logits[question], -1, out=probs)
            by_document = probs.flatten(1)  # (N, K*V)
            flat = mixed[question].view(-1)  # (K*V,)
            torch.mv(by_document.t(), prior, out=flat)
        if bool(mixed.min() >= _SAFE):
            return mixed.log_()
    return token_log_probs(logits, log_priors)


def log_softmax(scores: Tensor, inplace: bool) -> Tensor:
    """log_softmax of (R, V).

    On a CPU in place where the scores are nobody else's, which spares it new memory.
    """
    if inplace and scores.device.type == "cpu" and scores.is_contiguous():
        return torch.log_softmax(scores, dim=-1, out=scores)
    return scores.log_softmax(dim=-1)


def guided_scores(scores: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """See `rag_core.generation.Engine.guided_scores`."""
    scores = scores.log_softmax(dim=-1)
    unconditional = unconditional.log_softmax(dim=-1)
    guided = unconditional + scale * (scores - unconditional)
    return torch.where(scores.isneginf(), scores, guided)


def normalised(scores: Tensor) -> Tensor:
    """log_softmax of (R, V); -inf stays -inf where a row holds nothing else.

    NaN would count as largest.
    """
    log_probs = scores.log_softmax(dim=-1)
    return torch.where(scores == _LOWEST, scores, log_probs)


def apply_processors(
    scores: Tensor, processors: Sequence[LogitsProcessor], inplace: bool = False
) -> Tensor:
    """Carry out logits processors, in order, on `scores` (R, V).

    Returns new scores (R, V), or with `inplace` the same ones.
    """
    if not processors:
        return scores
    all_rows = torch.arange(len(scores), device=scores.device)
    all_rows = all_rows[:, None]  # (R, 1)
    for processor in processors:
        rows = all_rows
        if processor.rows is not None:
            rows = torch.as_tensor(processor.rows, device=scores.device)
        ids = torch.as_tensor(processor.ids, device=scores.device)
        if processor.kind == "finite":
            limits = torch.finfo(scores.dtype)
            scores = torch.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)
        elif processor.kind == "keep":
            banned = torch.ones_like(scores, dtype=torch.bool)
            banned[rows, ids] = False
            scores = scores.masked_fill(banned, _LOWEST)
        elif processor.kind == "force":
            scores = torch.full_like(scores, _LOWEST)
            scores[rows, ids] = 0.0
        else:
            if not inplace:
                scores = scores.clone()
            old = scores[rows, ids]
            scores[rows, ids] = _changed(old, processor)
        # From the first processor on they are ours.
        inplace = True
    return scores


def _changed(old: Tensor, processor: LogitsProcessor) -> Tensor | float:
    if processor.kind == "ban":
        return old.new_full((), _LOWEST)
    if processor.kind == "add":
        bias = torch.as_tensor(processor.value, device=old.device, dtype=old.dtype)
        return old + bias
    if processor.kind == "penalise":
        return torch.where(old < 0, old * processor.value, old / processor.value)
    if processor.kind == "decay":
        raised = old + old.abs() * processor.value
        # A banned token stays banned: -inf + inf is nan, which topk takes for the largest.
        return torch.where(old.isinf(), old, raised)
    raise ValueError(f"unknown kind of logits processor {processor.kind!r}")


def apply_warpers(
    scores: Tensor, warpers: Sequence[LogitsWarper], min_tokens_to_keep: int
) -> Tensor:
    """Carry out logits warpers, in order, on the distribution softmax(`scores`) (R, V) that is
    sampled from, leaving `min_tokens_to_keep` tokens or more a row.
    """
    vocab_size = scores.shape[-1]
    min_tokens_to_keep = min(min_tokens_to_keep, vocab_size)
    for warper in warpers:
        if warper.kind == "temperature":
            scores = scores / warper.value
        elif warper.kind == "normalise":
            scores = normalised(scores)
        elif warper.kind == "top_k":
            count = max(int(warper.value), min_tokens_to_keep)
            smallest = _kth_largest(scores, min(count, vocab_size))  # (R, 1)
            scores = scores.masked_fill(scores < smallest, _LOWEST)
        elif warper.kind == "top_p":
            scores = _top_p(scores, warper.value, min_tokens_to_keep)
        elif warper.kind == "typical_p":
            scores = _typical(scores, warper.value, min_tokens_to_keep)
        elif warper.kind in ("epsilon_cutoff", "eta_cutoff"):
            cut: Tensor | float = warper.value
            if warper.kind == "eta_cutoff":
                by_entropy = warper.value**0.5 * torch.exp(-_entropy(scores))  # (R,)
                by_entropy = by_entropy.clamp(max=warper.value)
                cut = by_entropy[:, None]
            unlikely = scores.softmax(dim=-1) < cut
            spared = scores >= _kth_largest(scores, min_tokens_to_keep)
            scores = scores.masked_fill(unlikely & ~spared, _LOWEST)
        else:
            raise ValueError(f"unknown kind of logits warper {warper.kind!r}")
    return scores


def _kth_largest(scores: Tensor, count: int) -> Tensor:
    """(R, V) -> (R, 1)."""
    largest = scores.topk(count, dim=-1).values  # (R, count)
    return largest[:, -1:]


def _top_p(scores: Tensor, mass: float, min_tokens_to_keep: int) -> Tensor:
    """Keep the likeliest tokens that make up `mass` together."""
    # Ascending, of equals the lowest index last: that one stays.
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.flip(-1)
    order = order.flip(-1)
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - mass
    drop[:, -min_tokens_to_keep:] = False
    return scores.masked_fill(drop.scatter(1, order, drop), _LOWEST)


def _entropy(scores: Tensor) -> Tensor:
    log_probs = scores.log_softmax(dim=-1)
    products = log_probs.exp() * log_probs
    return -products.nansum(dim=-1)


def _typical(scores: Tensor, mass: float, min_tokens_to_keep: int) -> Tensor:
    """Keep the tokens whose surprise lies nearest the entropy (Meister et al. 2022,
    https://arxiv.org/abs/2202.00666).
    """
    entropy = _entropy(scores)[:, None]  # (R, 1)
    distance = -scores.log_softmax(dim=-1) - entropy
    ordered, order = distance.abs().sort(dim=-1, stable=True)
    probs = scores.gather(-1, order).softmax(dim=-1)
    outside = probs.cumsum(dim=-1) < mass
    last = outside.sum(dim=-1, keepdim=True)  # (R, 1)
    last = last.clamp(max=scores.shape[-1] - 1)
    drop = ordered > ordered.gather(1, last)
    drop[:, :min_tokens_to_keep] = False
    return scores.masked_fill(drop.scatter(1, order, drop), _LOWEST)


def best_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of `scores` (Q, W) and their indices; of equals the lowest index, which
    topk doesn't promise.

    Returns:
        (Q, count) values and (Q, count) indices, in no particular order (`order_candidates` sorts
        them).
    """
    width = scores.shape[-1]
    count = min(count, width)
    values, indices = _largest(scores, min(count + 1, width))
    next_best = values[:, count:]  # (Q, 0 or 1)
    values = values[:, :count]
    indices = indices[:, :count]
    smallest = values[:, -1:]
    if not bool((next_best == smallest).any()):
        return values, indices
    # A tie across the border: the larger ones by value, then the tied ones by index.
    place = torch.arange(width, device=scores.device)
    rank_of_rest = torch.where(scores == smallest, place, width)
    rank = torch.where(scores > smallest, -1, rank_of_rest)  # (Q, W)
    indices = rank.topk(count, dim=-1, largest=False).indices
    return scores.gather(-1, indices), indices


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """topk; on a CPU over the largest of each run of scores first, and then over the runs where
    those are.
    """
    runs = scores.shape[-1] // _RUN
    # A GPU is faster at one topk, and so is a CPU where most of the runs would be left.
    if scores.device.type != "cpu" or runs <= 4 * count:
        return scores.topk(count, dim=-1)
    end = runs * _RUN
    whole_runs = scores[:, :end].unflatten(-1, (runs, _RUN))  # (Q, runs, _RUN)
    largest = whole_runs.amax(-1)  # (Q, runs)
    best_runs = largest.topk(count, dim=-1).indices  # (Q, count)
    places = best_runs[..., None] * _RUN + torch.arange(_RUN)  # (Q, count, _RUN)
    rest = torch.arange(end, scores.shape[-1])
    rest = rest.expand(len(scores), -1)
    places = torch.cat([places.flatten(1), rest], dim=1)
    left = scores.gather(1, places)
    values, indices = left.topk(count, dim=-1)
    return values, places.gather(1, indices)
