"""Decoding of both heads, and of a generator alone (paper, section 2.5).

RAG-Token runs B searches over scores marginalised at every token. RAG-Sequence runs B*N searches
with the plain generator, one for each document, and weighs what they found: thoroughly, by scoring
every candidate against every document, or fast, by the scores of the searches that found it.
Letters: B questions, N documents a question, K beams, C candidates of a question, S context length,
L candidate length, T generated length, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.arguments import checked_switch
from rag_core.generation import (
    GenerationConfig,
    Hooks,
    check_embeds,
    check_one_of,
    collect_candidates,
    fast_scores,
    plugged,
    returned_sequences,
    sequence_options,
    thorough_scores,
    token_options,
)
from rag_core.outputs import GenerateOutput
from rag_tf.contexts import checked_questions, table_size
from rag_tf.engine import ENGINE
from rag_tf.layers import as_encoder_output
from rag_tf.marginalize import doc_log_probs
from rag_tf.step_decoder import (
    Decoder,
    encode_distinct,
    encode_seen,
    is_traced,
    trim,
    without_documents,
)
from rag_tf.step_loop import beams_of, run_search

__all__ = [
    "generate_sequence",
    "generate_token",
    "plain_generate",
    "rag_sequence_generate",
    "rag_token_generate",
    "returned_sequences",
    "sequence_options",
    "token_options",
]


def generate_token(
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
    *,
    states: dict[str, tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> GenerateOutput:
    """RAG-Token decoding (paper, section 2.5): one search a question, over sum_z p(z|x) p(y_i|x, z,
    y_<i).

    Args:
        model: a RagTokenForGeneration.
        contexts: what its `_contexts` returns.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.
        states: a dict that is given the encoder states (R, S, d) and mask (R, S) as "given", for
            later use.

    Returns:
        `sequences` (B * num_return_sequences, T), right-padded; `sequences_scores` and
        `beam_indices` with beams; what the networks saw where the options ask.
    """
    hooks = hooks or Hooks()
    ids, mask = trim(contexts.context_input_ids, tf.cast(contexts.context_attention_mask, tf.bool))
    log_priors = doc_log_probs(contexts.doc_scores)
    starts = hooks.begin(options, len(log_priors), len(log_priors) * beams_of(options))
    encoded = encode_seen(model.generator, ids, mask, options)
    if states is not None:
        states["given"] = encoded[0], mask
    return _searched(
        model.generator,
        encoded,
        mask,
        options,
        hooks,
        log_priors,
        contexts.context_input_ids,
        starts,
    )


def _searched(
    generator: Any,
    encoded: tuple[tf.Tensor, dict[str, Any]],
    mask: tf.Tensor,
    options: GenerationConfig,
    hooks: Hooks,
    log_priors: tf.Tensor | None,
    context_ids: tf.Tensor | None,
    starts: Any,
) -> GenerateOutput:
    """One search for each question, from what `encode_seen` returned.

    Over its documents, or without any.
    """
    hidden, seen = encoded
    decoder = _decoder(generator, hidden, mask, options, hooks, log_priors, len(starts))
    finished, step_scores = run_search(decoder, options, hooks, context_ids, starts)
    sequences, scores, indices = (
        None if array is None else tf.constant(array)
        for array in (finished.sequences, finished.scores, finished.beam_indices)
    )
    return GenerateOutput(sequences, scores, step_scores, indices, **seen, **decoder.seen())


def plain_generate(
    generator: Any,
    inputs: tf.Tensor | None = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    *,
    input_ids: tf.Tensor | None = None,
    attention_mask: tf.Tensor | None = None,
    inputs_embeds: tf.Tensor | None = None,
    encoder_outputs: Any = None,
    seed: int | None = None,
    **kwargs: Any,
) -> tf.Tensor | GenerateOutput:
    """The body of `generate` of a generator alone: the searches of RAG-Token without documents and
    without a prior.

    Args:
        generator: a `rag_tf.seq2seq.Generator`.
        inputs: another name of `input_ids`.
        generation_config: options of this call; keywords go before it, the generator's own options
            after it.
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed: as in
        `rag_token_generate`.
        input_ids: (B, S) contexts.
        attention_mask: (B, S), 1 = a real token; None = every token that is not the pad token.
        inputs_embeds: (B, S, d) in place of `input_ids`.
        encoder_outputs: an earlier call's encoder output of these contexts, to spare the encoder.
        **kwargs: options, `decoder_input_ids`, `streamer` and the negative prompt as in
            `rag_token_generate`; `labels` of a batch are not read.

    Returns:
        (B * num_return_sequences, T) token ids, or with `return_dict_in_generate` a
        `GenerateOutput`.

    Raises:
        TypeError: an unknown option.
        ValueError: an option that cannot be had, or inputs that do not fit.
    """
    hooks = Hooks.of(
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed, **plugged(kwargs)
    )
    options = token_options(generator, generation_config, **kwargs)
    if inputs is not None:
        check_one_of("inputs", inputs, "input_ids", input_ids)
        input_ids = inputs
    given = (input_ids, attention_mask, inputs_embeds, encoder_outputs)
    with running(generator):
        encoded, mask, ids = _own_contexts(generator, *given, options)
        starts = hooks.begin(options, len(mask), len(mask) * beams_of(options))
        output = _searched(generator, encoded, mask, options, hooks, None, ids, starts)
    return output if options.return_dict_in_generate else output.sequences


def _own_contexts(
    generator: Any,
    ids: Any,
    mask: Any,
    inputs_embeds: Any,
    encoder_outputs: Any,
    options: GenerationConfig,
) -> tuple[tuple[tf.Tensor, dict[str, Any]], tf.Tensor, tf.Tensor | None]:
    """What `encode_seen` returns of a generator's own contexts, their mask (B, S), and their ids
    if there are any.
    """
    if encoder_outputs is None:
        check_one_of("input_ids", ids, "inputs_embeds", inputs_embeds)
    if ids is not None:
        ids = checked_questions(ids, mask, table_size(generator))
        mask = _inferred_mask(ids, options) if mask is None else tf.cast(mask, tf.bool)
    if encoder_outputs is None and ids is not None:
        read, mask = trim(ids, mask)
        return encode_seen(generator, read, mask, options), mask, ids
    outputs = None if encoder_outputs is None else as_encoder_output(encoder_outputs)
    states = tf.convert_to_tensor(inputs_embeds if outputs is None else outputs.last_hidden_state)
    name = "inputs_embeds" if outputs is None else "encoder_outputs[0]"
    check_embeds(name, states.shape, generator.get_input_embeddings().embedding_dim)
    mask = tf.ones(states.shape[:2], tf.bool) if mask is None else tf.cast(mask, tf.bool)
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"attention_mask must be {tuple(states.shape[:2])} as {name} is, got "
            f"{tuple(mask.shape)}"
        )
    if outputs is None:
        wanted = {
            "output_attentions": options.output_attentions,
            "output_hidden_states": options.output_hidden_states,
        }
        outputs = generator.get_encoder()(inputs_embeds=states, attention_mask=mask, **wanted)
    seen = {
        "encoder_attentions": outputs.attentions,
        "encoder_hidden_states": outputs.hidden_states,
    }
    return (outputs.last_hidden_state, seen if is_traced(options) else {}), mask, ids


def _decoder(
    generator: Any,
    hidden: tf.Tensor,
    mask: tf.Tensor,
    options: GenerationConfig,
    hooks: Hooks,
    log_priors: tf.Tensor | None,
    questions: int,
) -> Decoder:
    beams, without = beams_of(options), None
    negative = without_documents(generator, options, hooks.negative_prompt, questions)
    if negative is not None:
        searches = len(hidden) if log_priors is None else questions
        states, real = (tf.repeat(x, searches // questions, axis=0) for x in negative)
        without = Decoder(generator, states, real, beams=beams, options=options)
    return Decoder(
        generator,
        hidden,
        mask,
        beams=beams,
        options=options,
        log_priors=log_priors,
        without=without,
        traced=is_traced(options),
    )


def running(model: Any) -> AbstractContextManager[Any]:
    """Within it a model generates: in the precision that its calls have.

    Raises:
        RuntimeError: in a graph, which cannot hold the decisions between the steps.
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            "generate() decides in Python between its steps, and cannot be part of a tf.function: "
            "call it outside, or make a graph of the whole with rag_tf.export.export_saved_model"
        )
    return model.precision() if hasattr(model, "precision") else nullcontext()


