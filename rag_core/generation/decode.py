"""Decoding of both heads, and of a generator alone (paper, section 2.5).

RAG-Token runs B searches over scores marginalised at every token. RAG-Sequence runs B*N searches
with the plain generator, one for each document, and weighs what they found: thoroughly, by scoring
every candidate against every document, or fast, by the scores of the searches that found it.
Letters: B questions, N documents a question, K beams, C candidates of a question, S context length,
L candidate length, T generated length, d width, R contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rag_core.arguments import checked_switch
from rag_core.backends import to_numpy
from rag_core.generation.candidates import collect_candidates
from rag_core.generation.config import GenerationConfig
from rag_core.generation.decoder import (
    Decoder,
    Encoded,
    GuidedDecoder,
    as_encoded,
    beams_of,
    encode,
    encode_without_documents,
    traced_parts,
    trim,
)
from rag_core.generation.engine import Engine, Tensor
from rag_core.generation.hooks import Hooks, pop_hooks
from rag_core.generation.inputs import check_embeds, check_one_of
from rag_core.generation.loop import run_search
from rag_core.generation.model_options import returned_sequences, sequence_options, token_options
from rag_core.generation.rescoring import fast_scores, thorough_scores
from rag_core.outputs import GenerateOutput, as_encoder_output


def rag_token_generate(
    engine: Engine,
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    context_input_ids: Any = None,
    context_attention_mask: Any = None,
    doc_scores: Any = None,
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
    """The body of `RagTokenForGeneration.generate`, whose arguments these are."""
    hooks = Hooks.of(
        logits_processor,
        stopping_criteria,
        prefix_allowed_tokens_fn,
        seed,
        **pop_hooks(kwargs, engine),
    )
    checked_switch("do_deduplication", kwargs.pop("do_deduplication", None), True)
    options = token_options(model, generation_config, **kwargs)
    with engine.generation_context(model):
        contexts = model._contexts(
            input_ids,
            attention_mask,
            context_input_ids,
            context_attention_mask,
            doc_scores,
            n_docs,
            question_text,
        )
        output, _ = generate_token(engine, model, contexts, options, hooks)
    return _returned(output, options)


def rag_sequence_generate(
    engine: Engine,
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    context_input_ids: Any = None,
    context_attention_mask: Any = None,
    doc_scores: Any = None,
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
    """The body of `RagSequenceForGeneration.generate`, whose arguments these are."""
    hooks = Hooks.of(
        logits_processor,
        stopping_criteria,
        prefix_allowed_tokens_fn,
        seed,
        **pop_hooks(model_kwargs, engine),
    )
    options = sequence_options(model, num_beams, generation_config, **model_kwargs)
    returned = returned_sequences(model, num_return_sequences, generation_config)
    with engine.generation_context(model):
        contexts = model._contexts(
            input_ids,
            attention_mask,
            context_input_ids,
            context_attention_mask,
            doc_scores,
            n_docs,
            question_text,
        )
        deduplicates = checked_switch(
            "do_deduplication", do_deduplication, model.config.do_deduplication
        )
        output, _ = generate_sequence(
            engine,
            model,
            contexts,
            options,
            hooks,
            num_return_sequences=returned,
            do_deduplication=deduplicates,
            decoding=decoding,
        )
    return _returned(output, options)


def plain_generate(
    engine: Engine,
    generator: Any,
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    *,
    input_ids: Any = None,
    attention_mask: Any = None,
    inputs_embeds: Any = None,
    encoder_outputs: Any = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor | GenerateOutput:
    """The body of a generator's `generate`, whose arguments these are: the searches of RAG-Token
    without documents and without a prior.
    """
    hooks = Hooks.of(
        logits_processor,
        stopping_criteria,
        prefix_allowed_tokens_fn,
        seed,
        **pop_hooks(kwargs, engine),
    )
    options = token_options(generator, generation_config, **kwargs)
    if inputs is not None:
        check_one_of("inputs", inputs, "input_ids", input_ids)
        input_ids = inputs
    with engine.generation_context(generator):
        if encoder_outputs is None:
            check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        if input_ids is not None:
            size = engine.table_size(generator)
            input_ids = engine.checked_questions(input_ids, attention_mask, size)
        encoded = _encoded_contexts(
            engine, generator, input_ids, attention_mask, inputs_embeds, encoder_outputs, options
        )
        questions = int(encoded.mask.shape[0])
        starts = hooks.begin(options, questions, questions * beams_of(options))
        output = _search(engine, generator, encoded, options, hooks, None, input_ids, starts)
    return _returned(output, options)


def _encoded_contexts(
    engine: Engine,
    generator: Any,
    input_ids: Tensor | None,
    attention_mask: Any,
    inputs_embeds: Any,
    encoder_outputs: Any,
    options: GenerationConfig,
) -> Encoded:
    """A generator's own contexts: read from ids or embeddings, or as an earlier call left them."""
    if input_ids is not None:
        attention_mask = _searches_mask(engine, input_ids, attention_mask, options)
    if input_ids is not None and encoder_outputs is None:
        return encode(engine, generator, *trim(engine, input_ids, attention_mask), options)
    if encoder_outputs is None:
        name, outputs = "inputs_embeds", None
        states = engine.tensor(inputs_embeds)
    else:
        name, outputs = "encoder_outputs[0]", as_encoder_output(encoder_outputs)
        states = engine.tensor(outputs.last_hidden_state)
    check_embeds(name, states.shape, generator.get_input_embeddings().embedding_dim)
    mask = engine.bool_mask(attention_mask, states)
    shape = tuple(states.shape[:2])
    if tuple(mask.shape) != shape:
        raise ValueError(f"attention_mask must be {shape} as {name} is, got {tuple(mask.shape)}")
    if outputs is None:
        outputs = generator.get_encoder()(
            inputs_embeds=states,
            attention_mask=mask,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
        )
    return as_encoded(outputs, mask, options)


