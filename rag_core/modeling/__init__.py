"""What model classes of both frameworks share: mixins, written once, around their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.modeling.answers import Found as Found
    from rag_core.modeling.answers import Reading as Reading
    from rag_core.modeling.answers import answer as answer
    from rag_core.modeling.answers import find_passages as find_passages
    from rag_core.modeling.auto import AutoModelBase as AutoModelBase
    from rag_core.modeling.auto import AutoModelForSeq2SeqLMBase as AutoModelForSeq2SeqLMBase
    from rag_core.modeling.auto import named_classes as named_classes
    from rag_core.modeling.auto import networks_of as networks_of
    from rag_core.modeling.citations import citations_of as citations_of
    from rag_core.modeling.components import RagComponents as RagComponents
    from rag_core.modeling.encoder import BertBase as BertBase
    from rag_core.modeling.encoder import DPRContextBase as DPRContextBase
    from rag_core.modeling.encoder import DPRQuestionBase as DPRQuestionBase
    from rag_core.modeling.encoder import EncoderCall as EncoderCall
    from rag_core.modeling.encoder import PooledEncoderBase as PooledEncoderBase
    from rag_core.modeling.foreign import ForeignEncoderBase as ForeignEncoderBase
    from rag_core.modeling.foreign import ForeignGeneratorBase as ForeignGeneratorBase
    from rag_core.modeling.foreign import ForeignModule as ForeignModule
    from rag_core.modeling.foreign import ForeignStateBase as ForeignStateBase
    from rag_core.modeling.foreign import accepted as accepted
    from rag_core.modeling.foreign import checked_vectors as checked_vectors
    from rag_core.modeling.foreign import module_config as module_config
    from rag_core.modeling.foreign import offers_decoding as offers_decoding
    from rag_core.modeling.generator import BartGenerator as BartGenerator
    from rag_core.modeling.generator import DecoderBase as DecoderBase
    from rag_core.modeling.generator import GeneratorBase as GeneratorBase
    from rag_core.modeling.generator import GeneratorCall as GeneratorCall
    from rag_core.modeling.generator import Steps as Steps
    from rag_core.modeling.generator import T5Generator as T5Generator
    from rag_core.modeling.generator import batches_by_length as batches_by_length
    from rag_core.modeling.generator import check_positions as check_positions
    from rag_core.modeling.generator import traced_output as traced_output
    from rag_core.modeling.heads import RagHead as RagHead
    from rag_core.modeling.heads import RagSequenceHead as RagSequenceHead
    from rag_core.modeling.heads import RagTokenHead as RagTokenHead
    from rag_core.modeling.inputs import ContextsBase as ContextsBase
    from rag_core.modeling.inputs import InputChecks as InputChecks
    from rag_core.modeling.pretrained import PretrainedBase as PretrainedBase
    from rag_core.modeling.rag_model import RagModelBase as RagModelBase

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "answers": ["Found", "Reading", "answer", "find_passages"],
        "auto": ["AutoModelBase", "AutoModelForSeq2SeqLMBase", "named_classes", "networks_of"],
        "citations": ["citations_of"],
        "components": ["RagComponents"],
        "encoder": [
            "BertBase",
            "DPRContextBase",
            "DPRQuestionBase",
            "EncoderCall",
            "PooledEncoderBase",
        ],
        "foreign": [
            "ForeignEncoderBase",
            "ForeignGeneratorBase",
            "ForeignModule",
            "ForeignStateBase",
            "accepted",
            "checked_vectors",
            "module_config",
            "offers_decoding",
        ],
        "generator": [
            "BartGenerator",
            "DecoderBase",
            "GeneratorBase",
            "GeneratorCall",
            "Steps",
            "T5Generator",
            "batches_by_length",
            "check_positions",
            "traced_output",
        ],
        "heads": ["RagHead", "RagSequenceHead", "RagTokenHead"],
        "inputs": ["ContextsBase", "InputChecks"],
        "pretrained": ["PretrainedBase"],
        "rag_model": ["RagModelBase"],
    },
)