def rag_token_generate(
    model: Any,
    input_ids: tf.Tensor | None = None,
    attention_mask: tf.Tensor | None = None,
    context_input_ids: tf.Tensor | None = None,
    context_attention_mask: tf.Tensor | None = None,
    doc_scores: tf.Tensor | None = None,
    n_docs: int | None = None,
    generation_config: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    *,
    seed: int | None = None,
    question_text: Sequence[str] | None = None,
    **kwargs: Any,
) -> tf.Tensor | GenerateOutput:
    """The body of `RagTokenForGeneration.generate`.

    Args:
        model: a RagTokenForGeneration.
        input_ids: (B, S) questions, to retrieve contexts for; or give the contexts:
        attention_mask: (B, S), 1 = a real token.
        context_input_ids: (B*N, S) document and question as the generator reads them.
        context_attention_mask: (B*N, S), 1 = a real token.
        doc_scores: (B, N).
        n_docs: N; None = the config's.
        generation_config: options of this call; keywords go before it, the model's own options
            after it.
        prefix_allowed_tokens_fn: (question number, (t,) ids) -> ids allowed next.
        logits_processor: callables (input_ids, scores) -> scores, after the built-in rules.
        stopping_criteria: callables (input_ids, scores) -> True to stop, or (rows,) bools.
        seed: of the sampling noise; None draws one from TensorFlow's generator, so
            `tf.random.set_seed` repeats a call. The same seed draws the same text only for the same
            place in the batch and number of samples.
        question_text: the questions as the prompt should hold them.
        **kwargs: any option of `GenerationConfig`, and
            `do_deduplication`, which changes nothing: no two rows of a search are equal;
            `decoder_input_ids` (B, P): tokens each answer begins with. The start token is put in
            front where no row has it; `max_length` counts them, `max_new_tokens` and
            `length_penalty` do not;
            `streamer`: has `put(ids)` and `end()`, for one question without beams;
            `negative_prompt_ids` (B, S'), `negative_prompt_attention_mask`: with `guidance_scale`
            g, scores are g * log p(with documents) + (1 - g) * log p(read from these ids instead;
            by default the empty text).

    Returns:
        (B * num_return_sequences, T) token ids, or with `return_dict_in_generate` a
        `GenerateOutput`.

    Raises:
        TypeError: an unknown option.
        ValueError: an option that cannot be had, or inputs that do not fit.
    """
    hooks = Hooks.of(
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed, **plugged(kwargs)
    )
    checked_switch("do_deduplication", kwargs.pop("do_deduplication", None), True)
    options = token_options(model, generation_config, **kwargs)
    given = (
        input_ids,
        attention_mask,
        context_input_ids,
        context_attention_mask,
        doc_scores,
        n_docs,
        question_text,
    )
    with running(model):
        output = generate_token(model, model._contexts(*given), options, hooks)
    return output if options.return_dict_in_generate else output.sequences


