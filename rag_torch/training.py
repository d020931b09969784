"""Joint fine-tuning of question encoder and generator with frozen document vectors (paper, section
2.4).

Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from rag_torch.contexts import Contexts, table_size
from rag_torch.training_parts import Window, make_optimizer, trainable
from rag_torch.training_state import load_state, save_state


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
            goes on from the last checkpoint there, and ends bit for bit where it would have ended.
            None keeps nothing on disk.
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
        if config.mixed_precision == "fp16" and model.device.type != "cuda":
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
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.mixed_precision == "fp16")

    def go(self, progress: bool) -> TrainingReport:
        cuda = [self.model.device] if self.model.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            trainable(self.model, self.config.question_encoder) as parameters,
        ):
            torch.manual_seed(self.config.seed)
            self.parameters = parameters
            self.optimizer = make_optimizer(parameters, self.config)
            before = self.resume()
            start = time.monotonic()
            bar = tqdm(
                total=self.total,
                initial=self.report.steps,
                desc="training",
                unit="step",
                disable=not progress,
            )
            with bar, self.model_mode():
                run_steps(self, bar, lambda: before + time.monotonic() - start)
            self.report.seconds = before + time.monotonic() - start
        self.finish()
        return self.report

    @contextlib.contextmanager
    def model_mode(self) -> Iterator[None]:
        """Training mode inside, eval mode afterwards, whatever happens."""
        self._training_mode()
        try:
            yield
        finally:
            self.model.eval()

    def _training_mode(self) -> None:
        """Dropout where something is trained.

        An encoder that does not learn is not shaken either.
        """
        self.model.train()
        if self.config.question_encoder != "all":
            self.model.question_encoder.eval()

    window = Window
    load_state = staticmethod(load_state)
    save_state = staticmethod(save_state)

    def step(self, examples: list[Example], seen: Window, logs: bool) -> None:
        """One optimizer step over `accumulation` forward passes.

        The loss is a mean over all their tokens.
        """
        parts = [(part, *self._encode(part)) for part in batches(examples, self.config.batch_size)]
        tokens = sum(int((labels[:, 1:] != self.pad).sum()) for *_, labels in parts)
        self.optimizer.zero_grad(set_to_none=True)
        for part, ids, mask, labels in parts:
            with self._autocast():
                contexts = self._contexts(part, ids, mask)
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
            self.scaler.scale(nll / tokens).backward()
            seen.add(nll.item(), tokens if part is parts[0][0] else 0, contexts)
            if logs:
                seen.posterior(logits.detach(), contexts, target, self.pad)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _autocast(self) -> Any:
        if self.config.mixed_precision is None:
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.config.mixed_precision == "bf16" else torch.float16
        return torch.autocast(self.model.device.type, dtype)

    def _encode(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Question ids and mask (B, Q), labels (B, T)."""
        common = {"padding": True, "truncation": True, "return_tensors": "pt"}
        config, device = self.config, self.model.device
        questions = self.tokenizer.encode_questions(
            [e.question for e in examples], max_length=config.max_question_length, **common
        )
        answers = [e.answers[0] for e in examples]
        labels = self.tokenizer.encode_targets(
            answers, max_length=config.max_target_length, **common
        )["input_ids"]
        if self.tokenizer.generator.bos_token_id is None:
            # T5's tokenizer puts nothing in front, and the first label is fed but never predicted.
            start = labels.new_full(
                (len(labels), 1), self.model.config.generator.decoder_start_token_id
            )
            labels = torch.cat([start, labels], 1)
        return (
            questions["input_ids"].to(device),
            questions["attention_mask"].to(device),
            labels.to(device),
        )

    def _target(self, examples: Sequence[Example], labels: Tensor) -> Tensor:
        """What is to be predicted (B, T), where a passage does not hold the answer the mask
        token all along.
        """
        silent = torch.tensor(
            [not example.answerable for example in examples], device=labels.device
        )
        mask = self.tokenizer.generator.mask_token_id
        if not silent.any():
            return labels
        if mask is None:
            raise ValueError(
                "examples with answerable=False need a generator tokenizer with a mask token"
            )
        return labels.masked_fill(silent[:, None] & (labels != self.pad), mask)

    def _contexts(self, examples: Sequence[Example], ids: Tensor, mask: Tensor) -> Contexts:
        if examples[0].passage is None:
            frozen = self.config.question_encoder == "frozen"
            with torch.no_grad() if frozen else contextlib.nullcontext():
                return self.model._contexts(ids, mask, n_docs=self.config.n_docs).trimmed()
        docs = [{"title": [e.passage[0]], "text": [e.passage[1]]} for e in examples if e.passage]
        questions = self.retriever.decode_questions(ids.tolist())
        prefix = getattr(self.model.config.generator, "prefix", None)
        context_ids, context_mask = self.retriever.postprocess_docs(
            docs, questions, prefix, 1, return_tensors="pt"
        )
        fitting = within_table(context_ids, self.tokenizer.tables[1], self.tokenizer.generator)
        context_ids = to_tensor(fitting, "pt")
        scores = torch.zeros(len(docs), 1, device=ids.device)
        return Contexts(
            context_ids.to(ids.device), context_mask.to(ids.device), scores, 1
        ).trimmed()

    def _logits(self, contexts: Contexts, labels: Tensor) -> Tensor:
        """(B*N, T, V)."""
        outputs = self.model.rag(
            context_input_ids=contexts.context_input_ids,
            context_attention_mask=contexts.context_attention_mask,
            doc_scores=contexts.doc_scores,
            decoder_input_ids=labels,
            n_docs=contexts.n_docs,
            use_cache=False,
            return_dict=True,
        )
        return outputs.logits

    def validate(self) -> float:
        self.model.eval()
        texts = self.answers(self.validation)
        self._training_mode()
        hits = [
            exact_match(text, e.answers) for text, e in zip(texts, self.validation, strict=True)
        ]
        return sum(hits) / len(hits)

    @torch.no_grad()
    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Greedy answers."""
        texts: list[str] = []
        for part in batches(examples, self.config.batch_size):
            ids, mask, _ = self._encode(part)
            contexts = self._contexts(part, ids, mask)
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
    from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration

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
    found = head.from_pretrained(
        model, device=device or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    retriever = RagRetriever.from_pretrained(model, config=found.config, index=base.index())
    found.set_retriever(retriever)
    run = _Run(found, retriever, examples, config, held, out)
    run.source = source
    return run.go(progress)
