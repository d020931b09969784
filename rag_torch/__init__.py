"""The PyTorch half of dualrag. `from rag_torch import AutoTokenizer, RagRetriever,
RagTokenForGeneration`.

Names load on first use; `rag_tf` is its mirror image and offers the same names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import rag_core

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rag_core import Answer as Answer
    from rag_core import AutoConfig as AutoConfig
    from rag_core import AutoTokenizer as AutoTokenizer
    from rag_core import BartConfig as BartConfig
    from rag_core import BartTokenizer as BartTokenizer
    from rag_core import BartTokenizerFast as BartTokenizerFast
    from rag_core import BatchEncoding as BatchEncoding
    from rag_core import BertConfig as BertConfig
    from rag_core import BertTokenizer as BertTokenizer
    from rag_core import BertTokenizerFast as BertTokenizerFast
    from rag_core import Citation as Citation
    from rag_core import DPRConfig as DPRConfig
    from rag_core import DPRContextEncoderTokenizer as DPRContextEncoderTokenizer
    from rag_core import DPRContextEncoderTokenizerFast as DPRContextEncoderTokenizerFast
    from rag_core import DPRQuestionEncoderTokenizer as DPRQuestionEncoderTokenizer
    from rag_core import DPRQuestionEncoderTokenizerFast as DPRQuestionEncoderTokenizerFast
    from rag_core import GenerateOutput as GenerateOutput
    from rag_core import GenerationConfig as GenerationConfig
    from rag_core import Hit as Hit
    from rag_core import Index as Index
    from rag_core import KnowledgeBase as KnowledgeBase
    from rag_core import Passage as Passage
    from rag_core import PretrainedConfig as PretrainedConfig
    from rag_core import RagConfig as RagConfig
    from rag_core import RagRetriever as RagRetriever
    from rag_core import RagTokenizer as RagTokenizer
    from rag_core import RetrievAugLMMarginOutput as RetrievAugLMMarginOutput
    from rag_core import RetrievAugLMOutput as RetrievAugLMOutput
    from rag_core import T5Config as T5Config
    from rag_core import T5Tokenizer as T5Tokenizer
    from rag_core import T5TokenizerFast as T5TokenizerFast
    from rag_core import Tokenizer as Tokenizer
    from rag_core import build_knowledge_base as build_knowledge_base
    from rag_core.training import TrainingConfig as TrainingConfig
    from rag_torch.auto import AutoModel as AutoModel
    from rag_torch.auto import AutoModelForSeq2SeqLM as AutoModelForSeq2SeqLM
    from rag_torch.bart import BartForConditionalGeneration as BartForConditionalGeneration
    from rag_torch.bert import BertEncoder as BertEncoder
    from rag_torch.bert import DPRContextEncoder as DPRContextEncoder
    from rag_torch.bert import DPRQuestionEncoder as DPRQuestionEncoder
    from rag_torch.encoders import load_cross_encoder as load_cross_encoder
    from rag_torch.encoders import load_encoder as load_encoder
    from rag_torch.programs import export_program as export_program
    from rag_torch.quantize import quantized as quantized
    from rag_torch.rag import RagModel as RagModel
    from rag_torch.rag import RagSequenceForGeneration as RagSequenceForGeneration
    from rag_torch.rag import RagTokenForGeneration as RagTokenForGeneration
    from rag_torch.t5 import T5ForConditionalGeneration as T5ForConditionalGeneration
    from rag_torch.training import measure_files as measure_files
    from rag_torch.training import train as train
    from rag_torch.training import train_files as train_files

_HOMES = {
    "rag": ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"],
    "bart": ["BartForConditionalGeneration"],
    "t5": ["T5ForConditionalGeneration"],
    "bert": ["BertEncoder", "DPRContextEncoder", "DPRQuestionEncoder"],
    "auto": ["AutoModel", "AutoModelForSeq2SeqLM"],
    "encoders": ["load_cross_encoder", "load_encoder"],
    "programs": ["export_program"],
    "quantize": ["quantized"],
    "training": ["TrainingConfig", "measure_files", "train", "train_files"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_CORE = [name for name in rag_core.__all__ if name != "__version__"]

__version__ = rag_core.__version__
__all__ = ["__version__", "as_tensor", *sorted([*_HOME, *_CORE])]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A torch tensor of the same dtype and values.

    A NumPy array's memory is shared where torch can.
    """
    import torch

    if array.flags.writeable:
        return torch.from_numpy(array)
    return torch.tensor(array)


if not TYPE_CHECKING:  # or a checker would let every name pass

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            from rag_core.backends import check_framework

            check_framework("torch")
            value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        elif name in _CORE:
            value = getattr(rag_core, name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
