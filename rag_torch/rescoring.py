"""RAG-Sequence's weighing of candidates (paper, section 2.5): against every document, or by the
searches' own scores.

Letters: B questions, N documents a question, K beams, C candidates of a question, L their length, S
context length, P distinct beginnings of candidates, d width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rag_core.generation import Candidates, Finished, PrefixTree, prefix_tree
from rag_torch.contexts import used_length
from rag_torch.decode_state import DecodeState, Tree
from rag_torch.marginalize import sequence_joint, target_log_probs, widen
from rag_torch.seq2seq import Generator

# numbers of a block of logits held at once while rescoring: what a CPU's cache holds, what keeps a
# GPU busy
_BLOCK, _BLOCK_GPU = 2**23, 2**27
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
    hidden: Tensor,
    mask: Tensor,
    log_priors: Tensor,
    found: Candidates,
    state: Any = None,
) -> Tensor:
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
    config, generator = model.config, model.generator
    tokens = torch.as_tensor(found.tokens, device=hidden.device)  # (B, C, L)
    pad = config.generator.pad_token_id
    end = torch.full_like(tokens[..., :1], -1 if pad is None else pad)
    target = torch.cat([tokens[..., 1:], end], dim=-1)
    pad_mask = target == end
    target = target.masked_fill(pad_mask, 0)
    epsilon = config.label_smoothing
    docs, smooth = log_priors.shape[1], epsilon > 0
    if isinstance(generator, Generator):
        state = generator.start(hidden, mask) if state is None else state
        each, total = _scored_by_prefix(
            generator, state, mask, tokens, target, pad_mask, docs, smooth
        )
    else:
        each, total = _scored(generator, hidden, mask, tokens, target, pad_mask, docs, smooth)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop: Tensor | bool = False
    if bos is not None:
        exists = torch.as_tensor(found.exists, device=hidden.device)
        # one answer a question, (B, 1, 1)
        drop = ((target[..., 0] == bos) | ~exists).all(dim=1)[:, None, None]
    score = sequence_joint(each, log_priors, pad_mask, drop).logsumexp(dim=1)  # (B, C)
    if total is None:
        return score
    size = config.generator.vocab_size
    spread = sequence_joint(total, size * log_priors, pad_mask).logsumexp(dim=1)
    return (1.0 - epsilon) * score + epsilon / size * spread


def _scored_by_prefix(
    generator: Generator,
    whole: DecodeState,
    mask: Tensor,
    tokens: Tensor,
    target: Tensor,
    pad_mask: Tensor,
    docs: int,
    smooth: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `_scored`, each distinct beginning of a question's candidates decoded once: P positions in
    place of C * L.

    Positions that the `pad_mask` (B, C, L) leaves out at the end are not decoded at all.
    """
    questions, count, length = tokens.shape
    cpu = tokens.device.type == "cpu"
    block, width = _BLOCK if cpu else _BLOCK_GPU, 4 * generator.config.d_model
    each = widen(whole.cross[0][0][:0]).new_zeros(questions, docs, count, length)
    total = torch.zeros_like(each) if smooth else None
    lengths = (~pad_mask.cpu().numpy() * np.arange(1, length + 1)).max(axis=2).clip(min=1)  # (B, C)
    group = max(1, _PREFIXES // length)
    for b, candidates in enumerate(tokens.cpu().numpy()):
        for left in range(0, count, group):
            some = slice(left, left + group)
            tree = prefix_tree(candidates[some], lengths[b, some])
            height = max(1, block // (len(tree.tokens) * width))
            for top in range(0, docs, height):
                rows = slice(top, min(top + height, docs))
                at = slice(b * docs + rows.start, b * docs + rows.stop)
                state = whole.part(at, used_length(mask[at]))
                found = _tree_scores(generator, state, tree, target[b, some], block, smooth)
                each[b, rows, some] = found[0]
                if total is not None:
                    total[b, rows, some] = found[1]
    return each, total


def _tree_scores(
    generator: Generator,
    state: DecodeState,
    tree: PrefixTree,
    target: Tensor,
    block: int,
    smooth: bool,
) -> tuple[Tensor, Tensor]:
    """As `_scored` for a question's targets (C, L) and some of its documents, (N, C, L).

    Zeros if not `smooth`.
    """
    prefixes, positions, allowed = (
        torch.as_tensor(x, device=target.device)
        for x in (tree.tokens, tree.positions, tree.continues)
    )
    state.tree = Tree(positions, allowed)
    x = generator._decoded(prefixes.expand(state.rows, 1, -1), state)  # (N, P, d)
    nodes, ids = tree.nodes.reshape(-1), target.flatten()
    each = widen(x[:0]).new_zeros(state.rows, len(nodes))  # (N, C*L)
    total = torch.zeros_like(each)
    height = max(1, block // (state.rows * generator.config.vocab_size))
    for top in range(0, x.shape[1], height):
        logits = widen(generator._logits(x[:, top : top + height]))  # (N, p, V)
        shift = _normalisers(logits)  # (N, p)
        here = np.flatnonzero((nodes >= top) & (nodes < top + height))
        to, at = (torch.as_tensor(n, device=target.device) for n in (here, nodes[here] - top))
        each[:, to] = logits[:, at, ids[to]] - shift[:, at]
        if smooth:
            total[:, to] = (logits.sum(dim=-1) - logits.shape[-1] * shift)[:, at]
    return each.unflatten(1, target.shape), total.unflatten(1, target.shape)


def _scored(
    generator: Any,
    hidden: Tensor,
    mask: Tensor,
    tokens: Tensor,
    target: Tensor,
    pad_mask: Tensor,
    docs: int,
    smooth: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target token, (B, N, C, L), and with `smooth` the sum over the
    vocabulary beside it.

    Candidates ride on the beams' axis of the contexts whose encoder states exist; blocks bound the
    logits held at once.
    """
    # places at the end that no candidate is scored at
    rest = tokens.shape[2] - used_length(~pad_mask.flatten(0, 1))
    tokens, target = (x[..., : x.shape[2] - rest] for x in (tokens, target))
    count, length = tokens.shape[1:]
    rows = hidden.shape[0]
    tokens, target = (x.repeat_interleave(docs, dim=0) for x in (tokens, target))  # (B*N, C, L)
    size, block = length * getattr(generator.config, "vocab_size", 2**16), 8 * _BLOCK
    width = max(1, min(count, block // size))
    height = max(1, min(rows, block // (size * width)))
    each, total = [], []
    for top in range(0, rows, height):
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)
        for left in range(0, count, width):
            some = slice(left, left + width)
            logits = generator.decode(tokens[at, some], state)  # (rows, c, L, V)
            each.append(target_log_probs(logits[:, None], target[at, some])[:, 0])
            if smooth:
                wide = widen(logits)
                total.append(wide.sum(dim=-1) - wide.shape[-1] * wide.logsumexp(dim=-1))
    shape = (rows // docs, docs, count, length)

    def whole(parts: list[Tensor]) -> Tensor:
        across = -(-count // width)
        lines = [torch.cat(parts[i : i + across], dim=1) for i in range(0, len(parts), across)]
        return F.pad(torch.cat(lines).reshape(shape), (0, rest))

    return whole(each), whole(total) if smooth else None


def _normalisers(logits: Tensor) -> Tensor:
    """logsumexp of (N, p, V) over the vocabulary, a few rows at a time.

    On a CPU its copies stay in the cache.
    """
    rows = 8 if logits.device.type == "cpu" else logits.shape[0] * logits.shape[1]
    return torch.cat([part.logsumexp(-1) for part in logits.flatten(0, 1).split(rows)]).view(
        logits.shape[:2]
    )
