"""RAG-Sequence's weighing of candidates (paper, section 2.5): against every document, or by the searches' own scores.

Letters: B questions, N documents a question, K beams, C candidates of a question, L their length, S context length,
d width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.beam import Finished
from rag_core.candidates import Candidates
from rag_torch.marginalize import sequence_joint, target_log_probs, widen

# numbers of a (rows, candidates, L, V) block of logits held at once while rescoring: 256 MB in float32
_BLOCK = 2**26


def fast_scores(found: Candidates, finished: Finished, log_priors: np.ndarray, beams: int) -> np.ndarray:
    """log of the sum of p(z|x) p(y|x, z) over the documents whose search found y, (B, C)."""
    questions, docs = log_priors.shape
    each = finished.sum_log_probs.reshape(questions, docs, beams) + log_priors[:, :, None]
    return found.pooled(each.reshape(questions, docs * beams))


def thorough_scores(model: Any, hidden: Tensor, mask: Tensor, log_priors: Tensor, found: Candidates) -> Tensor:
    """-NLL of every candidate as 4.37.2's forward computes it with `exclude_bos_score` (Q10-Q13, Q16), (B, C)."""
    config, generator = model.config, model.generator
    tokens = torch.as_tensor(found.tokens, device=hidden.device)  # (B, C, L)
    pad = config.generator.pad_token_id
    end = torch.full_like(tokens[..., :1], -1 if pad is None else pad)
    target = torch.cat([tokens[..., 1:], end], dim=-1)
    pad_mask = target == end
    target = target.masked_fill(pad_mask, 0)
    epsilon = config.label_smoothing
    each, total = _scored(generator, hidden, mask, tokens, target, log_priors.shape[1], epsilon > 0)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop: Tensor | bool = False
    if bos is not None:
        exists = torch.as_tensor(found.exists, device=hidden.device)
        drop = ((target[..., 0] == bos) | ~exists).all(dim=1)[:, None, None]  # one answer a question, (B, 1, 1)
    score = sequence_joint(each, log_priors, pad_mask, drop).logsumexp(dim=1)  # (B, C)
    if total is None:
        return score
    size = config.generator.vocab_size
    smooth = sequence_joint(total, size * log_priors, pad_mask).logsumexp(dim=1)
    return (1.0 - epsilon) * score + epsilon / size * smooth


def _scored(
    generator: Any, hidden: Tensor, mask: Tensor, tokens: Tensor, target: Tensor, docs: int, smooth: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target token, (B, N, C, L), and with `smooth` the sum over the vocabulary beside it.

    Candidates ride on the beams' axis of the contexts whose encoder states exist; blocks bound the logits held at once.
    """
    count, length = tokens.shape[1:]
    rows = hidden.shape[0]
    tokens, target = (x.repeat_interleave(docs, dim=0) for x in (tokens, target))  # (B*N, C, L)
    size = length * getattr(generator.config, "vocab_size", 2**16)
    width = max(1, min(count, _BLOCK // size))
    height = max(1, min(rows, _BLOCK // (size * width)))
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
        return torch.cat(lines).reshape(shape)

    return whole(each), whole(total) if smooth else None
