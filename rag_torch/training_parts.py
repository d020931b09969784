"""Parts of a training run: which parameters learn, their optimizer, and the sums between two log
lines.

Letters: B questions, N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rag_core.metrics import distinct_document_ratio, mean_posterior_entropy
from rag_core.training import TrainingConfig
from rag_torch import marginalize as marginal
from rag_torch.contexts import Contexts

_NO_DECAY = ("bias", "norm")
_FUSED = ("cpu", "cuda")  # devices whose kernels torch 2.4 has


@contextlib.contextmanager
def trainable(model: Any, part: str) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train by name, the others frozen; every flag as before at the end."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    chosen = {}
    for name, parameter in model.named_parameters():
        in_question = ".question_encoder." in f".{name}"
        wanted = {
            "all": True,
            "frozen": not in_question,
            "projection": not in_question or "encode_proj." in name,
        }[part]
        wanted = wanted and ".ctx_encoder." not in f".{name}"
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    try:
        if part == "projection" and not any("encode_proj." in name for name in chosen):
            raise ValueError(
                "question_encoder='projection', but this question encoder has none: give its "
                "config a projection_dim, or train 'all' of it"
            )
        half = sorted(
            {str(p.dtype) for p in chosen.values() if p.dtype in (torch.float16, torch.bfloat16)}
        )
        if half:
            raise ValueError(
                f"weights to train must be float32, got {', '.join(half)}: load the model without "
                "dtype="
            )
        yield chosen
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


def make_optimizer(
    parameters: dict[str, nn.Parameter], config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW whose groups differ by peak learning rate (`group["peak"]`) and weight decay.

    Fused where the device has that kernel: one pass over weights, gradients and moments instead of
    seven.
    """
    question_peak = config.question_encoder_learning_rate or config.learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        peak = question_peak if ".question_encoder." in f".{name}" else config.learning_rate
        plain = parameter.dim() < 2 or any(word in name.lower() for word in _NO_DECAY)
        groups.setdefault((peak, 0.0 if plain else config.weight_decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "peak": peak, "weight_decay": decay}
            for (peak, decay), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=all(parameter.device.type in _FUSED for parameter in parameters.values()),
    )


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
        self.prior.append(mean_posterior_entropy(contexts.doc_scores.detach().cpu().numpy()))
        if contexts.retrieved is not None:
            self.ids.append(contexts.retrieved["doc_ids"].numpy())

    @torch.no_grad()
    def posterior(self, logits: Tensor, contexts: Contexts, labels: Tensor, pad: int) -> None:
        """Entropy of p(z|x, y), for which the logits (B*N, T, V) are gone through once more."""
        target = marginal.shift_left(labels, pad)
        # (B, N, T)
        each = marginal.target_log_probs(logits.unflatten(0, (-1, contexts.n_docs)), target)
        prior = marginal.doc_log_probs(contexts.doc_scores.detach())
        joint = each.masked_fill((target == pad)[:, None], 0.0).sum(-1) + prior  # (B, N)
        self.posteriors.append(mean_posterior_entropy(joint.cpu().numpy()))

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
