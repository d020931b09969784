"""Probabilities of whole candidates: the mathematics of RAG-Sequence's weighing (paper, section
2.5).

What is scored, and in which pieces, is decided in rag_core.generation. Letters: B questions, N
documents a question, n of them, R rows, C candidates of a question, L their length, P distinct
beginnings of candidates, p of them at once, d width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.generation import PrefixTree
from rag_torch import marginalize
from rag_torch.decode_state import DecodeState, Tree
from rag_torch.marginalize import widen


def candidate_scores(
    each: Tensor,
    total: Tensor | None,
    log_priors: Tensor,
    pad_mask: Tensor,
    drop_first: Tensor | None,
    epsilon: float,
    vocab_size: int,
) -> np.ndarray:
    """See `rag_core.generation.Engine.candidate_scores`."""
    drop: Tensor | bool = False
    if drop_first is not None:
        drop = drop_first
    joint = marginalize.sequence_joint(each, log_priors, pad_mask, drop)  # (B, N, C)
    score = joint.logsumexp(dim=1)
    if total is not None:
        spread = marginalize.sequence_joint(total, vocab_size * log_priors, pad_mask)
        smooth = spread.logsumexp(dim=1)  # (B, C)
        score = (1.0 - epsilon) * score + epsilon / vocab_size * smooth
    return score.cpu().numpy()


def tree_log_probs(
    generator: Any,
    state: DecodeState,
    rows: slice,
    width: int,
    tree: PrefixTree,
    targets: Tensor,
    block: int,
    smooth: bool,
) -> tuple[Tensor, Tensor]:
    """See `rag_core.generation.Engine.tree_log_probs`."""
    device = targets.device
    prefixes = torch.as_tensor(tree.tokens, device=device)
    positions = torch.as_tensor(tree.positions, device=device)
    continues = torch.as_tensor(tree.continues, device=device)
    part = state.part(rows, width)
    part.tree = Tree(positions, continues)
    tokens = prefixes.expand(part.rows, 1, -1)  # (n, 1, P)
    x = generator._decoded(tokens, part)  # (n, P, d)
    nodes = tree.nodes.reshape(-1)  # (C*L,), from 0 to P - 1
    ids = targets.flatten()
    each = widen(x[:0]).new_zeros(part.rows, len(nodes))  # (n, C*L)
    total = torch.zeros_like(each)
    vocab_size = generator.config.vocab_size
    height = max(1, block // (part.rows * vocab_size))
    for top in range(0, x.shape[1], height):
        states = x[:, top : top + height]  # (n, p, d)
        logits = widen(generator._logits(states))  # (n, p, V)
        shift = _normalisers(logits)  # (n, p)
        in_block = (nodes >= top) & (nodes < top + height)
        here = np.flatnonzero(in_block)
        places = torch.as_tensor(here, device=device)
        row = torch.as_tensor(nodes[here] - top, device=device)
        each[:, places] = logits[:, row, ids[places]] - shift[:, row]
        if smooth:
            sums = logits.sum(dim=-1) - logits.shape[-1] * shift  # (n, p)
            total[:, places] = sums[:, row]
    return each.unflatten(1, targets.shape), total.unflatten(1, targets.shape)


def _normalisers(logits: Tensor) -> Tensor:
    """logsumexp of (n, p, V) over the vocabulary."""
    flat = logits.flatten(0, 1)  # (n*p, V)
    rows = len(flat)
    # On a CPU a few rows at a time, whose copies stay in the cache.
    if logits.device.type == "cpu":
        rows = 8
    parts = [part.logsumexp(-1) for part in flat.split(rows)]
    return torch.cat(parts).view(logits.shape[:2])


def target_log_probs(
    generator: Any, state: Any, tokens: Tensor, targets: Tensor, smooth: bool
) -> tuple[Tensor, Tensor | None]:
    """See `rag_core.generation.Engine.target_log_probs`."""
    logits = generator.decode(tokens, state)  # (R, C, L, V)
    each = marginalize.target_log_probs(logits[:, None], targets)  # (R, 1, C, L)
    each = each[:, 0]
    if not smooth:
        return each, None
    wide = widen(logits)
    normaliser = wide.logsumexp(dim=-1)  # (R, C, L)
    total = wide.sum(dim=-1) - wide.shape[-1] * normaliser
    return each, total
