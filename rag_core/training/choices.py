"""The settings of a run that nobody names, chosen for the number of questions and the model.

They were measured with the demo's model on 40 questions about 56 passages (docs/own-text.md); those
for wide generators are `TrainingConfig`'s own, as the paper's authors took them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag_core.config import RagConfig
from rag_core.training.config import TrainingConfig

# Fewer questions do not teach a question encoder anything that it does not pay for elsewhere.
FEW_QUESTIONS = 500
LEAST_STEPS = 200
# The demo's generator and its like, which start from little; a pretrained BART is wider.
NARROW = 512
NARROW_RATE = 5e-4
ENCODER_SHARE = 0.1
# Questions that are answered where there are none to validate on.
SAMPLE = 40
_LINES, _VALIDATIONS, _CHECKPOINTS, _REINDEXINGS = 8, 4, 4, 4
# Documents embedded at once for each one that is read, while the index is of earlier weights.
OVERRETRIEVE = 2


def chosen_config(
    questions: int, model: RagConfig, given: Mapping[str, Any], processes: int = 1
) -> TrainingConfig:
    """The settings that are given, and for all others what suits so many questions and the model.

    Steps are the passes of `TrainingConfig` over the questions, but `LEAST_STEPS` at least. A
    generator narrower than `NARROW` learns at `NARROW_RATE`. The question encoder of fewer than
    `FEW_QUESTIONS` questions stays as it is, unless what is said is about it; of more it learns at a
    tenth of the generator's rate.

    Args:
        questions: how many are trained on. Contrastive training leaves out those without a passage
            later on: the others are then seen more often, and what is chosen still fits together.
        model: the configuration of the model to start from.
        given: settings of `TrainingConfig` by name.
        processes: how many learn together.

    Raises:
        TypeError, ValueError: a setting is unknown or has no such value.
    """
    settings = dict(given)
    wanted = TrainingConfig(**settings)
    total = wanted.total_steps(questions, processes)
    if settings.get("steps") is None and settings.get("epochs") is None:
        total = max(LEAST_STEPS, total)
        settings["steps"] = total
    rate = _choose(settings, "learning_rate", _rate(model))
    tunes_retriever = (
        wanted.question_encoder_learning_rate is not None
        or wanted.retriever_loss is not None
        or wanted.generator == "frozen"
    )
    part = "all"
    if questions < FEW_QUESTIONS and not tunes_retriever:
        part = "frozen"
    part = _choose(settings, "question_encoder", part)
    if part != "frozen" or wanted.context_encoder != "frozen":
        _choose(settings, "question_encoder_learning_rate", ENCODER_SHARE * rate)
    if settings.get("context_encoder", "frozen") != "frozen":
        _choose(settings, "reindex_every", max(1, total // _REINDEXINGS))
        _choose(settings, "overretrieve", OVERRETRIEVE)
    _choose(settings, "log_every", max(1, total // _LINES))
    _choose(settings, "evaluate_every", max(1, total // _VALIDATIONS))
    if wanted.reads_documents:
        _choose(settings, "evaluate_first", True)
        _choose(settings, "sample_size", SAMPLE)
    _choose(settings, "save_every", max(1, min(TrainingConfig.save_every, total // _CHECKPOINTS)))
    return TrainingConfig(**settings)


def _choose(settings: dict[str, Any], name: str, value: Any) -> Any:
    """The setting's value, which is `value` if none is given."""
    if settings.get(name) is None:
        settings[name] = value
    return settings[name]


def _rate(model: RagConfig) -> float:
    width = getattr(model.generator, "d_model", None)
    if isinstance(width, int) and width < NARROW:
        return NARROW_RATE
    return TrainingConfig.learning_rate
