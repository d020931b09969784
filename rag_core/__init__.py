"""The framework-neutral half of dualrag: every decision of Retrieval-Augmented Generation, in NumPy and plain Python.

Lewis et al. 2020, arXiv 2005.11401. Names load on first use, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": ["AutoConfig", "BartConfig", "BertConfig", "DPRConfig", "PretrainedConfig", "RagConfig", "T5Config"],
    "tokenization": ["AutoTokenizer", "BatchEncoding", "RagTokenizer", "Tokenizer"],
    "tokenizer": [
        *("BartTokenizer", "BartTokenizerFast", "BertTokenizer", "BertTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
        *("DPRContextEncoderTokenizer", "DPRContextEncoderTokenizerFast"),
        *("DPRQuestionEncoderTokenizer", "DPRQuestionEncoderTokenizerFast"),
    ],
    "retriever": ["RagRetriever"],
    "index": ["Index"],
    "knowledge": ["KnowledgeBase", "build_knowledge_base"],
    "generation": ["GenerationConfig"],
    "outputs": ["Answer", "GenerateOutput", "Passage", "RetrievAugLMMarginOutput", "RetrievAugLMOutput"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
