"""What a training run minimises. A further loss is added here.

How to add a loss of the retriever:

1. Its tensor program is a function of a backend's `marginalize.py` (written twice, as all
   mathematics), which is `ForwardPass.math`.
2. Here it is a function of a `ForwardPass` -> (B,), in nats, under its name in `_RETRIEVER_LOSSES`.
   What it needs of the batch besides, `TrainingRun.forward` puts into the `ForwardPass`.
3. Its name is one of `RETRIEVER_LOSSES` of `config.py`.

Any other loss is a term of `training_loss`, with a weight of its own in `TrainingConfig`. Gradients,
precision, resuming, the log and both backends follow by themselves. Letters: B questions, N documents
a question, C passages of a batch, D vector size, T target length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rag_core.training.config import TrainingConfig


@dataclass
class ForwardPass:
    """What a model made of a batch, as tensors of its framework.

    Attributes:
        model: the head.
        contexts: what was read: `doc_scores` (B, N), `n_docs`, and `retrieved` where a search was
            made; None, as the next two, where no answer is predicted.
        logits: (B*N, T, V).
        target: (B, T), what is to be predicted.
        question_vectors: (B, D), where passages are compared with them.
        passage_vectors: (C, D), what they are compared with; None without "contrastive".
        positive: (B,), which of them is each question's own.
        masked: (B, C) bool, True = no passage for that question to be told from.
        passage_scores: (B, C), what "contrastive" made of them.
        tokens_a_question: tokens that the whole step predicts, for each of its questions.
        loss: what the run minimises, a scalar in nats, summed over the batch's tokens.
        retriever_losses: (B,), in nats, without its weight; None where the marginal alone teaches
            the retriever.
    """

    model: Any
    contexts: Any = None
    logits: Any = None
    target: Any = None
    question_vectors: Any = None
    passage_vectors: Any = None
    positive: Any = None
    masked: Any = None
    passage_scores: Any = None
    tokens_a_question: float = 1.0
    loss: Any = None
    retriever_losses: Any = None

    @property
    def math(self) -> Any:
        """The backend's tensor programs: its module `marginalize`."""
        return self.model._math

    @cached_property
    def answer_log_probs(self) -> Any:
        """log p(y|x, z) of whole answers (B, N), without gradient."""
        logits = self.math.split_docs(self.logits, self.contexts.n_docs)  # (B, N, T, V)
        pad = self.model.config.generator.pad_token_id
        return self.math.answer_log_probs(logits, self.target, pad)


def training_loss(forward: ForwardPass, config: TrainingConfig) -> Any:
    """What a run minimises, summed over the batch; it is divided by the step's number of tokens.

    That is `answer_loss_weight` times the answers' nats a token, plus `retriever_loss_weight` times
    the retriever's nats a question: neither depends on how many questions a step has.
    """
    terms = []
    if config.answer_loss_weight:
        terms.append(config.answer_loss_weight * answer_nll(forward, config))
    if config.retriever_loss is not None:
        forward.retriever_losses = retriever_losses(forward, config)
        share = config.retriever_loss_weight * forward.tokens_a_question
        terms.append(share * forward.math.total(forward.retriever_losses))
    return sum(terms[1:], terms[0])


def retriever_losses(forward: ForwardPass, config: TrainingConfig) -> Any:
    """What `config.retriever_loss` names, (B,), in nats."""
    return _RETRIEVER_LOSSES[config.retriever_loss or ""](forward, config)


def answer_nll(forward: ForwardPass, config: TrainingConfig) -> Any:
    """The negative log-likelihood of the answers, marginalised over documents (section 2.4)."""
    epsilon = config.label_smoothing
    if epsilon is None:
        epsilon = forward.model.config.label_smoothing
    return forward.model.get_nll(
        forward.logits,
        forward.contexts.doc_scores,
        forward.target,
        reduce_loss=True,
        epsilon=epsilon,
        n_docs=forward.contexts.n_docs,
    )


def _emdr2(forward: ForwardPass, config: TrainingConfig) -> Any:
    return forward.math.emdr2(forward.answer_log_probs, forward.contexts.doc_scores)


def _pdist(forward: ForwardPass, config: TrainingConfig) -> Any:
    scores = forward.contexts.doc_scores
    return forward.math.pdist(forward.answer_log_probs, scores, config.distillation_temperature)


def _contrastive(forward: ForwardPass, config: TrainingConfig) -> Any:
    math = forward.math
    forward.passage_scores = math.passage_scores(forward.question_vectors, forward.passage_vectors)
    return math.contrastive(forward.passage_scores, forward.positive, forward.masked)


_RETRIEVER_LOSSES: dict[str, Callable[[ForwardPass, TrainingConfig], Any]] = {
    "emdr2": _emdr2,
    "pdist": _pdist,
    "contrastive": _contrastive,
}
