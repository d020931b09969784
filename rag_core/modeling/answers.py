"""From questions to answers that name the passages they come from, with probabilities (paper,
sections 2.1 and 2.2).

Letters: B questions, N documents a question, n answers a question, S context length, L tokens of a
generated row, T those that count.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rag_core.arguments import as_list, checked_questions
from rag_core.backends import to_numpy
from rag_core.generation import (
    Encoded,
    Engine,
    GenerationConfig,
    Hooks,
    encode_as_given,
    generate_sequence,
    generate_token,
    pop_hooks,
    returned_sequences,
    sequence_options,
    target_scores,
    token_options,
)
from rag_core.modeling.citations import token_spans
from rag_core.outputs import Answer, Passage
from rag_core.retrieval import needs_text, read_docs
from rag_core.tokenization import RagTokenizer

_HOOKS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "seed")
_WEIGHING = ("do_deduplication", "decoding")


def answer(
    engine: Engine,
    model: Any,
    questions: str | Iterable[str],
    *,
    n_docs: int | None = None,
    tokenizer: Any = None,
    question_text: bool | Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> list[Answer]:
    """The body of `RagHead.answer`, whose arguments these are.

    Args:
        engine: the model's framework.
        model: a RagTokenForGeneration or RagSequenceForGeneration with a retriever.
    """
    reading = Reading(
        engine,
        model,
        questions,
        n_docs=n_docs,
        tokenizer=tokenizer,
        question_text=question_text,
    )
    return [answer for answers in reading.answers(**generate_kwargs) for answer in answers]


class Reading:
    """Questions with the passages that were retrieved for them, which can be read more than once.

    Args:
        engine, model, questions, n_docs, tokenizer, question_text: as of `answer`.

    Attributes:
        questions: B texts.
        contexts: what the model's `_contexts` returned.
        passages: the N passages of each question, with priors.
        best_scores: the score of each question's best document.
    """

    def __init__(
        self,
        engine: Engine,
        model: Any,
        questions: str | Iterable[str],
        *,
        n_docs: int | None = None,
        tokenizer: Any = None,
        question_text: bool | Sequence[str] | None = None,
    ) -> None:
        questions = checked_questions(questions)
        self._tokenizer = _tokenizer(engine, model, tokenizer)
        if question_text is True:
            question_text = questions
        elif question_text is False:
            question_text = None
        else:
            question_text = as_list(question_text)
        with engine.generation_context(model):
            encoded = _encoded_questions(engine, model, self._tokenizer, questions)
            contexts = model._contexts(*encoded, None, None, None, n_docs, question_text)
        self._engine = engine
        self._model = model
        self.questions = questions
        self._hold(contexts)

    def _hold(self, contexts: Any) -> None:
        engine = self._engine
        with engine.generation_context(self._model):
            # In float64 from here on: probabilities of few numbers, of which the caller takes sums.
            log_priors = to_numpy(engine.doc_log_probs(contexts.doc_scores)).astype(np.float64)
            best_scores = to_numpy(contexts.doc_scores).max(1).tolist()
        self.contexts = contexts
        self.log_priors = log_priors
        self.best_scores = best_scores
        self.passages = _Passages(self._model.retriever, contexts, np.exp(log_priors))
        self._encoded: Encoded | None = None

    def nearest(self, n_docs: int) -> Reading:
        """The same questions with the first of their passages alone."""
        contexts, engine = self.contexts, self._engine
        if n_docs >= contexts.n_docs:
            return self
        places = np.arange(len(self.questions))[:, None] * contexts.n_docs + np.arange(n_docs)
        rows = engine.tensor(places.reshape(-1), like=contexts.context_input_ids)
        retrieved = {
            name: to_numpy(contexts.retrieved[name])[:, :n_docs]
            for name in ("doc_ids", "retrieved_doc_embeds")
        }
        nearest = copy.copy(self)
        nearest._hold(
            replace(
                contexts,
                context_input_ids=engine.take_rows(contexts.context_input_ids, rows),
                context_attention_mask=engine.take_rows(contexts.context_attention_mask, rows),
                doc_scores=contexts.doc_scores[:, :n_docs],
                n_docs=n_docs,
                retrieved=retrieved,
            )
        )
        return nearest

    def answers(self, head: str | None = None, **generate_kwargs: Any) -> list[list[Answer]]:
        """The answers to each question, best first.

        Args:
            head: "token" or "sequence"; None = the model's own.
            **generate_kwargs: options of `generate`.
        """
        engine, model, contexts = self._engine, self._model, self.contexts
        in_sequence = _is_sequence(model, head)
        name = "sequence" if in_sequence else "token"
        with engine.generation_context(model):
            rows, options, encoded = _generate(  # (B, n, L)
                engine, model, contexts, in_sequence, generate_kwargs
            )
            if encoded is None:
                encoded = encode_as_given(engine, model.generator, contexts)
            self._encoded = encoded
            log_probs = _log_probs(engine, model, contexts, encoded, rows)  # (B, N, n, L-1)
        counted = _counted(rows, options, model.config.generator.pad_token_id)
        decoder = self._tokenizer.generator
        answers: list[list[Answer]] = [[] for _ in self.questions]
        for b, question in enumerate(self.questions):
            for i, row in enumerate(rows[b]):
                counts = counted[b, i]
                if not counts.any():
                    continue  # a candidate that isn't there
                tokens = row[1:][counts]
                joint = log_probs[b, :, i][:, counts]  # (N, T), log p(y_i|x, z, y_<i)
                log_probability, posterior, by_token, of_tokens = _posterior(
                    in_sequence, joint, self.log_priors[b]
                )
                text = decoder.decode(row.tolist(), skip_special_tokens=True).strip()
                places = (np.flatnonzero(counts) + 1).tolist()
                answers[b].append(
                    Answer(
                        question=question,
                        text=text,
                        log_probability=log_probability,
                        passages=self.passages.of(b, posterior),
                        tokens=[decoder.decode([token]) for token in tokens.tolist()],
                        token_posteriors=by_token,
                        token_spans=token_spans(decoder.decode, row.tolist(), places, text),
                        token_log_probs=of_tokens,
                        confidence=model.config.confidence(
                            name, log_probability, self.best_scores[b]
                        ),
                    )
                )
        return answers

    def log_likelihoods(
        self, texts: Sequence[Sequence[str]], head: str | None = None
    ) -> list[list[float]]:
        """log p(y|x) of given answers, marginalised over the passages; see
        `Answer.log_probability`.

        Args:
            texts: for each question as many answers as there are.
            head: as of `answers`.
        """
        engine, model, contexts = self._engine, self._model, self.contexts
        in_sequence = _is_sequence(model, head)
        options = token_options(model)
        if in_sequence:
            options = sequence_options(model, None)
        rows = self._target_rows(texts, options)  # (B, C, L)
        counted = _counted(rows, options, model.config.generator.pad_token_id)
        targets = np.where(counted, rows[..., 1:], 0)
        with engine.generation_context(model):
            if self._encoded is None:
                self._encoded = encode_as_given(engine, model.generator, contexts)
            each, _ = target_scores(
                engine,
                model.generator,
                self._encoded.hidden,
                self._encoded.mask,
                rows[..., :-1],
                targets,
                ~counted,
                contexts.n_docs,
            )
            log_probs = to_numpy(each)  # (B, N, C, L-1)
        return [
            [
                _posterior(in_sequence, log_probs[b, :, c][:, counted[b, c]], self.log_priors[b])[0]
                for c in range(len(wanted))
            ]
            for b, wanted in enumerate(texts)
        ]

    def _target_rows(self, texts: Sequence[Sequence[str]], options: GenerationConfig) -> np.ndarray:
        """Answers as `generate` would return them, (B, C, L), filled with pads."""
        start = options.decoder_start_token_id
        pad = self._model.config.generator.pad_token_id or 0
        limit = {}
        if longest := getattr(self._model.config.generator, "max_position_embeddings", None):
            limit = {"truncation": True, "max_length": longest}
        questions = []
        for wanted in texts:
            ids = []
            if wanted:
                ids = self._tokenizer.encode_targets(list(wanted), **limit)["input_ids"]
            # What the tokenizer puts in front may be the token that decoding starts with.
            questions.append([[start] * (row[0] != start) + list(row) for row in ids])
        width = max((len(row) for rows in questions for row in rows), default=2)
        shape = len(questions), max(1, *map(len, questions)), max(2, width)
        filled = np.full(shape, pad, np.int64)
        for b, rows in enumerate(questions):
            for c, row in enumerate(rows):
                filled[b, c, : len(row)] = row
        return filled


@dataclass
class Found:
    """The passages of B questions, without answers.

    Attributes:
        ids: (B, N) row numbers; -1 is a missing hit.
        docs: B dictionaries of lists, as `get_doc_dicts` gives them.
        scores: (B, N), inner products.
    """

    ids: np.ndarray
    docs: Sequence[Any]
    scores: np.ndarray


def find_passages(
    engine: Engine, model: Any, questions: str | Sequence[str], n_docs: int | None = None
) -> Found:
    """What a model retrieves for questions; nothing is made ready for the generator.

    Arguments as of `answer`.
    """
    questions = checked_questions(questions)
    tokenizer = _tokenizer(engine, model, None)
    with engine.generation_context(model):
        encoded = _encoded_questions(engine, model, tokenizer, questions)
        vectors = to_numpy(model.rag._encode({}, model.question_encoder, *encoded)[0])  # (B, D)
    vectors = vectors.astype(np.float32)
    options = {}
    if needs_text(getattr(model.retriever, "index", None)):
        # As `answer` finds them: by what the prompt holds.
        rows = to_numpy(encoded[0]).tolist()
        options["question_text"] = model.retriever.decode_questions(rows)
    embeds, ids, docs = model.retriever.retrieve(vectors, n_docs, **options)
    return Found(ids, docs, np.einsum("bd,bnd->bn", vectors, embeds))


def _tokenizer(engine: Engine, model: Any, tokenizer: Any) -> RagTokenizer:
    """The given tokenizers, or the retriever's, as the model wants its texts."""
    if model.retriever is None:
        raise ValueError(
            "answer() needs a retriever: pass retriever= to from_pretrained or call "
            "set_retriever(...)"
        )
    if tokenizer is None:
        encoder = model.retriever.question_encoder_tokenizer
        decoder = model.retriever.generator_tokenizer
    else:
        encoder, decoder = tokenizer.question_encoder, tokenizer.generator
    tables = engine.table_size(model.question_encoder), engine.table_size(model.generator)
    return RagTokenizer(encoder, decoder, model.config, tables=tables)


