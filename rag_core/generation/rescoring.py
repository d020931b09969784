"""RAG-Sequence's weighing of candidates (paper, section 2.5): against every document, or by the
searches' own scores.

Letters: B questions, N documents a question, K beams, C candidates of a question, L their length, S
context length, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.generation.beam import SearchResult
from rag_core.generation.candidates import Candidates, prefix_tree
from rag_core.generation.engine import Engine, Tensor, is_native

# Positions of a tree at most: their attention mask is quadratic.
_PREFIXES = 1024
# A generator of one's own decodes whole candidates, at the cost of that many blocks at once.
_WHOLE_BLOCKS = 8
# What is assumed of a vocabulary whose size the config does not say.
_VOCABULARY = 2**16


def fast_scores(
    candidates: Candidates, result: SearchResult, log_priors: np.ndarray, beams: int
) -> np.ndarray:
    """log of the sum of p(z|x) p(y|x, z) over the documents whose search found y, (B, C)."""
    questions, docs = log_priors.shape
    joint = result.sum_log_probs.reshape(questions, docs, beams) + log_priors[:, :, None]
    return candidates.pooled(joint.reshape(questions, docs * beams))


def thorough_scores(
    engine: Engine,
    model: Any,
    hidden: Tensor,
    mask: Tensor,
    log_priors: Tensor,
    candidates: Candidates,
    state: Any = None,
) -> np.ndarray:
    """-NLL of every candidate as 4.37.2's forward computes it with `exclude_bos_score` (Q10-Q13,
    Q16), (B, C).

    Args:
        engine: the model's framework.
        model: a RagSequenceForGeneration.
        hidden: (B*N, S, d) encoder states.
        mask: (B*N, S) bool.
        log_priors: (B, N) log p(z|x).
        candidates: what to score.
        state: what `start` returned for these contexts, to spare it, or None.
    """
    config, generator = model.config, model.generator
    tokens = candidates.tokens  # (B, C, L)
    pad = config.generator.pad_token_id
    if pad is None:
        pad = -1  # no token: nothing is left out
    end = np.full_like(tokens[..., :1], pad)
    targets = np.concatenate([tokens[..., 1:], end], axis=-1)
    pad_mask = targets == end
    targets = np.where(pad_mask, 0, targets)
    bos = config.bos_token_id or config.generator.bos_token_id
    drop_first = None
    if bos is not None:
        # One answer a question, (B, 1, 1).
        drop_first = ((targets[..., 0] == bos) | ~candidates.exists).all(axis=1)[:, None, None]
        drop_first = engine.tensor(drop_first, like=hidden)
    not_scored = engine.tensor(pad_mask, like=hidden)
    docs = int(log_priors.shape[1])
    smooth = config.label_smoothing > 0
    vocab_size = 0
    if smooth:
        # The generator knows of a table that was resized alone; one of another library need not tell.
        vocab_size = getattr(generator.config, "vocab_size", None) or config.generator.vocab_size
    each, total = target_scores(
        engine, generator, hidden, mask, tokens, targets, pad_mask, docs, smooth, state
    )
    return engine.candidate_scores(
        each,
        total,
        log_priors,
        not_scored,
        drop_first,
        config.label_smoothing,
        vocab_size,
    )


def target_scores(
    engine: Engine,
    generator: Any,
    hidden: Tensor,
    mask: Tensor,
    tokens: np.ndarray,
    targets: np.ndarray,
    pad_mask: np.ndarray,
    docs: int,
    smooth: bool = False,
    state: Any = None,
) -> tuple[Any, Any]:
    """As `scores_of_wholes`, in the way that is fastest for the generator.

    Args:
        state: what `start` returned for these contexts, to spare it, or None.
    """
    with engine.on_device(generator):
        if not is_native(generator):
            return scores_of_wholes(
                engine, generator, hidden, mask, tokens, targets, pad_mask, docs, smooth
            )
        if state is None:
            state = generator.start(hidden, mask)
        return scores_by_prefix(
            engine, generator, state, mask, tokens, targets, pad_mask, docs, smooth
        )


class _Pieces:
    """Two results that are computed in pieces: log-probabilities, and with `smooth` their sums over
    the vocabulary.
    """

    def __init__(self, engine: Engine, shape: tuple[int, ...], smooth: bool) -> None:
        self.engine, self.shape, self.smooth = engine, shape, smooth
        self.each: Any = None
        self.total: Any = None

    def write(self, at: tuple[Any, ...], each: Tensor, total: Tensor | None) -> None:
        """Put a piece of each at its place."""
        if self.each is None:  # the first piece tells the dtype
            self.each = self.engine.buffer(self.shape, each)
            if self.smooth:
                self.total = self.engine.buffer(self.shape, each)
        self.each[at] = each
        if self.smooth:
            self.total[at] = total


def _lengths(mask: np.ndarray) -> np.ndarray:
    """Places up to the last True of each row, (..., L) -> (...); 1 or more."""
    places = np.arange(1, mask.shape[-1] + 1)
    return (mask * places).max(axis=-1).clip(min=1)


def scores_by_prefix(
    engine: Engine,
    generator: Any,
    state: Any,
    mask: Tensor,
    tokens: np.ndarray,
    targets: np.ndarray,
    pad_mask: np.ndarray,
    docs: int,
    smooth: bool,
) -> tuple[Any, Any]:
    """As `scores_of_wholes`, each distinct beginning of a question's candidates decoded once.

    Args:
        state: of all contexts, as the generator's `start` returned it; stays as it is.
    """
    questions, count, length = tokens.shape
    block = engine.block_size(mask)
    width_of_position = 4 * generator.config.d_model
    lengths = _lengths(~pad_mask)  # (B, C)
    widths = _lengths(to_numpy(mask))  # (B*N,)
    target_ids = engine.tensor(targets, like=mask)
    pieces = _Pieces(engine, (questions, docs, count, length), smooth)
    group = max(1, _PREFIXES // length)
    for b in range(questions):
        for left in range(0, count, group):
            some = slice(left, left + group)
            tree = prefix_tree(tokens[b, some], lengths[b, some])
            height = max(1, block // (len(tree.tokens) * width_of_position))
            for top in range(0, docs, height):
                rows = slice(top, min(top + height, docs))
                contexts = slice(b * docs + rows.start, b * docs + rows.stop)
                each, total = engine.tree_log_probs(
                    generator,
                    state,
                    contexts,
                    int(widths[contexts].max()),
                    tree,
                    target_ids[b, some],
                    block,
                    smooth,
                )
                pieces.write((b, rows, some), each, total)
    return pieces.each, pieces.total


def scores_of_wholes(
    engine: Engine,
    generator: Any,
    hidden: Tensor,
    mask: Tensor,
    tokens: np.ndarray,
    targets: np.ndarray,
    pad_mask: np.ndarray,
    docs: int,
    smooth: bool,
) -> tuple[Any, Any]:
    """Log-probability of each target token, and with `smooth` the sum over the vocabulary beside
    it.

    Candidates are folded into the beams' axis of the contexts whose encoder states exist; blocks
    bound the logits held at once.

    Args:
        engine: the generator's framework.
        generator: decodes.
        hidden: (B*N, S, d) encoder states.
        mask: (B*N, S) bool.
        tokens: (B, C, L) decoder inputs.
        targets: (B, C, L).
        pad_mask: (B, C, L), True = not scored. What is not scored at the end is not decoded.
        docs: N.
        smooth: whether the second result is wanted.

    Returns:
        (B, N, C, L) each; zeros where nothing was decoded. The second is None if not `smooth`.
    """
    questions, count, length = tokens.shape
    used = int(_lengths(~pad_mask).max())
    fed, wanted = (
        engine.tensor(x[..., :used].repeat(docs, axis=0), like=hidden)  # (B*N, C, used)
        for x in (tokens, targets)
    )
    rows = questions * docs
    # Logits of all positions at once: (height, width, used, V).
    size = used * getattr(generator.config, "vocab_size", _VOCABULARY)
    block = _WHOLE_BLOCKS * engine.block_size(hidden)
    width = max(1, min(count, block // size))
    height = max(1, min(rows, block // (size * width)))
    pieces = _Pieces(engine, (rows, count, length), smooth)
    for top in range(0, rows, height):
        at = slice(top, top + height)
        state = generator.start(hidden[at], mask[at], beams=width, max_length=None)
        for left in range(0, count, width):
            some = slice(left, left + width)
            each, total = engine.target_log_probs(
                generator, state, fed[at, some], wanted[at, some], smooth
            )
            pieces.write((at, some, slice(used)), each, total)
    shape = (questions, docs, count, length)
    each = pieces.each.reshape(shape)
    return each, pieces.total.reshape(shape) if smooth else None
