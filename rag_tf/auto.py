"""`AutoModel` and `AutoModelForSeq2SeqLM`: the class is chosen by the config."""

from __future__ import annotations

from typing import ClassVar

from rag_core.config import AutoClass
from rag_tf.bart import BartForConditionalGeneration
from rag_tf.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder
from rag_tf.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration
from rag_tf.t5 import T5ForConditionalGeneration


class AutoModel(AutoClass):
    """The encoder or RAG model of a folder or repository.

    DPR, BERT (whose element 0 is its pooled vector), RAG.
    """

    classes: ClassVar = {
        "bert": (BertEncoder,),
        "dpr": (DPRQuestionEncoder, DPRContextEncoder),
        "rag": (RagModel, RagTokenForGeneration, RagSequenceForGeneration),
    }


class AutoModelForSeq2SeqLM(AutoClass):
    """The generator of a folder or repository.

    BART, T5, or a RAG head (RAG-Token where none is named).
    """

    classes: ClassVar = {
        "bart": (BartForConditionalGeneration,),
        "t5": (T5ForConditionalGeneration,),
        "rag": (RagTokenForGeneration, RagSequenceForGeneration),
    }