def _encoded_questions(
    engine: Engine, model: Any, tokenizer: RagTokenizer, questions: Sequence[str]
) -> tuple[Any, Any]:
    """Ids and mask of questions, (B, Q) each, as tensors where the model is."""
    batch = tokenizer.encode_questions(
        questions, return_tensors="np", padding=True, truncation=True
    )
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return engine.tensor(ids, like=model), engine.tensor(mask, like=model)


def _is_sequence(model: Any, head: str | None) -> bool:
    if head is not None:
        return head == "sequence"
    return "Sequence" in type(model).__name__ or getattr(model, "head", "") == "sequence"


def _generate(
    engine: Engine, model: Any, contexts: Any, in_sequence: bool, kwargs: dict[str, Any]
) -> tuple[np.ndarray, GenerationConfig, Encoded | None]:
    """Generated rows (B, n, L), the options they were made with, and the encoded contexts, if they
    can serve again.
    """
    kwargs = dict(kwargs)
    hooks = Hooks.of(*(kwargs.pop(name, None) for name in _HOOKS), **pop_hooks(kwargs, engine))
    encoded: Encoded | None
    if in_sequence:
        weighing = {name: kwargs.pop(name) for name in _WEIGHING if kwargs.get(name) is not None}
        weighing.setdefault("do_deduplication", model.config.do_deduplication)
        returned = returned_sequences(
            model, kwargs.pop("num_return_sequences", None), kwargs.get("generation_config")
        )
        options = sequence_options(model, kwargs.pop("num_beams", None), **kwargs)
        output, encoded = generate_sequence(
            engine, model, contexts, options, hooks, num_return_sequences=returned, **weighing
        )
    else:
        options = token_options(model, **kwargs)
        output, encoded = generate_token(engine, model, contexts, options, hooks)
    rows = to_numpy(output.sequences)
    return rows.reshape(int(contexts.doc_scores.shape[0]), -1, rows.shape[1]), options, encoded


