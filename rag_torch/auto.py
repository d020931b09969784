"""`AutoModel` and `AutoModelForSeq2SeqLM`: the class is chosen by the config."""

from __future__ import annotations

from typing import ClassVar

from rag_core.modeling import AutoModelBase, AutoModelForSeq2SeqLMBase, named_classes
from rag_torch.bert import PooledEncoder
from rag_torch.components import NETWORKS
from rag_torch.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.seq2seq import Generator

Head = RagTokenForGeneration | RagSequenceForGeneration

_CLASSES = {
    **NETWORKS,
    "RagModel": RagModel,
    "RagSequenceForGeneration": RagSequenceForGeneration,
    "RagTokenForGeneration": RagTokenForGeneration,
}


class AutoModel(AutoModelBase[PooledEncoder | RagModel | Head]):
    classes: ClassVar = named_classes(AutoModelBase.names, _CLASSES)


class AutoModelForSeq2SeqLM(AutoModelForSeq2SeqLMBase[Generator | Head]):
    classes: ClassVar = named_classes(AutoModelForSeq2SeqLMBase.names, _CLASSES)
