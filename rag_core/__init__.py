"""The framework-neutral half of dualrag: every decision of Retrieval-Augmented Generation, in NumPy
and plain Python.

Lewis et al. 2020, arXiv 2005.11401. Names load on first use, so importing this package costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.config import AutoConfig as AutoConfig
    from rag_core.config import BartConfig as BartConfig
    from rag_core.config import BertConfig as BertConfig
    from rag_core.config import DPRConfig as DPRConfig
    from rag_core.config import PretrainedConfig as PretrainedConfig
    from rag_core.config import RagConfig as RagConfig
    from rag_core.config import T5Config as T5Config
    from rag_core.generation import GenerationConfig as GenerationConfig
    from rag_core.knowledge import KnowledgeBase as KnowledgeBase
    from rag_core.knowledge import build_knowledge_base as build_knowledge_base
    from rag_core.outputs import Answer as Answer
    from rag_core.outputs import Citation as Citation
    from rag_core.outputs import GenerateOutput as GenerateOutput
    from rag_core.outputs import Hit as Hit
    from rag_core.outputs import Passage as Passage
    from rag_core.outputs import RetrievAugLMMarginOutput as RetrievAugLMMarginOutput
    from rag_core.outputs import RetrievAugLMOutput as RetrievAugLMOutput
    from rag_core.retrieval import Index as Index
    from rag_core.retrieval import RagRetriever as RagRetriever
    from rag_core.tokenization import AutoTokenizer as AutoTokenizer
    from rag_core.tokenization import BartTokenizer as BartTokenizer
    from rag_core.tokenization import BartTokenizerFast as BartTokenizerFast
    from rag_core.tokenization import BatchEncoding as BatchEncoding
    from rag_core.tokenization import BertTokenizer as BertTokenizer
    from rag_core.tokenization import BertTokenizerFast as BertTokenizerFast
    from rag_core.tokenization import (
        DPRContextEncoderTokenizer as DPRContextEncoderTokenizer,
    )
    from rag_core.tokenization import (
        DPRContextEncoderTokenizerFast as DPRContextEncoderTokenizerFast,
    )
    from rag_core.tokenization import (
        DPRQuestionEncoderTokenizer as DPRQuestionEncoderTokenizer,
    )
    from rag_core.tokenization import (
        DPRQuestionEncoderTokenizerFast as DPRQuestionEncoderTokenizerFast,
    )
    from rag_core.tokenization import RagTokenizer as RagTokenizer
    from rag_core.tokenization import T5Tokenizer as T5Tokenizer
    from rag_core.tokenization import T5TokenizerFast as T5TokenizerFast
    from rag_core.tokenization import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "config": [
        "AutoConfig",
        "BartConfig",
        "BertConfig",
        "DPRConfig",
        "PretrainedConfig",
        "RagConfig",
        "T5Config",
    ],
    "tokenization": [
        "AutoTokenizer",
        "BartTokenizer",
        "BartTokenizerFast",
        "BatchEncoding",
        "BertTokenizer",
        "BertTokenizerFast",
        "DPRContextEncoderTokenizer",
        "DPRContextEncoderTokenizerFast",
        "DPRQuestionEncoderTokenizer",
        "DPRQuestionEncoderTokenizerFast",
        "RagTokenizer",
        "T5Tokenizer",
        "T5TokenizerFast",
        "Tokenizer",
    ],
    "retrieval": ["Index", "RagRetriever"],
    "knowledge": ["KnowledgeBase", "build_knowledge_base"],
    "generation": ["GenerationConfig"],
    "outputs": [
        "Answer",
        "Citation",
        "GenerateOutput",
        "Hit",
        "Passage",
        "RetrievAugLMMarginOutput",
        "RetrievAugLMOutput",
    ],
}

__all__ = ["__version__", *sorted(name for names in _HOMES.values() for name in names)]

if not TYPE_CHECKING:  # or a checker would let every name pass
    __getattr__, __dir__, _ = lazily(__name__, _HOMES)
