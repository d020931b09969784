"""Decoding of both heads (paper, section 2.5).

RAG-Token runs B searches over scores marginalised at every token. RAG-Sequence runs B*N searches with the plain
generator, one for each document, and weighs what they found: thoroughly, by scoring every candidate against every
document, or fast, by the scores of the searches that found it.
Letters: B questions, N documents a question, K beams, C candidates of a question, S context length, L candidate length,
T generated length, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.beam import Finished
from rag_core.candidates import Candidates, collect_candidates
from rag_core.generation import GenerationConfig, as_generation_config, resolve_options
from rag_core.outputs import GenerateOutput
from rag_torch.marginalize import doc_log_probs, sequence_joint, target_log_probs, widen
from rag_torch.step_loop import Decoder, Hooks, beams_of, encode_distinct, run_search, trim

__all__ = [
    "generate_sequence",
    "generate_token",
    "rag_sequence_generate",
    "rag_token_generate",
    "returned_sequences",
    "sequence_options",
    "token_options",
]

# numbers of a (rows, candidates, L, V) block of logits held at once while rescoring: 256 MB in float32
_BLOCK = 2**26


@torch.no_grad()
def generate_token(
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
    *,
    states: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> GenerateOutput:
    """RAG-Token decoding (paper, section 2.5): one search a question, over sum_z p(z|x) p(y_i|x, z, y_<i).

    Args:
        model: a RagTokenForGeneration.
        contexts: what its `_contexts` returns.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.
        states: a dict that is given the encoder states (R, S, d) and mask (R, S) as "given", for later use.

    Returns:
        `sequences` (B * num_return_sequences, T), right-padded; `sequences_scores` and `beam_indices` with beams.
    """
    hooks = hooks or Hooks()
    ids, mask = trim(contexts.context_input_ids, contexts.context_attention_mask.bool())
    log_priors, beams = doc_log_probs(contexts.doc_scores), beams_of(options)
    hidden = encode_distinct(model.generator, ids, mask)
    if states is not None:
        states["given"] = hidden, mask
    decoder = Decoder(model.generator, hidden, mask, beams=beams, options=options, log_priors=log_priors)
    finished, step_scores = run_search(decoder, options, hooks, contexts.context_input_ids, 1)
    sequences, scores, indices = (
        None if array is None else torch.as_tensor(array, device=ids.device)
        for array in (finished.sequences, finished.scores, finished.beam_indices)
    )
    return GenerateOutput(sequences, scores, step_scores, indices)


def token_options(model: Any, generation_config: Any = None, **keywords: Any) -> GenerationConfig:
    """The options of a RAG-Token call: keywords > generation_config > the model's own (compatibility Q19)."""
    base = getattr(model, "generation_config", None)
    base = GenerationConfig.from_model_config(model.config) if base is None else base
    return resolve_options(base, generation_config, **keywords)


def rag_token_generate(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    context_input_ids: Tensor | None = None,
    context_attention_mask: Tensor | None = None,
    doc_scores: Tensor | None = None,
    n_docs: int | None = None,
    generation_config: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    *,
    seed: int | None = None,
    question_text: Sequence[str] | None = None,
    **kwargs: Any,
) -> Tensor | GenerateOutput:
    """The body of `RagTokenForGeneration.generate`; see there."""
    hooks = Hooks.of(logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed)
    options = token_options(model, generation_config, **kwargs)
    with torch.no_grad():
        contexts = model._contexts(
            input_ids, attention_mask, context_input_ids, context_attention_mask, doc_scores, n_docs, question_text
        )
    output = generate_token(model, contexts, options, hooks)
    return output if options.return_dict_in_generate else output.sequences


def sequence_options(
    model: Any, num_beams: int | None, generation_config: Any = None, **keywords: Any
) -> GenerationConfig:
    """The options of the searches of a RAG-Sequence call, each of which hands back all its beams.

    Beams come from the keyword, a `generation_config` that asks for some, or the RAG config; everything else from
    keywords > generation_config > a generation_config.json somebody wrote > the generator's own (compatibility Q20).
    """
    generator = model.config.generator
    configs = (getattr(model, "generation_config", None), getattr(model.generator, "generation_config", None))
    written = [c for c in configs if c is not None and not getattr(c, "_from_model_config", True)]
    base = written[0] if written else GenerationConfig.from_model_config(generator)
    beams = _asked(model, "num_beams", num_beams, generation_config)
    return resolve_options(base, generation_config, **keywords, num_beams=beams, num_return_sequences=beams)


def _asked(model: Any, name: str, keyword: int | None, generation_config: Any) -> int:
    """`num_beams` or `num_return_sequences`: keyword > a generation_config that asks for some > the RAG config."""
    if keyword is None and generation_config is not None:
        given = getattr(as_generation_config(generation_config), name)
        keyword = None if given == 1 else given
    return keyword or getattr(model.config, name, None) or 1


