"""From questions to answers that name the passages they come from, with probabilities (paper,
sections 2.1 and 2.2).

Letters: B questions, N documents a question, n answers a question, S context length, L tokens of a
generated row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.arguments import checked_questions
from rag_core.backends import to_numpy
from rag_core.generation import Hooks, plugged, returned_sequences, sequence_options, token_options
from rag_core.outputs import Answer, Passage
from rag_core.retrieval import read_docs
from rag_core.tokenization import RagTokenizer
from rag_tf.contexts import table_size
from rag_tf.decoding import (
    generate_sequence,
    generate_token,
    running,
)
from rag_tf.graph import Graph
from rag_tf.marginalize import doc_log_probs, token_joint
from rag_tf.step_decoder import encode_distinct, trim

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
    tables = table_size(model.question_encoder), table_size(model.generator)
    encoded = RagTokenizer(encoder, decoder, model.config, tables=tables).encode_questions(
        questions, return_tensors="tf", padding=True, truncation=True
    )
    raw = questions if question_text is True else None if question_text is False else question_text
    with running(model):
        contexts = model._contexts(
            encoded["input_ids"], encoded["attention_mask"], None, None, None, n_docs, raw
        )
        rows, options, states = _generated(model, contexts, generate_kwargs)  # (B, n, L)
        joint, kept = _scored(model, contexts, options, states, rows)
    log_priors = doc_log_probs(contexts.doc_scores).numpy()
    found = (to_numpy(contexts.retrieved[key]) for key in ("doc_ids", "retrieved_doc_embeds"))
    docs = read_docs(model.retriever.index, *found)
    answers = []
    for b, question in enumerate(questions):
        for i, row in enumerate(rows[b]):
            if not kept[b, i].any():
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
                        contexts, docs[b], b, np.exp(log_priors[b]).tolist(), posterior
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
) -> tuple[np.ndarray, Any, dict[str, Any]]:
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
    rows = output.sequences.numpy()
    return rows.reshape(int(contexts.doc_scores.shape[0]), -1, rows.shape[1]), options, states


def _joint(logits: tf.Tensor, like: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Logits (B*N, n, L-1, V) -> log p(y_i|x, z, y_<i) of targets (B, n, L-1), (B, N, n, L-1).

    `like` is (B, N).
    """
    # (B, N, n, L-1, V)
    apart = tf.reshape(logits, tf.concat([tf.shape(like), tf.shape(logits)[1:]], axis=0))
    return token_joint(apart, tf.zeros_like(like), target)


_JOINT = Graph(_joint)


def _scored(
    model: Any, contexts: Any, options: Any, states: dict[str, Any], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log p(y_i|x, z, y_<i) of every generated token, (B, N, n, L-1), and which of them count,
    (B, n, L-1).
    """
    if "given" not in states:
        ids, mask = trim(
            contexts.context_input_ids, tf.cast(contexts.context_attention_mask, tf.bool)
        )
        states["given"] = (encode_distinct(model.generator, ids, mask), mask)
    hidden, mask = states["given"]
    state = model.generator.start(hidden, mask, beams=rows.shape[1], max_length=None)
    logits = model.generator.decode(
        tf.constant(rows[..., :-1].repeat(contexts.n_docs, axis=0)), state
    )
    target = rows[..., 1:]
    joint = _JOINT(logits, contexts.doc_scores, tf.constant(target)).numpy()
    ends = np.isin(target, options.eos_token_ids)
    kept = (ends.cumsum(axis=-1) - ends) == 0
    if not options.eos_token_ids and options.pad_token_id is not None:
        kept &= target != options.pad_token_id
    # a candidate that isn't there
    pads = (rows == model.config.generator.pad_token_id).all(axis=-1)
    kept &= ~pads[..., None]
    if options.bos_token_id is not None:
        kept[..., 0] &= target[..., 0] != options.bos_token_id
    return joint, kept


def _posterior(
    model: Any, each: np.ndarray, log_priors: np.ndarray
) -> tuple[float, list[float], list[list[float]] | None]:
    """log p(y|x), p(z|x, y) of the N passages, and for RAG-Token the same of each token."""
    there = np.isfinite(log_priors)
    if _is_sequence(model):
        whole = np.where(there, each.sum(axis=1) + log_priors, -np.inf)  # (N,)
        total = np.logaddexp.reduce(whole)
        return float(total), np.exp(whole - total).tolist(), None
    tokens = np.where(there[:, None], each + log_priors[:, None], -np.inf)  # (N, tokens)
    marginal = np.logaddexp.reduce(tokens, axis=0)
    shares = np.exp(tokens - marginal)
    return float(marginal.sum()), shares.mean(axis=1).tolist(), shares[there].T.tolist()


def _passages(
    contexts: Any, docs: dict[str, Any], b: int, prior: list[float], posterior: list[float]
) -> list[Passage]:
    ids, scores = (
        to_numpy(contexts.retrieved["doc_ids"])[b].tolist(),
        contexts.doc_scores[b].numpy().tolist(),
    )
    return [
        Passage(ids[d], docs["title"][d], docs["text"][d], scores[d], prior[d], posterior[d])
        for d in range(contexts.n_docs)
        if ids[d] >= 0
    ]
