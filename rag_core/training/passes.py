"""What a training run has the model do with a batch: read, predict, answer.

Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.metrics import exact_match, f1_score
from rag_core.retrieval import RagRetriever
from rag_core.tokenization import RagTokenizer, within_table
from rag_core.training.backend import TrainingBackend
from rag_core.training.batch import Batch, make_batch
from rag_core.training.config import TrainingConfig
from rag_core.training.contrast import Contrast
from rag_core.training.data import Example, batches
from rag_core.training.losses import ForwardPass, training_loss
from rag_core.training.words import wrong_answers


class ForwardPasses(TrainingBackend):
    """The forward passes of a run, with gradients or without.

    Attributes:
        measured: the questions that exact match is measured on.
        contrast: the passages that questions are told apart by; None without a contrastive loss.
    """

    retriever: RagRetriever
    config: TrainingConfig
    tokenizer: RagTokenizer
    validation: list[Example]
    measured: list[Example]
    contrast: Contrast | None
    say: Callable[[str], None]
    # the last answers to the questions in `measured`, and which were right
    _texts: list[str]
    _hits: list[float]

    def forward(self, batch: Batch, learns: bool = True) -> ForwardPass:
        """Read what there is to read, predict the answers, and weigh that.

        Args:
            batch: what is read.
            learns: False is without dropout.
        """
        forward = ForwardPass(self.model, tokens_a_question=batch.tokens_a_question)
        if self.config.reads_documents:
            self._predict(forward, batch, learns)
        if self.contrast is not None:
            self.contrast.add_to(forward, batch)
        forward.loss = training_loss(forward, self.config)
        return forward

    def _predict(self, forward: ForwardPass, batch: Batch, learns: bool) -> None:
        """Read documents and predict answers."""
        contexts = self.contexts(batch, learns)
        outputs = self.model.rag(
            context_input_ids=contexts.context_input_ids,
            context_attention_mask=contexts.context_attention_mask,
            doc_scores=contexts.doc_scores,
            decoder_input_ids=self.tensor(batch.labels),
            n_docs=contexts.n_docs,
            use_cache=False,
            return_dict=True,
            **self.mode(learns and self.config.generator == "all"),
        )
        forward.contexts, forward.logits = contexts, outputs.logits
        forward.target = self.tensor(batch.target)

    def question_vectors(self, batch: Batch, learns: bool) -> Any:
        """The vectors (B, D) of a batch's questions; `learns` as of `contexts`."""
        ids, mask = self.tensor(batch.input_ids), self.tensor(batch.attention_mask)
        mode = self.mode(learns and self.config.question_encoder == "all")
        return self.model.rag._encode(mode, self.model.question_encoder, ids, mask)[0]

    def joint_log_probs(self, forward: ForwardPass) -> np.ndarray:
        """log p(z|x) + log p(y|x, z) of each document (B, N)."""
        prior = forward.math.doc_log_probs(forward.contexts.doc_scores)
        return to_numpy(forward.answer_log_probs) + to_numpy(prior)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Questions and answers in tokens."""
        return make_batch(examples, self.tokenizer, self.config, self.model.config.generator)

    def contexts(self, batch: Batch, learns: bool) -> Any:
        """What the generator reads for a batch: the examples' own passages, or what is retrieved.

        Args:
            batch: questions.
            learns: whether the batch is learned from. An encoder that does not learn is not shaken
                by dropout all the same.
        """
        if batch.examples[0].passage is None:
            ids, mask = self.tensor(batch.input_ids), self.tensor(batch.attention_mask)
            return self.model._contexts(
                ids,
                mask,
                n_docs=self.config.n_docs,
                document_mode=self.mode(learns and self.config.context_encoder == "all"),
                **self.mode(learns and self.config.question_encoder == "all"),
            ).trimmed()
        docs = [
            {"title": [example.passage[0]], "text": [example.passage[1]]}
            for example in batch.examples
            if example.passage
        ]
        questions = self.retriever.decode_questions(batch.input_ids.tolist())
        prefix = getattr(self.model.config.generator, "prefix", None)
        ids, mask = self.retriever.postprocess_docs(docs, questions, prefix, 1, return_tensors="np")
        ids = within_table(ids, self.tokenizer.tables[1], self.tokenizer.generator)
        scores = np.zeros((len(docs), 1), np.float32)
        parts = [self.tensor(array) for array in (ids, mask, scores)]
        return self.contexts_class(*parts, 1).trimmed()

    def validate(self) -> dict[str, float]:
        """`exact_match` and `f1` of greedy answers to the questions in `measured`, and with
        validation questions their `validation_loss`.
        """
        with self.answering():
            self._texts = self.answers(self.measured)
            loss = self._validation_loss()
        pairs = list(zip(self._texts, (each.answers for each in self.measured), strict=True))
        self._hits = [exact_match(*pair) for pair in pairs]
        metrics = {
            "exact_match": sum(self._hits) / len(self._hits),
            "f1": sum(f1_score(*pair) for pair in pairs) / len(pairs),
        }
        if loss is not None:
            metrics["validation_loss"] = loss
        return metrics

    def _validation_loss(self) -> float | None:
        """What the run minimises, of the validation questions, in nats a token."""
        if not self.validation or self.contrast is not None:
            return None  # passages that a question is told apart by are sought for training alone
        parts = list(batches(self.validation, self.config.batch_size))
        sums = []
        for part in self.processes.dealt(parts):
            batch = self.batch(part)
            batch.tokens_a_question = batch.tokens / len(part)
            loss = self.forward(batch, learns=False).loss
            sums.append((float(to_numpy(loss)), batch.tokens))
        nats, tokens = 0.0, 0
        for loss, count in self.processes.collect(sums):
            nats += loss
            tokens += count
        return nats / max(1, tokens)

    def say_wrong_answers(self) -> None:
        """Say a few of the answers that were not right when last measured."""
        asked = self.measured[: len(self._texts)]
        if wrong := wrong_answers(asked, self._texts, self._hits):
            self.say(wrong)

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Greedy answers; each process gives some of them."""
        parts = list(batches(examples, self.config.batch_size))
        texts: list[list[str]] = []
        for part in self.processes.dealt(parts):
            contexts = self.contexts(self.batch(part), learns=False)
            tokens = self.model.generate(
                context_input_ids=contexts.context_input_ids,
                context_attention_mask=contexts.context_attention_mask,
                doc_scores=contexts.doc_scores,
                n_docs=contexts.n_docs,
                num_beams=1,
                num_return_sequences=1,
                max_length=self.config.max_target_length,
            )
            texts.append(self.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return [text for part in self.processes.collect(texts) for text in part]
