"""The framework-neutral half of dualrag: every decision of Retrieval-Augmented Generation, in NumPy
and plain Python.

Lewis et al. 2020, arXiv 2005.11401. Names load on first use, so importing this package costs
nothing.
"""

from __future__ import annotations

from rag_core.lazy import lazily

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
    "tokenization": ["AutoTokenizer", "BatchEncoding", "RagTokenizer", "Tokenizer"],
    "tokenization.tokenizer": [
        *(
            "BartTokenizer",
            "BartTokenizerFast",
            "BertTokenizer",
            "BertTokenizerFast",
            "T5Tokenizer",
            "T5TokenizerFast",
        ),
        *("DPRContextEncoderTokenizer", "DPRContextEncoderTokenizerFast"),
        *("DPRQuestionEncoderTokenizer", "DPRQuestionEncoderTokenizerFast"),
    ],
    "retrieval.retriever": ["RagRetriever"],
    "retrieval.index": ["Index"],
    "knowledge": ["KnowledgeBase", "build_knowledge_base"],
    "generation": ["GenerationConfig"],
    "outputs": [
        "Answer",
        "GenerateOutput",
        "Passage",
        "RetrievAugLMMarginOutput",
        "RetrievAugLMOutput",
    ],
}

__getattr__, __dir__, _names = lazily(__name__, _HOMES)
__all__ = ["__version__", *_names]
