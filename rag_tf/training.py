"""Joint fine-tuning of question encoder and generator with frozen document vectors (paper, section
2.4).

Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from rag_core.backends import to_tensor
from rag_core.metrics import exact_match
from rag_core.tokenization import RagTokenizer, within_table
from rag_core.training import (
    Example,
    RunFiles,
    TrainingConfig,
    TrainingReport,
    batches,
    finished_before,
    read_examples,
    run_steps,
    source_fingerprint,
)
from rag_tf.contexts import Contexts, table_size
from rag_tf.marginalize import masked_fill
from rag_tf.modules import computing_in, seeded_by
from rag_tf.training_parts import LossScale, Window, add_gradients, make_optimizer, trainable
from rag_tf.training_state import load_state, save_state

_HALF = {None: None, "bf16": tf.bfloat16, "fp16": tf.float16}


def train(
    model: Any,
    retriever: Any,
    examples: Sequence[Example],
    config: TrainingConfig | None = None,
    *,
    validation: Sequence[Example] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> TrainingReport:
    """Fine-tune a RAG model in place on questions and answers, through the documents it retrieves.

    Labels are fed as they are and predicted one to the left, as transformers does (compatibility
    Q10), so what the generator's tokenizer puts in front of an answer is what decoding should start
    with.

    Args:
        model: `RagTokenForGeneration` or `RagSequenceForGeneration` with float32 weights.
        retriever: a `RagRetriever`; its tokenizers encode questions and answers.
        examples: questions with answers; either all or none bring their own passage.
        config: settings; None = the defaults.
        validation: questions to measure exact match on.
        out: folder for checkpoints while training and for the finished model; a run that was killed
            goes on from the last checkpoint there, and ends bit for bit where it would have ended
            (but for dropout in another library's modules, whose random numbers are not kept). None
            keeps nothing on disk.
        progress: draw a progress bar on stderr.

    Returns:
        What happened. The model is left in eval mode.

    Raises:
        ValueError: no examples, half-precision weights, no projection to train, or a checkpoint of
            another run.
        FloatingPointError: the loss became infinite or NaN.
    """
    return _Run(
        model, retriever, list(examples), config or TrainingConfig(), list(validation), out
    ).go(progress)


class _Run(RunFiles):
    """One training run."""

    def __init__(
        self,
        model: Any,
        retriever: Any,
        examples: list[Example],
        config: TrainingConfig,
        validation: list[Example],
        out: str | Path | None,
    ) -> None:
        if not examples:
            raise ValueError("examples must hold at least one question with its answer")
        if len({example.passage is None for example in examples}) > 1:
            raise ValueError("examples must either all bring a passage or none, got both kinds")
        if config.mixed_precision == "fp16" and "GPU" not in model.device:
            raise ValueError(
                f"mixed_precision 'fp16' needs a GPU, the model is on {model.device}: use 'bf16' "
                "or None"
            )
        self.model, self.retriever, self.config = model, retriever, config
        self.tokenizer = RagTokenizer(
            retriever.question_encoder_tokenizer,
            retriever.generator_tokenizer,
            model.config,
            tables=(table_size(model.question_encoder), table_size(model.generator)),
        )
        self.examples, self.validation = examples, validation[: config.validation_size]
        self.out = None if out is None else Path(out)
        self.total = config.total_steps(len(examples))
        self.pad = model.config.generator.pad_token_id
        self.epsilon = (
            model.config.label_smoothing
            if config.label_smoothing is None
            else config.label_smoothing
        )
        self.report = TrainingReport()
        self.scaler = LossScale(config.mixed_precision == "fp16")
        self.parameters = trainable(model, config.question_encoder)
        self.optimizer = make_optimizer(self.parameters, config)

    def go(self, progress: bool) -> TrainingReport:
        before = self.resume()
        start = time.monotonic()
        bar = tqdm(
            total=self.total,
            initial=self.report.steps,
            desc="training",
            unit="step",
            disable=not progress,
        )
        try:
            with bar:
                run_steps(self, bar, lambda: before + time.monotonic() - start)
        finally:
            self.model.eval()
        self.report.seconds = before + time.monotonic() - start
        self.finish()
        return self.report

    window = Window
    load_state = staticmethod(load_state)
    save_state = staticmethod(save_state)

    def step(self, examples: list[Example], seen: Window, logs: bool) -> None:
        """One optimizer step over `accumulation` forward passes.

        The loss is a mean over all their tokens.
        """
        parts = [(part, *self._encode(part)) for part in batches(examples, self.config.batch_size)]
        tokens = sum(int((labels[:, 1:].numpy() != self.pad).sum()) for *_, labels in parts)
        variables = list(self.parameters.values())
        sums: dict[str, tf.Tensor] = {}
        for number, (part, ids, mask, labels) in enumerate(parts):
            # A function of settings and step alone, so that a resumed run drops what an
            # uninterrupted one does.
            noise = np.random.default_rng((self.config.seed, self.report.steps, number))
            half = computing_in(_HALF[self.config.mixed_precision])
            with tf.GradientTape(watch_accessed_variables=False) as tape, seeded_by(noise), half:
                tape.watch(variables)
                contexts = self._contexts(part, ids, mask, self.config.question_encoder == "all")
                logits = self._logits(contexts, labels)
                target = self._target(part, labels)
                nll = self.model.get_nll(
                    logits,
                    contexts.doc_scores,
                    target,
                    reduce_loss=True,
                    epsilon=self.epsilon,
                    n_docs=contexts.n_docs,
                )
                loss = nll * (self.scaler.value / max(1, tokens))
            add_gradients(sums, self.parameters, tape.gradient(loss, variables))
            seen.add(float(nll), tokens if number == 0 else 0, contexts)
            if logs:
                seen.posterior(logits, contexts, target, self.pad)
        factor = self.optimizer.clip_factor(sums, self.config.max_grad_norm, self.scaler.value)
        if factor is not None:
            self.optimizer.step(sums, factor)
        elif not self.scaler.enabled:
            raise FloatingPointError(
                "a gradient became infinite or NaN: lower the learning rate, or check the data"
            )
        self.scaler.update(factor is not None)

    def _encode(self, examples: Sequence[Example]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Question ids and mask (B, Q), labels (B, T)."""
        common = {"padding": True, "truncation": True, "return_tensors": "tf"}
        config = self.config
        questions = self.tokenizer.encode_questions(
            [e.question for e in examples], max_length=config.max_question_length, **common
        )
        answers = [e.answers[0] for e in examples]
        labels = self.tokenizer.encode_targets(
            answers, max_length=config.max_target_length, **common
        )["input_ids"]
        if self.tokenizer.generator.bos_token_id is None:
            # T5's tokenizer puts nothing in front, and the first label is fed but never predicted.
            start = tf.fill(
                (len(examples), 1),
                tf.cast(self.model.config.generator.decoder_start_token_id, tf.int64),
            )
            labels = tf.concat([start, labels], 1)
        return questions["input_ids"], questions["attention_mask"], labels

    def _target(self, examples: Sequence[Example], labels: tf.Tensor) -> tf.Tensor:
        """What is to be predicted (B, T), where a passage does not hold the answer the mask
        token all along.
        """
        silent = np.array([not example.answerable for example in examples])
        mask = self.tokenizer.generator.mask_token_id
        if not silent.any():
            return labels
        if mask is None:
            raise ValueError(
                "examples with answerable=False need a generator tokenizer with a mask token"
            )
        return masked_fill(labels, silent[:, None] & (labels != self.pad), mask)

    def _contexts(
        self, examples: Sequence[Example], ids: tf.Tensor, mask: tf.Tensor, training: bool
    ) -> Contexts:
        """Contexts; `training` is about the question encoder.

        One that does not learn is not shaken by dropout.
        """
        if examples[0].passage is None:
            return self.model._contexts(
                ids, mask, n_docs=self.config.n_docs, training=training
            ).trimmed()
        docs = [{"title": [e.passage[0]], "text": [e.passage[1]]} for e in examples if e.passage]
        questions = self.retriever.decode_questions(ids.numpy().tolist())
        prefix = getattr(self.model.config.generator, "prefix", None)
        context_ids, context_mask = self.retriever.postprocess_docs(
            docs, questions, prefix, 1, return_tensors="tf"
        )
        fitting = within_table(context_ids, self.tokenizer.tables[1], self.tokenizer.generator)
        context_ids = to_tensor(fitting, "tf")
        return Contexts(context_ids, context_mask, tf.zeros((len(docs), 1)), 1).trimmed()

    def _logits(self, contexts: Contexts, labels: tf.Tensor) -> tf.Tensor:
        """(B*N, T, V)."""
        outputs = self.model.rag(
            context_input_ids=contexts.context_input_ids,
            context_attention_mask=contexts.context_attention_mask,
            doc_scores=contexts.doc_scores,
            decoder_input_ids=labels,
            n_docs=contexts.n_docs,
            use_cache=False,
            return_dict=True,
            training=True,
        )
        return outputs.logits

    def validate(self) -> float:
        texts = self.answers(self.validation)
        hits = [
            exact_match(text, e.answers) for text, e in zip(texts, self.validation, strict=True)
        ]
        return sum(hits) / len(hits)

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Greedy answers."""
        texts: list[str] = []
        for part in batches(examples, self.config.batch_size):
            ids, mask, _ = self._encode(part)
            contexts = self._contexts(part, ids, mask, False)
            tokens = self.model.generate(
                context_input_ids=contexts.context_input_ids,
                context_attention_mask=contexts.context_attention_mask,
                doc_scores=contexts.doc_scores,
                n_docs=contexts.n_docs,
                num_beams=1,
                num_return_sequences=1,
                max_length=self.config.max_target_length,
            )
            texts += self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def train_files(
    questions: str | Path,
    model: str | Path,
    kb: str | Path,
    out: str | Path,
    config: TrainingConfig | None = None,
    *,
    validation: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> TrainingReport:
    """`dualrag train`: fine-tune a saved RAG model, with the head it was saved with, on questions
    and a knowledge base.

    Args:
        questions: a qa.jsonl, see `rag_core.training.read_examples`.
        model: RAG folder or repository.
        kb: the knowledge base's folder.
        out: folder for the tuned model; a run that was killed is continued from what it left there,
            and one that is finished is found so.
        config: settings.
        validation: a qa.jsonl to measure exact match on.
        device: None = a GPU if there is one.
        progress: draw a progress bar on stderr.

    Raises:
        OSError: something is missing, or `out` holds another model already.
        ValueError: bad lines, or a knowledge base that does not fit the model.
    """
    from rag_core.config import RagConfig
    from rag_core.knowledge import KnowledgeBase
    from rag_core.retrieval import RagRetriever
    from rag_tf.rag import RagSequenceForGeneration, RagTokenForGeneration

    examples = read_examples(questions)
    held = [] if validation is None else read_examples(validation)
    base = KnowledgeBase.open(kb)
    config = config or TrainingConfig()
    source = source_fingerprint(model, kb)
    if (done := finished_before(out, examples, config, held, source)) is not None:
        return done
    stored = RagConfig.from_pretrained(model)
    base.check_model(stored)
    head = RagSequenceForGeneration if stored.saved_head == "sequence" else RagTokenForGeneration
    found = head.from_pretrained(model, device=device)
    retriever = RagRetriever.from_pretrained(model, config=found.config, index=base.index())
    found.set_retriever(retriever)
    run = _Run(found, retriever, examples, config, held, out)
    run.source = source
    return run.go(progress)