def _log_probs(
    engine: Engine, model: Any, contexts: Any, encoded: Encoded, rows: np.ndarray
) -> np.ndarray:
    """log p(y_i|x, z, y_<i) of every generated token under each document, (B, N, n, L-1)."""
    generator, docs = model.generator, contexts.n_docs
    of_contexts = engine.tensor(rows.repeat(docs, axis=0), like=encoded.mask)  # (B*N, n, L)
    state = generator.start(encoded.hidden, encoded.mask, beams=rows.shape[1], max_length=None)
    log_probs, _ = engine.target_log_probs(
        generator, state, of_contexts[..., :-1], of_contexts[..., 1:], False
    )
    return to_numpy(log_probs).reshape(len(rows), docs, rows.shape[1], -1)


def _counted(rows: np.ndarray, options: GenerationConfig, generator_pad: int | None) -> np.ndarray:
    """Which tokens of the rows (B, n, L) count, (B, n, L-1) bool: those up to the end token."""
    targets = rows[..., 1:]
    ends = np.isin(targets, options.eos_token_ids)
    counted = (ends.cumsum(axis=-1) - ends) == 0
    if not options.eos_token_ids and options.pad_token_id is not None:
        counted &= targets != options.pad_token_id
    is_filler = (rows == generator_pad).all(axis=-1)  # (B, n)
    counted &= ~is_filler[..., None]
    # A start token that the prompt or forced_bos_token_id wrote again says nothing of the answer.
    if options.bos_token_id is not None:
        counted[..., 0] &= targets[..., 0] != options.bos_token_id
    return counted


