"""The rules of a decoding step, carried out on tensors: processors, narrowings, and the best candidates.

What to do is decided in rag_core.generation. Letters: R rows, Q searches, C candidates, V
vocabulary,
W = K * V scores of a search's K beams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rag_core.generation import LogitsProcessor, LogitsWarper
from rag_torch.marginalize import token_log_probs

_LOWEST = float("-inf")
# scores looked through at a time for the best, a CPU's way; probabilities that a product of two may
# still have
_RUN, _SAFE = 256, 1e-30


def marginal_scores(logits: Tensor, log_priors: Tensor) -> Tensor:
    """`token_log_probs` of a step, of logits (Q, N, K, V) and log p(z|x) (Q, N), in new memory: (Q,
    K, V).

    On a CPU by probabilities, three passes over the numbers in place of nine, unless one is so
    small that its logarithm would be off.
    """
    if logits.device.type == "cpu":
        probs = torch.empty_like(logits[0])  # (N, K, V): one question's, for a cache to hold
        mixed = logits.new_empty(len(logits), *logits.shape[2:])  # (Q, K, V)
        for q, prior in enumerate(log_priors.exp().to(logits.dtype)):
            torch.softmax(logits[q], -1, out=probs)
            torch.mv(probs.flatten(1).t(), prior, out=mixed[q].view(-1))
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
    return torch.where(scores == _LOWEST, scores, scores.log_softmax(dim=-1))


def apply_processors(
    scores: Tensor, processors: Sequence[LogitsProcessor], inplace: bool = False
) -> Tensor:
    """Carries out `processors`, in order, on `scores` (R, V).

    Returns new scores (R, V), or with `inplace` the same ones.
    """
    if not processors:
        return scores
    everyone = torch.arange(scores.shape[0], device=scores.device)[:, None]
    for processor in processors:
        ids = torch.as_tensor(processor.ids, device=scores.device)
        at: tuple[Tensor, Tensor] = (everyone, ids)
        if processor.rows is not None:
            at = (torch.as_tensor(processor.rows, device=scores.device), ids)
        if processor.kind == "finite":
            limits = torch.finfo(scores.dtype)
            scores = torch.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)
        elif processor.kind == "keep":
            shut = torch.ones_like(scores, dtype=torch.bool)
            shut[at] = False
            scores = scores.masked_fill(shut, _LOWEST)
        elif processor.kind == "force":
            scores = torch.full_like(scores, _LOWEST)
            scores[at] = 0.0
        else:
            scores = scores if inplace else scores.clone()
            scores[at] = _changed(scores[at], processor)
        inplace = True
    return scores


def _changed(old: Tensor, processor: LogitsProcessor) -> Tensor | float:
    if processor.kind == "ban":
        return old.new_full((), _LOWEST)
    if processor.kind == "add":
        return old + torch.as_tensor(processor.value, device=old.device, dtype=old.dtype)
    if processor.kind == "penalise":
        return torch.where(old < 0, old * processor.value, old / processor.value)
    if processor.kind == "decay":
        # a banned token stays banned: -inf + inf is nan, which topk takes for the largest
        return torch.where(old.isinf(), old, old + old.abs() * processor.value)
    raise ValueError(f"unknown kind of logits processor {processor.kind!r}")


def apply_warpers(
    scores: Tensor, warpers: Sequence[LogitsWarper], min_tokens_to_keep: int
) -> Tensor:
    """Narrows the distribution softmax(`scores`) (R, V) that is sampled from, leaving
    `min_tokens_to_keep` or more a row.
    """
    vocab_size = scores.shape[-1]
    least = min(min_tokens_to_keep, vocab_size)
    for warper in warpers:
        if warper.kind == "temperature":
            scores = scores / warper.value
        elif warper.kind == "normalise":
            scores = normalised(scores)
        elif warper.kind == "top_k":
            kth = scores.topk(min(max(int(warper.value), least), vocab_size), dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < kth, _LOWEST)
        elif warper.kind == "top_p":
            # ascending, of equals the lowest index last: that one stays
            ordered, order = (x.flip(-1) for x in scores.sort(dim=-1, descending=True, stable=True))
            drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - warper.value
            drop[:, -least:] = False
            scores = scores.masked_fill(drop.scatter(1, order, drop), _LOWEST)
        elif warper.kind == "typical_p":
            scores = _typical(scores, warper.value, least)
        elif warper.kind in ("epsilon_cutoff", "eta_cutoff"):
            probs = scores.softmax(dim=-1)
            cut: Tensor | float = warper.value
            if warper.kind == "eta_cutoff":
                cut = (warper.value**0.5 * torch.exp(-_entropy(scores))).clamp(max=warper.value)[
                    :, None
                ]
            best = scores.topk(least, dim=-1).values[:, -1:]
            scores = scores.masked_fill((probs < cut) & (scores < best), _LOWEST)
        else:
            raise ValueError(f"unknown kind of logits warper {warper.kind!r}")
    return scores


def _entropy(scores: Tensor) -> Tensor:
    log_probs = scores.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).nansum(dim=-1)


def _typical(scores: Tensor, mass: float, least: int) -> Tensor:
    """Keeps the tokens whose surprise lies nearest the entropy (Meister et al.

    2022, https://arxiv.org/abs/2202.00666).
    """
    distance = (-scores.log_softmax(dim=-1) - _entropy(scores)[:, None]).abs()
    ordered, order = distance.sort(dim=-1, stable=True)
    total = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (total < mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    drop = ordered > ordered.gather(1, last)
    drop[:, :least] = False
    return scores.masked_fill(drop.scatter(1, order, drop), _LOWEST)


def best_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of `scores` (Q, W) and their indices; of equals the lowest index, which
    topk doesn't promise.

    Returns:
        (Q, count) values and (Q, count) indices, in no particular order (`order_candidates` sorts
        them).
    """
    count = min(count, scores.shape[-1])
    values, indices = _largest(scores, min(count + 1, scores.shape[-1]))
    tied = (values[:, count:] == values[:, count - 1 : count]).any()
    values, indices = values[:, :count], indices[:, :count]
    if bool(tied):
        # a tie across the border: the larger ones by value, then the tied ones by index
        least = values[:, -1:]
        place = torch.arange(scores.shape[-1], device=scores.device)
        rank = torch.where(
            scores > least, -1, torch.where(scores == least, place, scores.shape[-1])
        )
        indices = rank.topk(count, dim=-1, largest=False).indices
        values = scores.gather(-1, indices)
    return values, indices


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """topk; on a CPU over the largest of each run of scores first, and then over the runs where
    those are.
    """
    runs = scores.shape[-1] // _RUN
    if scores.device.type != "cpu" or runs <= 4 * count:
        return scores.topk(count, dim=-1)
    cut = scores[:, : runs * _RUN].unflatten(-1, (runs, _RUN))
    best = cut.amax(-1).topk(count, dim=-1).indices  # (Q, count)
    place = (best[..., None] * _RUN + torch.arange(_RUN)).flatten(1)  # (Q, count * _RUN)
    rest = torch.arange(runs * _RUN, scores.shape[-1]).expand(len(scores), -1)
    place = torch.cat([place, rest], dim=1)
    values, at = scores.gather(1, place).topk(count, dim=-1)
    return values, place.gather(1, at)