def _searches_mask(
    engine: Engine, ids: Tensor, attention_mask: Any, options: GenerationConfig
) -> Tensor:
    """The bool mask of contexts (R, S): the one given, or read off their pad tokens as 4.37.2 does
    (compatibility Q23).
    """
    pad = options.pad_token_id
    if attention_mask is None and pad is not None and pad not in options.eos_token_ids:
        return ids != pad
    return engine.bool_mask(attention_mask, ids)


def _returned(output: GenerateOutput, options: GenerationConfig) -> Tensor | GenerateOutput:
    return output if options.return_dict_in_generate else output.sequences


def generate_token(
    engine: Engine,
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
) -> tuple[GenerateOutput, Encoded]:
    """Decode with RAG-Token (paper, section 2.5): one search a question, over
    sum_z p(z|x) p(y_i|x, z, y_<i).

    Args:
        engine: the model's framework; its `generation_context` is the caller's to enter.
        model: a RagTokenForGeneration.
        contexts: what its `_contexts` returns.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.

    Returns:
        `sequences` (B * num_return_sequences, T), right-padded, `sequences_scores` and
        `beam_indices` with beams, and what the networks saw where the options ask; and beside it
        the encoded contexts, which can serve again.
    """
    hooks = hooks or Hooks()
    ids, mask = contexts.context_input_ids, contexts.context_attention_mask
    log_priors = engine.doc_log_probs(contexts.doc_scores)
    questions = int(log_priors.shape[0])
    starts = hooks.begin(options, questions, questions * beams_of(options))
    read = trim(engine, ids, engine.bool_mask(mask, ids))
    encoded = encode(engine, model.generator, *read, options)
    output = _search(engine, model.generator, encoded, options, hooks, log_priors, ids, starts)
    return output, encoded


