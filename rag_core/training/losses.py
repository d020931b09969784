"""What a training run minimises. A further loss is added here.

How to add a training loss:

1. Its tensor program is a function of a backend's `marginalize.py` (written twice, as all
   mathematics), which is `ForwardPass.math`, or what the model's own methods give.
2. Here it is a function of a `ForwardPass` -> a scalar, in nats, summed over the batch, and
   `training_loss` adds it. What it needs of the batch besides, `TrainingRun.forward` puts into the
   `ForwardPass`.
3. Its weight is a setting of `TrainingConfig` (with a rule beside the others); 0 leaves it out.

Gradients, precision, resuming, the log and both backends follow by themselves. Letters: B questions,
N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rag_core.training.config import TrainingConfig


@dataclass
class ForwardPass:
    """What a model made of a batch, as tensors of its framework.

    Attributes:
        model: the head.
        contexts: what was read: `doc_scores` (B, N), `n_docs`, and `retrieved` where a search was
            made.
        logits: (B*N, T, V).
        target: (B, T), what is to be predicted.
        loss: what the run minimises, a scalar in nats, summed over the batch's tokens.
    """

    model: Any
    contexts: Any
    logits: Any
    target: Any
    loss: Any = None

    @property
    def math(self) -> Any:
        """The backend's tensor programs: its module `marginalize`."""
        return self.model._math


def training_loss(forward: ForwardPass, config: TrainingConfig) -> Any:
    """What a run minimises, summed over the batch; it is divided by the step's number of tokens."""
    return answer_nll(forward, config)


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
