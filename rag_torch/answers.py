"""From questions to answers that name the passages they come from, with probabilities (paper,
sections 2.1 and 2.2).

Letters: B questions, N documents a question, n answers a question, S context length, L tokens of a
generated row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rag_core.arguments import checked_questions
from rag_core.generation import Hooks, plugged, returned_sequences, sequence_options, token_options
from rag_core.outputs import Answer, Passage
from rag_core.retrieval import read_docs
from rag_core.tokenization import RagTokenizer
from rag_torch.contexts import table_size
from rag_torch.decoding import (
    generate_sequence,
    generate_token,
)
from rag_torch.marginalize import doc_log_probs, token_joint
from rag_torch.step_decoder import encode_distinct, trim

_HOOKS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "seed")
_WEIGHING = ("do_deduplication", "decoding")


def answer(
    model: Any,
    questions: str | Sequence[str],
    *,
    n_docs: int | None = None,
    tokenizer: Any = None,
    question_text: bool | Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> list[Answer]:
    """Answers questions, each answer with its passages, their prior p(z|x) and their posterior
    p(z|x, y).

    RAG-Sequence draws one passage for the whole answer, so the posterior is p(z) p(y|x, z) / sum.
    RAG-Token draws one for every token: `token_posteriors` holds p(z_i|x, y_i, y_<i) for each
    token, and a passage's posterior is their mean, the share of the answer that it wrote.

    Args:
        model: a RagTokenForGeneration or RagSequenceForGeneration with a retriever.
        questions: one question or several, in a list, an array or a column of a table.
        n_docs: N, documents read for each question; by default the config's.
        tokenizer: a RagTokenizer; by default the retriever's two tokenizers.
        question_text: the questions as the prompt should hold them; True for as they were asked. By
            default they are decoded from the question encoder's ids, as 4.37.2 does.
        **generate_kwargs: options of `generate`.

    Returns:
        `num_return_sequences` answers for each question, best first, question after question; fewer
        where RAG-Sequence found fewer. `log_probability` is log p(y|x) of all tokens after the
        start token, the end token
        and those of a `decoder_input_ids` included.

    Raises:
        TypeError: questions that are not strings.
        ValueError: an empty question, or a model without a retriever.
    """
    questions = checked_questions(questions, model.retriever)
    retriever = model.retriever if tokenizer is None else None
    encoder = (
        tokenizer.question_encoder if retriever is None else retriever.question_encoder_tokenizer
    )
    decoder = tokenizer.generator if retriever is None else retriever.generator_tokenizer
    device = next(model.parameters()).device
    tables = table_size(model.question_encoder), table_size(model.generator)
    encoded = RagTokenizer(encoder, decoder, model.config, tables=tables).encode_questions(
        questions, return_tensors="pt", padding=True, truncation=True
    )
    raw = questions if question_text is True else None if question_text is False else question_text
    with torch.no_grad():
        ids, mask = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
        contexts = model._contexts(ids, mask, None, None, None, n_docs, raw)
        rows, options, states = _generated(model, contexts, generate_kwargs)  # (B, n, L)
        joint, kept = _scored(model, contexts, options, states, rows)
    log_priors = doc_log_probs(contexts.doc_scores)
    docs = read_docs(
        model.retriever.index,
        contexts.retrieved["doc_ids"].cpu().numpy(),
        contexts.retrieved["retrieved_doc_embeds"].cpu().numpy(),
    )
    answers = []
    for b, question in enumerate(questions):
        for i, row in enumerate(rows[b]):
            if not bool(kept[b, i].any()):
                continue
            tokens = row[1:][kept[b, i]]
            each = joint[b, :, i][:, kept[b, i]]  # (N, tokens), log p(y_i|x, z, y_<i)
            log_probability, posterior, by_token = _posterior(model, each, log_priors[b])
            answers.append(
                Answer(
                    question=question,
                    text=decoder.decode(row.tolist(), skip_special_tokens=True).strip(),
                    log_probability=log_probability,
                    passages=_passages(
                        contexts, docs[b], b, log_priors[b].exp().tolist(), posterior
                    ),
                    tokens=[decoder.decode([token]) for token in tokens.tolist()],
                    token_posteriors=by_token,
                )
            )
    return answers


def _is_sequence(model: Any) -> bool:
    return "Sequence" in type(model).__name__ or getattr(model, "head", "") == "sequence"


def _generated(
    model: Any, contexts: Any, kwargs: dict[str, Any]
) -> tuple[Tensor, Any, dict[str, Any]]:
    """Generated rows (B, n, L), the options they were made with, and encoder states that can
    serve again.
    """
    kwargs, states = dict(kwargs), dict[str, Any]()
    hooks = Hooks.of(*(kwargs.pop(name, None) for name in _HOOKS), **plugged(kwargs))
    if _is_sequence(model):
        weighing = {name: kwargs.pop(name) for name in _WEIGHING if kwargs.get(name) is not None}
        weighing.setdefault("do_deduplication", model.config.do_deduplication)
        wanted = returned_sequences(
            model, kwargs.pop("num_return_sequences", None), kwargs.get("generation_config")
        )
        options = sequence_options(model, kwargs.pop("num_beams", None), **kwargs)
        output = generate_sequence(
            model, contexts, options, hooks, num_return_sequences=wanted, states=states, **weighing
        )
    else:
        options = token_options(model, **kwargs)
        output = generate_token(model, contexts, options, hooks, states=states)
    return output.sequences.unflatten(0, (contexts.doc_scores.shape[0], -1)), options, states


def _scored(
    model: Any, contexts: Any, options: Any, states: dict[str, Any], rows: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(y_i|x, z, y_<i) of every generated token, (B, N, n, L-1), and which of them count,
    (B, n, L-1).
    """
    if "given" not in states:
        ids, mask = trim(contexts.context_input_ids, contexts.context_attention_mask.bool())
        states["given"] = (encode_distinct(model.generator, ids, mask), mask)
    hidden, mask = states["given"]
    state = model.generator.start(hidden, mask, beams=rows.shape[1], max_length=None)
    logits = model.generator.decode(rows[..., :-1].repeat_interleave(contexts.n_docs, dim=0), state)
    target = rows[..., 1:]
    flat = logits.unflatten(0, (-1, contexts.n_docs))  # (B, N, n, L-1, V)
    joint = token_joint(flat, torch.zeros_like(contexts.doc_scores), target)
    ends = torch.zeros_like(target, dtype=torch.bool)
    for eos in options.eos_token_ids:
        ends |= target == eos
    kept = (ends.cumsum(dim=-1) - ends.long()) == 0
    if not options.eos_token_ids and options.pad_token_id is not None:
        kept &= target != options.pad_token_id
    pads = (rows == model.config.generator.pad_token_id).all(dim=-1)  # a candidate that isn't there
    kept &= ~pads[..., None]
    if options.bos_token_id is not None:
        kept[..., 0] &= target[..., 0] != options.bos_token_id
    return joint, kept