def generate_sequence(
    engine: Engine,
    model: Any,
    contexts: Any,
    options: GenerationConfig,
    hooks: Hooks | None = None,
    *,
    num_return_sequences: int = 1,
    do_deduplication: bool = True,
    decoding: str = "thorough",
) -> tuple[GenerateOutput, Encoded | None]:
    """Decode with RAG-Sequence: candidates of all documents, weighed by log sum_z p(z|x) p(y|x, z).

    Args:
        engine: the model's framework; its `generation_context` is the caller's to enter.
        model: a RagSequenceForGeneration.
        contexts: what its `_contexts` returns.
        options: of the searches, as `sequence_options` returns them.
        hooks: the caller's functions.
        num_return_sequences: sequences handed back for each question.
        do_deduplication: whether a candidate found twice counts once.
        decoding: "thorough" scores every candidate against every document; "fast" counts a document
            only where its own search found the candidate, and reuses that search's score (paper,
            section 2.5).

    Returns:
        `sequences` (B * num_return_sequences, T) right-padded with the generator's pad token,
        `sequences_scores`, and what the networks saw during the searches where the options ask.
        Where a question has fewer candidates, the rows left over hold pads alone and score -inf
        (compatibility D11). Beside it the contexts encoded under the caller's mask, which can serve
        again; None where they were not.
    """
    if decoding not in ("thorough", "fast"):
        raise ValueError(f"decoding must be 'thorough' or 'fast'; got {decoding!r}")
    hooks = hooks or Hooks()
    ids, generator = contexts.context_input_ids, model.generator
    read = trim(engine, ids, _searches_mask(engine, ids, None, options))
    beams = beams_of(options)
    # One search for each document, and all those of a question begin with the same tokens.
    questions = int(contexts.doc_scores.shape[0])
    starts = hooks.begin(options, questions, int(ids.shape[0]) * beams)
    searched = encode(engine, generator, *read, options)
    decoder = _decoder(engine, generator, searched, options, hooks, None, questions)
    # The state of all contexts serves the weighing, too; the search lets go of some.
    state: Any = decoder.state
    result, step_scores = run_search(decoder, options, hooks, ids, starts)
    candidates = collect_candidates(
        result,
        contexts.n_docs * beams,
        pad_token_id=model.config.generator.pad_token_id or 0,
        do_deduplication=do_deduplication,
    )
    log_priors = engine.doc_log_probs(contexts.doc_scores)  # (B, N)
    # The caller's mask counts when candidates are weighed, though the searches read theirs off the
    # pad tokens (compatibility Q23).
    encoded: Encoded | None = searched
    mask = engine.bool_mask(contexts.context_attention_mask, ids)
    if not engine.same_mask(mask, searched.mask):
        encoded = state = None
    if decoding == "fast":
        scores = fast_scores(candidates, result, to_numpy(log_priors), beams)
    else:
        if encoded is None:
            encoded = encode_as_given(engine, generator, contexts)
        scores = thorough_scores(
            engine, model, encoded.hidden, encoded.mask, log_priors, candidates, state
        )
    sequences, best = candidates.best(scores, num_return_sequences)
    output = GenerateOutput(
        engine.tensor(sequences, like=mask),
        engine.tensor(best, like=mask),
        step_scores,
        **searched.seen,
        **decoder.seen(),
    )
    return output, encoded


def encode_as_given(engine: Engine, generator: Any, contexts: Any) -> Encoded:
    """Encode what a head's `_contexts` returns, under the caller's mask."""
    ids = contexts.context_input_ids
    read, mask = trim(engine, ids, engine.bool_mask(contexts.context_attention_mask, ids))
    return Encoded(engine.encode_distinct(generator, read, mask), mask)


def _search(
    engine: Engine,
    generator: Any,
    encoded: Encoded,
    options: GenerationConfig,
    hooks: Hooks,
    log_priors: Tensor | None,
    context_ids: Tensor | None,
    starts: Any,
) -> GenerateOutput:
    """One search for each question, over its documents or without any."""
    decoder = _decoder(engine, generator, encoded, options, hooks, log_priors, len(starts))
    result, step_scores = run_search(decoder, options, hooks, context_ids, starts)
    sequences = engine.tensor(result.sequences, like=encoded.mask)
    scores = beam_indices = None
    if result.scores is not None:  # there are beams
        scores = engine.tensor(result.scores, like=encoded.mask)
        beam_indices = engine.tensor(result.beam_indices, like=encoded.mask)
    return GenerateOutput(
        sequences, scores, step_scores, beam_indices, **encoded.seen, **decoder.seen()
    )


def _decoder(
    engine: Engine,
    generator: Any,
    encoded: Encoded,
    options: GenerationConfig,
    hooks: Hooks,
    log_priors: Tensor | None,
    questions: int,
) -> Decoder | GuidedDecoder:
    """What scores the searches of so many questions, guided where the options ask for it."""
    beams = beams_of(options)
    decoder = Decoder(
        engine,
        generator,
        encoded.hidden,
        encoded.mask,
        beams=beams,
        options=options,
        log_priors=log_priors,
        traced=traced_parts(options),
    )
    negative = encode_without_documents(
        engine, generator, options, hooks.negative_prompt, questions
    )
    if negative is None or options.guidance_scale is None:
        return decoder
    # RAG-Sequence has a search for each document; what they are contrasted with is the question's.
    copies = decoder.searches // questions
    unconditional = Decoder(
        engine,
        generator,
        engine.repeat_rows(negative.hidden, copies),
        engine.repeat_rows(negative.mask, copies),
        beams=beams,
        options=options,
    )
    return GuidedDecoder(decoder, unconditional, options.guidance_scale)
