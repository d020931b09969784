"""Generation as a SavedModel: TensorFlow alone loads and runs it, without this package, its
tokenizers or Python.

Letters: B questions, N documents a question, S context length, n sequences handed back for each
question, T tokens of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from rag_core.generation import (
    GenerationConfig,
    returned_sequences,
    sequence_options,
    token_options,
)
from rag_core.hub import atomic_folder, clear
from rag_tf.engine import ENGINE
from rag_tf.graph import Decoded, GraphRules, sequence_graph, tensorflow_text, token_graph
from rag_tf.seq2seq import Generator

_Program = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Decoded]
# what a `generate` call may be given besides, and a file can't hold
_PYTHON = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "seed",
    "decoder_input_ids",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "question_text",
    "input_ids",
    "attention_mask",
)
_RETURNED = (
    "return_dict_in_generate",
    "output_scores",
    "output_attentions",
    "output_hidden_states",
)


def export_saved_model(
    model: Any,
    folder: str | Path,
    num_beams: int | None = None,
    max_length: int | None = None,
    *,
    num_return_sequences: int | None = None,
    do_deduplication: bool | None = None,
    generation_config: Any = None,
    strings: bool = False,
    n_docs: int | None = None,
    question_text: bool = False,
    **options: Any,
) -> Path:
    """Write `model.generate`, from contexts on, as a SavedModel; with `strings` all of
    `model.answer`.

    Both signatures, "serving_default" with int64 and "serving_int32" with int32 ids, take
    `context_input_ids` and `context_attention_mask` (B*N, S) and `doc_scores` (B, N), at any B, N
    and S, and return `sequences` (B*n, T) int64 and, for RAG-Sequence or with beams,
    `sequences_scores` (B*n,). The tokens are those of `model.generate`. In Python
    `tf.saved_model.load(folder).generate(ids, mask, scores)` does the same with either type.

    With `strings=True` "serving_default" takes `question` (B,) strings. It holds both tokenizers, the
    question encoder and the passages of a flat index, and returns, with n answers and N passages a
    question and T tokens an answer: `answer` and `log_probability` (B, n), `tokens` (B, n, T) with ""
    behind an answer's end, `passage_id`, `passage_title`, `passage_text`, `passage_source`,
    `passage_score` and `prior` (B, N), `posterior` (B, n, N) and, for RAG-Token, `token_posterior`
    (B, n, T, N): what `model.answer` says. Where RAG-Sequence found fewer than n answers, the places
    left over have log-probability -inf. Who loads it imports tensorflow_text first.

    Args:
        model: a RagTokenForGeneration or RagSequenceForGeneration.
        folder: where to; it must be empty or not exist.
        num_beams: beams; this and all that follows, where not given, is what `model.generate` would
            use.
        max_length: most tokens of a sequence, start token included.
        num_return_sequences: n.
        do_deduplication: RAG-Sequence: whether a candidate found twice counts once.
        generation_config: options, as in `generate`.
        strings: from question strings to answers with passages.
        n_docs: with `strings`: N; None = the retriever's.
        question_text: with `strings`: prompts hold the questions as typed; False = as the question
            encoder's tokenizer reads them, as in `answer`.
        **options: other options of `GenerationConfig`: lengths, forced, suppressed and repeated
            tokens, penalties.

    Returns:
        The folder.

    Raises:
        ImportError: `strings` without tensorflow-text, or with one for another TensorFlow.
        OSError: the folder holds something or can't be written.
        RuntimeError: within a tf.function.
        TypeError: no head that generates, a generator from elsewhere, or an unknown option.
        ValueError: an option that can't be exported, or one with a value that doesn't work; with
            `strings` a tokenizer or an index that can't be part of a graph.
    """
    head = getattr(model, "head", None)
    if head not in ("token", "sequence"):
        raise TypeError(
            "model must be a RagTokenForGeneration or RagSequenceForGeneration; got "
            f"{type(model).__name__}"
        )
    generator = model.generator
    if not isinstance(generator, Generator):
        raise TypeError(
            "model.generator must be rag_tf's BART or T5 to be exported; got "
            f"{type(generator).__name__}, whose decoding runs in Python. Export it with its own "
            "library's tools, or load its weights into rag_tf's network"
        )
    if strings:
        tensorflow_text()
    elif n_docs is not None or question_text:
        raise ValueError(
            "n_docs and question_text are options of strings=True: without it contexts are given. "
            "Leave them out"
        )
    target = Path(folder)
    clear(target)
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"folder {str(folder)!r} is not empty: remove what is in it, or name another folder"
        )
    program, decoding_options, returned = _program(
        model,
        head,
        num_beams,
        max_length,
        num_return_sequences,
        do_deduplication,
        generation_config,
        options,
    )
    with (
        ENGINE.generation_context(model),
        _without_dropout(generator),
        atomic_folder(target) as draft,
    ):
        if strings:
            holder, signatures = _traced_strings(
                model, program, decoding_options, returned, n_docs, question_text
            )
        else:
            holder, signatures = _traced(generator, program)
        tf.saved_model.save(holder, str(draft), signatures=signatures)
    return target


def _program(
    model: Any,
    head: str,
    num_beams: int | None,
    max_length: int | None,
    num_return_sequences: int | None,
    do_deduplication: bool | None,
    generation_config: Any,
    keywords: dict[str, Any],
) -> tuple[_Program, GenerationConfig, int]:
    """What is written, contexts -> sequences, with its options and how many for each question."""
    if keywords.pop("decoding", "thorough") != "thorough":
        raise ValueError("decoding must be 'thorough' in an export; leave it out")
    for names, why in (
        (_PYTHON, "is given to each call of generate()"),
        (_RETURNED, "returns what an export leaves out"),
    ):
        given = {name: keywords.pop(name) for name in names if name in keywords}
        refused = [name for name, value in given.items() if not _says_nothing(value)]
        if refused:
            raise ValueError(
                f"{', '.join(refused)} can't be exported ({refused[0]} {why}): leave it out"
            )
    if max_length is not None:
        keywords["max_length"] = max_length
    if head == "token":
        if do_deduplication is not None:
            raise ValueError(
                "do_deduplication is an option of RAG-Sequence; this is a RAG-Token model: leave "
                "it out"
            )
        if num_beams is not None:
            keywords["num_beams"] = num_beams
        if num_return_sequences is not None:
            keywords["num_return_sequences"] = num_return_sequences
        options = token_options(model, generation_config, **keywords)
        _check(model.generator, options)
        return partial(token_graph, model, options), options, options.num_return_sequences
    options = sequence_options(model, num_beams, generation_config, **keywords)
    _check(model.generator, options)
    if do_deduplication is None:
        do_deduplication = model.config.do_deduplication
    returned = returned_sequences(model, num_return_sequences, generation_config)
    program = partial(
        sequence_graph,
        model,
        options,
        num_return_sequences=returned,
        do_deduplication=bool(do_deduplication),
    )
    return program, options, returned


def _says_nothing(value: Any) -> bool:
    """Whether an argument of `generate` is as if it were left out."""
    return value is None or value is False or (isinstance(value, list | tuple) and not value)


def _check(generator: Generator, options: GenerationConfig) -> None:
    """Refuses options before anything is traced."""
    table = generator.get_input_embeddings().num_embeddings
    if not 0 <= options.decoder_start_token_id < table:  # type: ignore[operator]
        raise ValueError(
            f"decoder_start_token_id must be below {table}; got {options.decoder_start_token_id}"
        )
    GraphRules(options, int(generator.get_output_embeddings().weight.shape[0]))
    generator.check_length(options.max_length)


def _traced(generator: Generator, program: _Program) -> tuple[tf.Module, dict[str, Any]]:
    """What tf.saved_model.save is given: weights and graphs."""
    # Document scores are float32 or better, whatever the model's type.
    wide = tf.float32
    if generator.dtype == tf.float64:
        wide = tf.float64
    limit = getattr(generator.config, "max_position_embeddings", None)
    table = generator.get_input_embeddings().num_embeddings

    def specs(ids: tf.DType) -> list[tf.TensorSpec]:
        anything = [None, None]
        return [
            tf.TensorSpec(anything, ids, "context_input_ids"),
            tf.TensorSpec(anything, ids, "context_attention_mask"),
            tf.TensorSpec(anything, wide, "doc_scores"),
        ]

    @tf.function(input_signature=specs(tf.int64), autograph=False)
    def run(ids: tf.Tensor, mask: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.shape(ids)
        tf.debugging.assert_equal(
            shape, tf.shape(mask), "context_attention_mask must be as large as context_input_ids"
        )
        tf.debugging.assert_equal(
            shape[0], tf.size(scores), "context_input_ids must have B*N rows, doc_scores (B, N)"
        )
        inside = tf.reduce_all((ids >= 0) & (ids < table))
        tf.debugging.Assert(inside, [f"context_input_ids must be at least 0 and below {table}"])
        if limit is not None:
            tf.debugging.assert_less_equal(
                shape[1], limit, f"contexts must have {limit} tokens or fewer"
            )
        return program(ids, mask != 0, scores).output

    @tf.function(autograph=False)
    def generate(
        context_input_ids: tf.Tensor, context_attention_mask: tf.Tensor, doc_scores: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return run(
            tf.cast(context_input_ids, tf.int64),
            tf.cast(context_attention_mask, tf.int64),
            doc_scores,
        )

    holder = tf.Module()
    holder.weights = list(generator.parameters())
    holder.generate = generate
    types = {"serving_default": tf.int64, "serving_int32": tf.int32}
    return holder, {
        name: generate.get_concrete_function(*specs(dtype)) for name, dtype in types.items()
    }


def _traced_strings(model: Any, *arguments: Any) -> tuple[tf.Module, dict[str, Any]]:
    """As `_traced`, from question strings on; `arguments` as of `StringGraph`."""
    from rag_tf.strings import StringGraph

    graph = StringGraph(model, *arguments)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "question")], autograph=False)
    def answer(question: tf.Tensor) -> dict[str, tf.Tensor]:
        return graph(question)

    holder = tf.Module()
    holder.weights = [*model.generator.parameters(), *model.question_encoder.parameters()]
    holder.parts = graph.parts
    holder.answer = answer
    return holder, {"serving_default": answer}


@contextlib.contextmanager
def _without_dropout(generator: Generator) -> Iterator[None]:
    learns = generator.in_training(None)
    try:
        generator.eval()
        yield
    finally:
        generator.train(learns)
