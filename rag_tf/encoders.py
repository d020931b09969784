"""Passage encoders as indexing uses them, run by TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.knowledge import PassageEncoderBase
from rag_tf.bert import BertEncoder, DPRContextEncoder


class PassageEncoder(PassageEncoderBase):
    """See `rag_core.knowledge.PassageEncoderBase`."""

    return_tensors = "tf"

    def vectors(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """The network's vectors (B, D) of a tokenized batch, as float32."""
        return tf.cast(self.model(**inputs)[0], tf.float32).numpy()


def load_encoder(
    name_or_path: str | Path, *, dtype: Any = None, device: Any = None, **hub: Any
) -> PassageEncoder:
    """The document encoder of a folder or repository.

    See `rag_core.knowledge.PassageEncoderBase.from_pretrained`.
    """
    return PassageEncoder.from_pretrained(
        name_or_path, DPRContextEncoder, BertEncoder, dtype=dtype, device=device, **hub
    )
