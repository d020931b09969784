"""Which parameters of a RAG model learn, how fast, and which of them decay: told by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from rag_core.training.config import TrainingConfig

Parameter = TypeVar("Parameter")

_QUESTION_ENCODER = ".question_encoder."
_CONTEXT_ENCODER = ".ctx_encoder."  # its vectors are in the index, which does not change
_PROJECTION = "encode_proj."
_NO_DECAY = ("bias", "norm")
_HALF = ("float16", "bfloat16")


def learning_parameters(named: Iterable[tuple[str, Parameter]], part: str) -> dict[str, Parameter]:
    """The parameters to train, by name.

    Args:
        named: all parameters of a model.
        part: how much of the question encoder learns: "all", "projection" or "frozen".

    Raises:
        ValueError: no projection to train, or half-precision weights.
    """
    chosen = {name: parameter for name, parameter in named if _learns(f".{name}", part)}
    if part == "projection" and not any(_PROJECTION in name for name in chosen):
        raise ValueError(
            "question_encoder='projection', but this question encoder has none: give its config a "
            "projection_dim, or train 'all' of it"
        )
    half = sorted({text for text in map(_dtype, chosen.values()) if text.endswith(_HALF)})
    if half:
        raise ValueError(
            f"weights to train must be float32, got {', '.join(half)}: load the model without "
            "dtype="
        )
    return chosen


def parameter_groups(parameters: Mapping[str, Any], config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer: `{"params": {name: parameter}, "peak": ..., "weight_decay": ...}`.

    `peak` is the highest learning rate. Biases, norms and all else that is no matrix do not decay.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        peak = config.learning_rate
        if is_question_encoder(name):
            peak = config.question_encoder_learning_rate or config.learning_rate
        decay = config.weight_decay
        if len(parameter.shape) < 2 or any(word in name.lower() for word in _NO_DECAY):
            decay = 0.0
        groups.setdefault((peak, decay), {})[name] = parameter
    return [
        {"params": members, "peak": peak, "weight_decay": decay}
        for (peak, decay), members in groups.items()
    ]


def is_question_encoder(name: str) -> bool:
    """Whether a parameter of that name is the question encoder's."""
    return _QUESTION_ENCODER in f".{name}"


def _learns(name: str, part: str) -> bool:
    if _CONTEXT_ENCODER in name:
        return False
    if _QUESTION_ENCODER not in name or part == "all":
        return True
    return part == "projection" and _PROJECTION in name


def _dtype(parameter: Any) -> str:
    """A type as its framework writes it: "torch.bfloat16", "bfloat16"."""
    return getattr(parameter.dtype, "name", None) or str(parameter.dtype)
