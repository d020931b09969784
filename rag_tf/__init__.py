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

_HOMES = {
    "rag": ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"],
    "bart": ["BartForConditionalGeneration"],
    "t5": ["T5ForConditionalGeneration"],
    "bert": ["BertEncoder", "DPRContextEncoder", "DPRQuestionEncoder"],
    "auto": ["AutoModel", "AutoModelForSeq2SeqLM"],
    "encoders": ["load_encoder"],
    "export": ["export_saved_model"],
    "graph": ["clear_graphs", "graph_memory", "once", "set_graph_memory"],
    "training": ["TrainingConfig", "train", "train_files"],
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


def __getattr__(name: str) -> Any:
    if name in _ALIASES:
        value = __getattr__(_ALIASES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _CORE:
        value = getattr(rag_core, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
