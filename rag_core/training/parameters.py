"""Which parameters of a RAG model learn, how fast, and which of them decay: told by their names."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rag_core.retrieval import has_own_scores
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example

Parameter = TypeVar("Parameter")

GENERATOR, QUESTION_ENCODER, CONTEXT_ENCODER = "generator", "question_encoder", "context_encoder"
PARTS = (GENERATOR, QUESTION_ENCODER, CONTEXT_ENCODER)
_PREFIXES = {".question_encoder.": QUESTION_ENCODER, ".ctx_encoder.": CONTEXT_ENCODER}
_PROJECTION = "encode_proj."
_NO_DECAY = ("bias", "norm")
_HALF = ("float16", "bfloat16")
_STILL = "frozen by its owner (requires_grad or trainable is False)"
_NO_CONTEXT_ENCODER = (
    "context_encoder must be 'frozen' where the model has none, got {!r}. Give it the encoder that "
    "made the vectors of the passages: model.set_context_encoder_for_training(encoder), and its "
    "tokenizer to the retriever: retriever.set_ctx_encoder_tokenizer(tokenizer)"
)
_NO_PROJECTION = (
    "{}='projection', but this encoder has none: give its config a projection_dim, or train 'all' "
    "of it"
)


def learning_parameters(
    named: Iterable[tuple[str, Parameter]], config: TrainingConfig, still: Container[str] = ()
) -> dict[str, Parameter]:
    """The parameters to train, by name.

    Args:
        named: all parameters of a model.
        config: how much of each part learns.
        still: names of those that stay as they are all the same.

    Raises:
        ValueError: no projection or no context encoder to train, nothing that is not to stay, or
            half-precision weights.
    """
    everything = dict(named)
    if config.context_encoder != "frozen" and CONTEXT_ENCODER not in map(part_of, everything):
        raise ValueError(_NO_CONTEXT_ENCODER.format(config.context_encoder))
    chosen = {name: value for name, value in everything.items() if _learns(name, config)}
    learning = {part_of(name) for name in chosen}
    for part in (QUESTION_ENCODER, CONTEXT_ENCODER):
        if getattr(config, part) == "projection" and part not in learning:
            raise ValueError(_NO_PROJECTION.format(part))
    chosen = {name: value for name, value in chosen.items() if name not in still}
    if not chosen:
        raise ValueError(
            f"the model must have weights that learn, got none: those that the settings let learn "
            f"are all {_STILL}. Let some of them learn"
        )
    half = sorted({text for text in map(_dtype, chosen.values()) if text.endswith(_HALF)})
    if half:
        raise ValueError(
            f"weights to train must be float32, got {', '.join(half)}: load the model without "
            "dtype="
        )
    return chosen


def as_it_learns(config: TrainingConfig, parameters: Iterable[str]) -> TrainingConfig:
    """The settings with "frozen" for each part of which nothing learns.

    Args:
        config: what was asked for.
        parameters: the names of those that learn.

    Raises:
        ValueError: what is left cannot be trained like that.
    """
    learning = {part_of(name) for name in parameters}
    still = [part for part in PARTS if getattr(config, part) != "frozen" and part not in learning]
    frozen: dict[str, Any] = dict.fromkeys(still, "frozen")
    try:
        return replace(config, **frozen)
    except ValueError as error:
        raise ValueError(f"{error}. Of the model's {' and '.join(still)} all is {_STILL}") from None


def check_own_passages(
    examples: Sequence[Example], validation: Sequence[Example], config: TrainingConfig
) -> None:
    """Refuse what cannot be learned, or measured, where examples bring the passage that is read.

    Raises:
        ValueError: some have one and some have none, or nothing reaches what is to learn.
    """
    for name, some in (("examples", examples), ("validation", validation)):
        if len({example.passage is None for example in some}) > 1:
            raise ValueError(f"{name} must either all bring a passage or none, got both kinds")
    if examples[0].passage is None or config.retriever_loss == "contrastive":
        return
    if config.retriever_loss is not None:
        raise ValueError(
            "retriever_loss must be None or 'contrastive' where examples bring their own "
            f"passage, got {config.retriever_loss!r}. Nothing is retrieved for them"
        )
    if config.generator == "frozen":
        raise ValueError(
            "generator must be 'all' where examples bring their own passage, got 'frozen'. Nothing "
            "is retrieved for them, so nothing else learns; with retriever_loss='contrastive' the "
            "encoders do"
        )
    if config.context_encoder != "frozen":
        raise ValueError(
            "context_encoder must be 'frozen' where examples bring their own passage, got "
            f"{config.context_encoder!r}. Nothing is retrieved for them; with "
            "retriever_loss='contrastive' it learns"
        )


def check_index(index: Any, config: TrainingConfig) -> None:
    """Refuse to teach encoders by an index that does not find documents by their vectors.

    Raises:
        ValueError: an encoder learns.
    """
    for name in ("question_encoder", "context_encoder"):
        part = getattr(config, name)
        if part != "frozen" and has_own_scores(index):
            raise ValueError(
                f"{name} must be 'frozen' with {type(index).__name__}, got {part!r}. Its scores "
                "are no inner products of vectors, so it would learn nothing: let the generator "
                "learn alone, or take an index of vectors"
            )


def parameter_groups(parameters: Mapping[str, Any], config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer: `{"params": {name: parameter}, "peak": ..., "weight_decay": ...}`.

    `peak` is the highest learning rate. Biases, norms and all else that is no matrix do not decay.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        peak = peak_rate(part_of(name), config)
        decay = config.weight_decay
        if len(parameter.shape) < 2 or any(word in name.lower() for word in _NO_DECAY):
            decay = 0.0
        groups.setdefault((peak, decay), {})[name] = parameter
    return [
        {"params": members, "peak": peak, "weight_decay": decay}
        for (peak, decay), members in groups.items()
    ]


def part_of(name: str) -> str:
    """The part of a model that has a parameter of that name, by the name of its setting."""
    for prefix, part in _PREFIXES.items():
        if prefix in f".{name}":
            return part
    return GENERATOR


def peak_rate(part: str, config: TrainingConfig) -> float:
    """The highest learning rate of a part."""
    rate = config.learning_rate
    if part != GENERATOR:
        rate = config.question_encoder_learning_rate or rate
    if part == CONTEXT_ENCODER:
        rate = config.context_encoder_learning_rate or rate
    return rate


def _learns(name: str, config: TrainingConfig) -> bool:
    share = getattr(config, part_of(name))
    return share == "all" or (share == "projection" and _PROJECTION in name)


def _dtype(parameter: Any) -> str:
    """A type as its framework writes it: "torch.bfloat16", "bfloat16"."""
    return getattr(parameter.dtype, "name", None) or str(parameter.dtype)
