"""Parts of a training run: which parameters learn, their optimizer, and the sums between two log
lines.

Letters: B questions, N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.metrics import distinct_document_ratio, mean_posterior_entropy
from rag_core.training import TrainingConfig
from rag_tf import marginalize as marginal
from rag_tf.contexts import Contexts
from rag_tf.weights import named_tensors

_NO_DECAY = ("bias", "norm")
_EPSILON = 1e-8


def trainable(model: Any, part: str) -> dict[str, tf.Variable]:
    """The parameters to train by name; a gradient tape is told of them, so the others need no flag.

    Raises:
        ValueError: no projection to train, or half-precision weights.
    """
    chosen: dict[str, tf.Variable] = {}
    for name, parameter in named_tensors(model):
        in_question = ".question_encoder." in f".{name}"
        wanted = {
            "all": True,
            "frozen": not in_question,
            "projection": not in_question or "encode_proj." in name,
        }[part]
        if wanted and parameter.trainable and ".ctx_encoder." not in f".{name}":
            chosen[name] = parameter
    if part == "projection" and not any("encode_proj." in name for name in chosen):
        raise ValueError(
            "question_encoder='projection', but this question encoder has none: give its config a "
            "projection_dim, or train 'all' of it"
        )
    half = sorted({p.dtype.name for p in chosen.values() if p.dtype in (tf.float16, tf.bfloat16)})
    if half:
        raise ValueError(
            f"weights to train must be float32, got {', '.join(half)}: load the model without "
            "dtype="
        )
    return chosen


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in PyTorch's
    arithmetic.

    Args:
        groups: `{"params": {name: variable}, "peak": ..., "weight_decay": ...}` each; `group["lr"]`
            is set before each step, from `peak`.
        lr: learning rate of groups without one.
        betas: decay of the first and second moments.

    Attributes:
        steps: how often each parameter was updated, by name.
        exp_avg: first moments by name.
        exp_avg_sq: second moments by name.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.betas = betas
        self.parameters = {name: p for group in groups for name, p in group["params"].items()}
        self.steps = dict.fromkeys(self.parameters, 0)
        self.exp_avg, self.exp_avg_sq = (
            {
                name: tf.Variable(tf.zeros_like(p), trainable=False)
                for name, p in self.parameters.items()
            }
            for _ in range(2)
        )
        self._decaying = {
            name for group in groups if group["weight_decay"] for name in group["params"]
        }
        self._update = tf.function(self._updated, autograph=False)
        self._square = tf.function(_square_sum, autograph=False)

    def clip_factor(
        self, gradients: dict[str, tf.Tensor], max_norm: float, scale: float = 1.0
    ) -> float | None:
        """What `step` is to multiply by: 1 / `scale`, and less where the gradients' norm is then
        above `max_norm`.

        Returns:
            The factor, or None where a gradient is infinite or NaN.
        """
        norm = math.sqrt(float(self._square(list(gradients.values())))) / scale
        return min(1.0, max_norm / (norm + 1e-6)) / scale if math.isfinite(norm) else None

    def step(self, gradients: dict[str, tf.Tensor], factor: float = 1.0) -> None:
        """Move each parameter that has a (dense) gradient, by name.

        Args:
            gradients: name -> gradient.
            factor: what all of them are multiplied by.
        """
        numbers = {}
        for group in self.param_groups:
            for name in gradients.keys() & group["params"].keys():
                self.steps[name] += 1
                first, second = (1.0 - beta ** self.steps[name] for beta in self.betas)
                pace, root = group["lr"] / first, math.sqrt(second)
                # The second moment's correction, on both sides of the quotient instead of under its
                # root.
                numbers[name] = (
                    1.0 - group["lr"] * group["weight_decay"],
                    pace * root,
                    _EPSILON * root,
                    factor,
                )
        if numbers:
            self._update(
                gradients, tf.constant([numbers[name] for name in sorted(gradients)], tf.float64)
            )

    def _updated(self, gradients: dict[str, tf.Tensor], numbers: tf.Tensor) -> None:
        """In one graph: `numbers` (parameters, 4) are what decay leaves, the pace, epsilon, the
        gradient's factor.
        """
        beta1, beta2 = self.betas
        for row, name in enumerate(sorted(gradients)):
            parameter = self.parameters[name]
            kept, pace, epsilon, factor = tf.unstack(tf.cast(numbers[row], parameter.dtype), 4)
            if name in self._decaying:
                parameter.assign(parameter * kept)
            # One pass over the four arrays; operation by operation it would be a dozen.
            tf.raw_ops.ResourceApplyAdam(
                var=parameter.handle,
                m=self.exp_avg[name].handle,
                v=self.exp_avg_sq[name].handle,
                beta1_power=tf.zeros((), parameter.dtype),
                beta2_power=tf.zeros((), parameter.dtype),
                lr=pace,
                beta1=tf.constant(beta1, parameter.dtype),
                beta2=tf.constant(beta2, parameter.dtype),
                epsilon=epsilon,
                grad=gradients[name] * factor,
            )


def _square_sum(gradients: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([2.0 * tf.cast(tf.nn.l2_loss(gradient), tf.float64) for gradient in gradients])


def make_optimizer(parameters: dict[str, tf.Variable], config: TrainingConfig) -> AdamW:
    """AdamW whose groups differ by peak learning rate (`group["peak"]`) and weight decay."""
    question_peak = config.question_encoder_learning_rate or config.learning_rate
    groups: dict[tuple[float, float], dict[str, tf.Variable]] = {}
    for name, parameter in parameters.items():
        peak = question_peak if ".question_encoder." in f".{name}" else config.learning_rate
        plain = parameter.shape.rank < 2 or any(word in name.lower() for word in _NO_DECAY)
        groups.setdefault((peak, 0.0 if plain else config.weight_decay), {})[name] = parameter
    return AdamW(
        [
            {"params": members, "peak": peak, "weight_decay": decay}
            for (peak, decay), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
    )


def add_gradients(
    sums: dict[str, tf.Tensor], names: Iterable[str], gradients: Iterable[Any]
) -> None:
    """Add a forward pass's gradients to the sums by name, dense.

    None = the parameter had no part in it.
    """
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            # a table's gradient may come as the rows that were looked up
            dense = tf.convert_to_tensor(gradient)
            sums[name] = sums[name] + dense if name in sums else dense


class LossScale:
    """Keeps float16's gradients in range: the loss is multiplied by a number that adapts (as
    torch's GradScaler).

    Args:
        enabled: False leaves the loss alone.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.value, self.good_steps = enabled, 65536.0 if enabled else 1.0, 0

    def update(self, finite: bool) -> None:
        """After a step: halve after an overflow, double after 2000 steps without one."""
        if self.enabled:
            self.good_steps = self.good_steps + 1 if finite else 0
            self.value *= 1.0 if finite else 0.5
            if self.good_steps == 2000:
                self.value, self.good_steps = self.value * 2.0, 0

    def state_dict(self) -> dict[str, float]:
        """What must be kept to go on."""
        return {"scale": self.value, "good_steps": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        if self.enabled and state:
            self.value, self.good_steps = float(state["scale"]), int(state["good_steps"])


class Window:
    """Sums between two log lines."""

    def __init__(self) -> None:
        self.nll, self.tokens = 0.0, 0
        self.ids: list[Any] = []
        self.prior: list[float] = []
        self.posteriors: list[float] = []

    def add(self, nll: float, tokens: int, contexts: Contexts) -> None:
        """Count a forward pass; refuses a loss that is no number."""
        if not math.isfinite(nll):
            raise FloatingPointError(
                f"the loss became {nll}: lower the learning rate, or check the data"
            )
        self.nll, self.tokens = self.nll + nll, self.tokens + tokens
        self.prior.append(mean_posterior_entropy(contexts.doc_scores.numpy()))
        if contexts.retrieved is not None:
            self.ids.append(np.asarray(contexts.retrieved["doc_ids"]))

    def posterior(self, logits: tf.Tensor, contexts: Contexts, labels: tf.Tensor, pad: int) -> None:
        """Entropy of p(z|x, y), for which the logits (B*N, T, V) are gone through once more."""
        target = marginal.shift_left(labels, pad)
        shape = tf.concat([tf.shape(contexts.doc_scores), tf.shape(logits)[1:]], 0)
        each = marginal.target_log_probs(tf.reshape(logits, shape), target)  # (B, N, T)
        each = marginal.masked_fill(each, (target == pad)[:, None], 0.0)
        likelihood, prior = marginal.together(
            tf.reduce_sum(each, -1), marginal.doc_log_probs(contexts.doc_scores)
        )
        self.posteriors.append(mean_posterior_entropy((likelihood + prior).numpy()))  # (B, N)

    def line(self) -> dict[str, float]:
        """The means."""
        line = {
            "loss": self.nll / max(1, self.tokens),
            "prior_entropy": sum(self.prior) / len(self.prior),
        }
        if self.posteriors:
            line["posterior_entropy"] = sum(self.posteriors) / len(self.posteriors)
        if self.ids:
            line["distinct_documents"] = sum(map(distinct_document_ratio, self.ids)) / len(self.ids)
        return line
