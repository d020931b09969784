"""Which of a backend's classes are for a config: of the parts of a RAG model, and of `AutoModel`
and `AutoModelForSeq2SeqLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from rag_core.config import AutoClass

Model = TypeVar("Model")

# part -> model_type -> the name of its class, the same in both backends
NETWORKS: dict[str, dict[str, str]] = {
    "question_encoder": {"dpr": "DPRQuestionEncoder", "bert": "BertEncoder"},
    "ctx_encoder": {"dpr": "DPRContextEncoder", "bert": "BertEncoder"},
    "generator": {"bart": "BartForConditionalGeneration", "t5": "T5ForConditionalGeneration"},
}


class AutoModelBase(AutoClass[Model]):
    """The encoder or RAG model of a folder or repository.

    DPR, BERT (whose element 0 is its pooled vector), RAG.
    """

    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bert": ("BertEncoder",),
        "dpr": ("DPRQuestionEncoder", "DPRContextEncoder"),
        "rag": ("RagModel", "RagTokenForGeneration", "RagSequenceForGeneration"),
    }


class AutoModelForSeq2SeqLMBase(AutoClass[Model]):
    """The generator of a folder or repository.

    BART, T5, or a RAG head (RAG-Token where none is named).
    """

    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{kind: (name,) for kind, name in NETWORKS["generator"].items()},
        "rag": ("RagTokenForGeneration", "RagSequenceForGeneration"),
    }


def networks_of(package: ModuleType) -> dict[str, Any]:
    """The classes of `NETWORKS` that a backend offers, by name."""
    names = {name for by_type in NETWORKS.values() for name in by_type.values()}
    return {name: getattr(package, name) for name in sorted(names) if name in package.__all__}


def named_classes(
    names: Mapping[str, tuple[str, ...]], classes: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """A table of names with a backend's classes of these names; what it lacks is left out."""
    table = {
        kind: [classes[name] for name in choices if name in classes]
        for kind, choices in names.items()
    }
    return {kind: choices for kind, choices in table.items() if choices}
