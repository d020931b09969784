"""Which of a backend's classes are for a config: the tables of `AutoModel` and
`AutoModelForSeq2SeqLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rag_core.config import AutoClass


class AutoModelBase(AutoClass):
    """The encoder or RAG model of a folder or repository.

    DPR, BERT (whose element 0 is its pooled vector), RAG.
    """

    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bert": ("BertEncoder",),
        "dpr": ("DPRQuestionEncoder", "DPRContextEncoder"),
        "rag": ("RagModel", "RagTokenForGeneration", "RagSequenceForGeneration"),
    }


class AutoModelForSeq2SeqLMBase(AutoClass):
    """The generator of a folder or repository.

    BART, T5, or a RAG head (RAG-Token where none is named).
    """

    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bart": ("BartForConditionalGeneration",),
        "t5": ("T5ForConditionalGeneration",),
        "rag": ("RagTokenForGeneration", "RagSequenceForGeneration"),
    }


def named_classes(
    names: Mapping[str, tuple[str, ...]], classes: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """A table of names with a backend's classes of these names."""
    return {kind: [classes[name] for name in choices] for kind, choices in names.items()}