def _posterior(
    model: Any, each: Tensor, log_priors: Tensor
) -> tuple[float, list[float], list[list[float]] | None]:
    """log p(y|x), p(z|x, y) of the N passages, and for RAG-Token the same of each token."""
    if _is_sequence(model):
        whole = each.sum(dim=1) + log_priors  # (N,)
        whole = whole.masked_fill(log_priors.isneginf(), -torch.inf)
        return float(whole.logsumexp(dim=0)), whole.softmax(dim=0).tolist(), None
    # (N, tokens)
    tokens = (each + log_priors[:, None]).masked_fill(log_priors.isneginf()[:, None], -torch.inf)
    shares = tokens.softmax(dim=0)
    return (
        float(tokens.logsumexp(dim=0).sum()),
        shares.mean(dim=1).tolist(),
        shares[~log_priors.isneginf()].T.tolist(),
    )


def _passages(
    contexts: Any, docs: dict[str, Any], b: int, prior: list[float], posterior: list[float]
) -> list[Passage]:
    ids, scores = contexts.retrieved["doc_ids"][b].tolist(), contexts.doc_scores[b].tolist()
    return [
        Passage(ids[d], docs["title"][d], docs["text"][d], scores[d], prior[d], posterior[d])
        for d in range(contexts.n_docs)
        if ids[d] >= 0
    ]