def _inferred_mask(ids: tf.Tensor, options: GenerationConfig) -> tf.Tensor:
    """The mask of contexts (R, S) where 4.37.2 reads it off their pad tokens (compatibility
    Q23).
    """
    pad = options.pad_token_id
    if pad is None or pad in options.eos_token_ids:
        return tf.ones_like(ids, tf.bool)
    return ids != pad


def generate_sequence(
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
    *,
    num_return_sequences: int = 1,
    do_deduplication: bool = True,
    decoding: str = "thorough",
    states: dict[str, tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> GenerateOutput:
    """RAG-Sequence decoding: candidates of all documents, weighed by log sum_z p(z|x) p(y|x, z).

    Args:
        model: a RagSequenceForGeneration.
        contexts: what its `_contexts` returns.
        options: of the searches, as `sequence_options` returns them.
        hooks: the caller's functions.
        num_return_sequences: sequences handed back for each question.
        do_deduplication: whether a candidate found twice counts once.
        decoding: "thorough" scores every candidate against every document; "fast" counts a document
            only where its own search found the candidate, and reuses that search's score (paper,
            section 2.5).
        states: as in `generate_token`.

    Returns:
        `sequences` (B * num_return_sequences, T) right-padded with the generator's pad token, and
        `sequences_scores`; what the networks saw during the searches where the options ask.
        Where a question has fewer candidates, the rows left over hold pads alone and score -inf
        (compatibility D11).
    """
    if decoding not in ("thorough", "fast"):
        raise ValueError(f"decoding must be 'thorough' or 'fast'; got {decoding!r}")
    hooks, n_docs, config = hooks or Hooks(), contexts.n_docs, model.config
    ids, mask = trim(
        contexts.context_input_ids, _inferred_mask(contexts.context_input_ids, options)
    )
    beams = beams_of(options)
    starts = hooks.begin(options, len(contexts.doc_scores), len(ids) * beams)
    hidden, seen = encode_seen(model.generator, ids, mask, options)
    decoder = _decoder(model.generator, hidden, mask, options, hooks, None, len(starts))
    state: Any = decoder.state  # before the search lets go of contexts
    finished, step_scores = run_search(decoder, options, hooks, contexts.context_input_ids, starts)
    pad = 0 if config.generator.pad_token_id is None else config.generator.pad_token_id
    found = collect_candidates(
        finished, n_docs * beams, pad_token_id=pad, do_deduplication=do_deduplication
    )
    log_priors = doc_log_probs(contexts.doc_scores)  # (B, N)
    given, width = tf.cast(contexts.context_attention_mask, tf.bool), int(mask.shape[1])
    same = np.array_equal(given[:, :width], mask) and not np.any(given[:, width:])
    if not same and decoding == "thorough":
        ids, mask = trim(contexts.context_input_ids, given)
        hidden, same, state = encode_distinct(model.generator, ids, mask), True, None
    if same and states is not None:
        states["given"] = hidden, mask
    if decoding == "fast":
        scores = fast_scores(found, finished, log_priors.numpy(), beams)
    else:
        scores = thorough_scores(ENGINE, model, hidden, mask, log_priors, found, state)
    sequences, best = found.best(scores, num_return_sequences)
    return GenerateOutput(
        tf.constant(sequences), tf.constant(best), step_scores, **seen, **decoder.seen()
    )


def rag_sequence_generate(
    model: Any,
    input_ids: tf.Tensor | None = None,
    attention_mask: tf.Tensor | None = None,
    context_input_ids: tf.Tensor | None = None,
    context_attention_mask: tf.Tensor | None = None,
    doc_scores: tf.Tensor | None = None,
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
) -> tf.Tensor | GenerateOutput:
    """The body of `RagSequenceForGeneration.generate`; what is not named here is as in
    `rag_token_generate`.

    Args:
        do_deduplication: whether a candidate found twice counts once; None = the config's.
        num_return_sequences: answers for each question; None = the config's.
        num_beams: beams of the search of each document; None = the config's.
        decoding: see `generate_sequence`.
        **model_kwargs: as there. The searches of all documents of a question begin with its
            `decoder_input_ids`, whose probability thorough decoding counts, so that documents weigh
            as these tokens say too; `guidance_scale` acts on the searches, not on the weighing;
            `streamer` needs one document.
    """
    config = model.config
    hooks = Hooks.of(
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn, seed, **plugged(model_kwargs)
    )
    options = sequence_options(model, num_beams, generation_config, **model_kwargs)
    wanted = returned_sequences(model, num_return_sequences, generation_config)
    given = (
        input_ids,
        attention_mask,
        context_input_ids,
        context_attention_mask,
        doc_scores,
        n_docs,
        question_text,
    )
    with running(model):
        output = generate_sequence(
            model,
            model._contexts(*given),
            options,
            hooks,
            num_return_sequences=wanted,
            do_deduplication=checked_switch(
                "do_deduplication", do_deduplication, config.do_deduplication
            ),
            decoding=decoding,
        )
    return output if options.return_dict_in_generate else output.sequences
