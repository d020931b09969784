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

_HOMES = {
    "rag": ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"],
    "bart": ["BartForConditionalGeneration"],
    "t5": ["T5ForConditionalGeneration"],
    "bert": ["BertEncoder", "DPRContextEncoder", "DPRQuestionEncoder"],
    "auto": ["AutoModel", "AutoModelForSeq2SeqLM"],
    "encoders": ["load_encoder"],
    "quantize": ["quantized"],
    "training": ["TrainingConfig", "train", "train_files"],
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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _CORE:
        value = getattr(rag_core, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