def returned_sequences(model: Any, num_return_sequences: int | None, generation_config: Any = None) -> int:
    """How many sequences a RAG-Sequence call hands back for each question (compatibility Q20)."""
    return _asked(model, "num_return_sequences", num_return_sequences, generation_config)


def _inferred_mask(contexts: Any, options: GenerationConfig) -> Tensor:
    """The (R, S) mask the searches use: 4.37.2 reads it off the pad tokens (compatibility Q23)."""
    ids, pad = contexts.context_input_ids, options.pad_token_id
    if pad is None or pad in options.eos_token_ids:
        return torch.ones_like(ids, dtype=torch.bool)
    return ids != pad


@torch.no_grad()
def generate_sequence(
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
    *,
    num_return_sequences: int = 1,
    do_deduplication: bool = True,
    decoding: str = "thorough",
    states: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> GenerateOutput:
    """RAG-Sequence decoding: candidates of all documents, weighed by log sum_z p(z|x) p(y|x, z).

    Args:
        model: a RagSequenceForGeneration.
        contexts: what its `_contexts` returns.
        options: of the searches, as `sequence_options` returns them.
        hooks: the caller's functions.
        num_return_sequences: sequences handed back for each question.
        do_deduplication: whether a candidate found twice counts once.
        decoding: "thorough" scores every candidate against every document; "fast" counts a document only where its own
            search found the candidate, and reuses that search's score (paper, section 2.5).
        states: as in `generate_token`.

    Returns:
        `sequences` (B * num_return_sequences, T) right-padded with the generator's pad token, and `sequences_scores`.
        Where a question has fewer candidates, the rows left over hold pads alone and score -inf (compatibility D11).
    """
    if decoding not in ("thorough", "fast"):
        raise ValueError(f"decoding must be 'thorough' or 'fast'; got {decoding!r}")
    hooks, n_docs, config = hooks or Hooks(), contexts.n_docs, model.config
    ids, mask = trim(contexts.context_input_ids, _inferred_mask(contexts, options))
    beams = beams_of(options)
    hidden = encode_distinct(model.generator, ids, mask)
    decoder = Decoder(model.generator, hidden, mask, beams=beams, options=options)
    finished, step_scores = run_search(decoder, options, hooks, contexts.context_input_ids, n_docs)
    pad = 0 if config.generator.pad_token_id is None else config.generator.pad_token_id
    found = collect_candidates(finished, n_docs * beams, pad_token_id=pad, do_deduplication=do_deduplication)
    log_priors = doc_log_probs(contexts.doc_scores)  # (B, N)
    given = contexts.context_attention_mask.bool()
    same = torch.equal(given[:, : mask.shape[1]], mask) and not given[:, mask.shape[1] :].any()
    if not same and decoding == "thorough":
        ids, mask = trim(contexts.context_input_ids, given)
        hidden, same = encode_distinct(model.generator, ids, mask), True
    if same and states is not None:
        states["given"] = hidden, mask
    if decoding == "fast":
        scores = _fast_scores(found, finished, log_priors.cpu().numpy(), beams)
    else:
        scores = _thorough_scores(model, hidden, mask, log_priors, found).cpu().numpy()
    sequences, best = found.best(scores, num_return_sequences)
    return GenerateOutput(
        torch.as_tensor(sequences, device=ids.device), torch.as_tensor(best, device=ids.device), step_scores
    )


def _fast_scores(found: Candidates, finished: Finished, log_priors: np.ndarray, beams: int) -> np.ndarray:
    """log of the sum of p(z|x) p(y|x, z) over the documents whose search found y, (B, C)."""
    questions, docs = log_priors.shape
    each = finished.sum_log_probs.reshape(questions, docs, beams) + log_priors[:, :, None]
    return found.pooled(each.reshape(questions, docs * beams))


def _thorough_scores(model: Any, hidden: Tensor, mask: Tensor, log_priors: Tensor, found: Candidates) -> Tensor:
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


def rag_sequence_generate(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    context_input_ids: Tensor | None = None,
    context_attention_mask: Tensor | None = None,
    doc_scores: Tensor | None = None,
    do_deduplication: bool | None = None,
    num_return_sequences: int | None = None,
    num_beams: int | None = None,
    n_docs: int | None = None,
    *,
    generation_config: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    decoding: str = "thorough",
    seed: int | None = None,
    question_text: Sequence[str] | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateOutput:
    """The body of `RagSequenceForGeneration.generate`; see there."""
    config = model.config
    hooks = Hooks.of(logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed)
    options = sequence_options(model, num_beams, generation_config, **model_kwargs)
    wanted = returned_sequences(model, num_return_sequences, generation_config)
    with torch.no_grad():
        contexts = model._contexts(
            input_ids, attention_mask, context_input_ids, context_attention_mask, doc_scores, n_docs, question_text
        )
    output = generate_sequence(
        model,
        contexts,
        options,
        hooks,
        num_return_sequences=wanted,
        do_deduplication=config.do_deduplication if do_deduplication is None else do_deduplication,
        decoding=decoding,
    )
    return output if options.return_dict_in_generate else output.sequences