def _posterior(
    in_sequence: bool, joint: np.ndarray, log_priors: np.ndarray
) -> tuple[float, list[float], list[list[float]] | None, list[float]]:
    """log p(y|x), p(z|x, y) of the N passages, for RAG-Token the same of each token, and
    log p(y_i|x, y_<i) of the T tokens.

    Args:
        in_sequence: whether the head is RAG-Sequence's.
        joint: (N, T) log p(y_i|x, z, y_<i).
        log_priors: (N,) log p(z|x), -inf where there is no passage.
    """
    # Where the search found too few passages, the filler weighs nothing, whatever it says.
    exists = np.isfinite(log_priors)
    if in_sequence:
        of_passages = np.where(exists, joint.sum(axis=1) + log_priors, -np.inf)  # (N,)
        total = np.logaddexp.reduce(of_passages)
        beginnings = joint.cumsum(axis=1) + log_priors[:, None]  # (N, T), log p(z, y_<=i|x)
        by_length = np.logaddexp.reduce(np.where(exists[:, None], beginnings, -np.inf), axis=0)
        added = np.diff(by_length, prepend=0.0)
        return float(total), np.exp(of_passages - total).tolist(), None, added.tolist()
    of_tokens = np.where(exists[:, None], joint + log_priors[:, None], -np.inf)  # (N, T)
    marginal = np.logaddexp.reduce(of_tokens, axis=0)
    shares = np.exp(of_tokens - marginal)
    by_token = shares[exists].T.tolist()
    return float(marginal.sum()), shares.mean(axis=1).tolist(), by_token, marginal.tolist()


class _Passages:
    """The passages that were retrieved for B questions, read from the index.

    Args:
        retriever: the model's.
        contexts: what its `_contexts` returned.
        priors: (B, N) p(z|x).
    """

    def __init__(self, retriever: Any, contexts: Any, priors: np.ndarray) -> None:
        self.ids = to_numpy(contexts.retrieved["doc_ids"])
        vectors = to_numpy(contexts.retrieved["retrieved_doc_embeds"])
        self.docs = read_docs(retriever.index, self.ids, vectors)
        self.scores = to_numpy(contexts.doc_scores)
        self.priors = priors

    def of(self, b: int, posterior: list[float]) -> list[Passage]:
        """Those of a question, with their posteriors; places of -1 found none."""
        docs = self.docs[b]
        # Indexes of somebody's own have none, or columns that are called so and are something else.
        unknown = [None] * len(self.ids[b])
        sources = docs.get("source", unknown)
        metadata = docs.get("metadata", unknown)
        columns = zip(
            self.ids[b].tolist(),
            docs["title"],
            docs["text"],
            self.scores[b].tolist(),
            self.priors[b].tolist(),
            posterior,
            (source if isinstance(source, str) else None for source in sources),
            (values if isinstance(values, dict) else {} for values in metadata),
            strict=False,
        )
        return [Passage(*column) for column in columns if column[0] >= 0]
