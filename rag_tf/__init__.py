"""The TensorFlow half of dualrag. `from rag_tf import AutoTokenizer, RagRetriever,
RagTokenForGeneration`.

Names load on first use; `rag_torch` is its mirror image and offers the same names. The names that
transformers gave its TensorFlow classes (`TFRagModel`, ...) are the same objects.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rag_core

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

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
    from rag_tf.auto import AutoModel as AutoModel
    from rag_tf.auto import AutoModelForSeq2SeqLM as AutoModelForSeq2SeqLM
    from rag_tf.bart import BartForConditionalGeneration as BartForConditionalGeneration
    from rag_tf.bert import BertEncoder as BertEncoder
    from rag_tf.bert import DPRContextEncoder as DPRContextEncoder
    from rag_tf.bert import DPRQuestionEncoder as DPRQuestionEncoder
    from rag_tf.encoders import load_cross_encoder as load_cross_encoder
    from rag_tf.encoders import load_encoder as load_encoder
    from rag_tf.export import export_saved_model as export_saved_model
    from rag_tf.graph import clear_graphs as clear_graphs
    from rag_tf.graph import graph_memory as graph_memory
    from rag_tf.graph import once as once
    from rag_tf.graph import set_graph_memory as set_graph_memory
    from rag_tf.keras_callbacks import ReindexCallback as ReindexCallback
    from rag_tf.rag import RagModel as RagModel
    from rag_tf.rag import RagSequenceForGeneration as RagSequenceForGeneration
    from rag_tf.rag import RagTokenForGeneration as RagTokenForGeneration
    from rag_tf.t5 import T5ForConditionalGeneration as T5ForConditionalGeneration
    from rag_tf.training import measure_files as measure_files
    from rag_tf.training import train as train
    from rag_tf.training import train_files as train_files

    TFRetrievAugLMMarginOutput = RetrievAugLMMarginOutput
    TFRetrievAugLMOutput = RetrievAugLMOutput
    TFAutoModel = AutoModel
    TFAutoModelForSeq2SeqLM = AutoModelForSeq2SeqLM
    TFBartForConditionalGeneration = BartForConditionalGeneration
    TFDPRContextEncoder = DPRContextEncoder
    TFDPRQuestionEncoder = DPRQuestionEncoder
    TFRagModel = RagModel
    TFRagSequenceForGeneration = RagSequenceForGeneration
    TFRagTokenForGeneration = RagTokenForGeneration
    TFT5ForConditionalGeneration = T5ForConditionalGeneration

_HOMES = {
    "rag": ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"],
    "bart": ["BartForConditionalGeneration"],
    "t5": ["T5ForConditionalGeneration"],
    "bert": ["BertEncoder", "DPRContextEncoder", "DPRQuestionEncoder"],
    "auto": ["AutoModel", "AutoModelForSeq2SeqLM"],
    "encoders": ["load_cross_encoder", "load_encoder"],
    "export": ["export_saved_model"],
    "graph": ["clear_graphs", "graph_memory", "once", "set_graph_memory"],
    "keras_callbacks": ["ReindexCallback"],
    "training": ["TrainingConfig", "measure_files", "train", "train_files"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_CORE = [name for name in rag_core.__all__ if name != "__version__"]
_ALIASED = [
    *("RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"),
    *(
        "BartForConditionalGeneration",
        "T5ForConditionalGeneration",
        "DPRQuestionEncoder",
        "DPRContextEncoder",
    ),
    *("AutoModel", "AutoModelForSeq2SeqLM", "RetrievAugLMOutput", "RetrievAugLMMarginOutput"),
]
_ALIASES = {f"TF{name}": name for name in _ALIASED}

__version__ = rag_core.__version__
__all__ = ["__version__", "as_tensor", *sorted([*_HOME, *_CORE, *_ALIASES])]


def _keras_backend() -> tuple[str, str]:
    """The backend that Keras has or will have, and where that is said.

    As Keras itself reads it, without Keras.
    """
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        return keras.config.backend(), "Keras is imported already"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "the environment variable KERAS_BACKEND"
    home = Path("~").expanduser()
    folder = (
        os.environ.get("KERAS_HOME")
        or (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"
    )
    file = Path(folder).expanduser() / "keras.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("backend", "tensorflow"), str(file)
    except (OSError, ValueError, AttributeError):
        return "tensorflow", "Keras' default"


def _check_keras() -> None:
    backend, source = _keras_backend()
    if backend != "tensorflow":
        raise ImportError(
            "rag_tf needs Keras with its tensorflow backend, but Keras is told to use "
            f"{backend!r} ({source}). Set KERAS_BACKEND=tensorflow in the environment before "
            "Python starts, or use rag_torch."
        )


_check_keras()


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """A TensorFlow tensor of the same dtype and values."""
    import tensorflow as tf

    return tf.constant(array)


if not TYPE_CHECKING:  # or a checker would let every name pass

    def __getattr__(name: str) -> Any:
        if name in _ALIASES:
            value = __getattr__(_ALIASES[name])
        elif name in _HOME:
            from rag_core.backends import check_framework

            check_framework("tf")
            value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        elif name in _CORE:
            value = getattr(rag_core, name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
