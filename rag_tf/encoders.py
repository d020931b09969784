"""Passage encoders as indexing uses them, run by TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.knowledge import CrossEncoderBase, PassageEncoderBase
from rag_tf.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder


class PassageEncoder(PassageEncoderBase):
    return_tensors = "tf"
    dpr_class = DPRContextEncoder
    question_class = DPRQuestionEncoder
    bert_class = BertEncoder

    def vectors(self, inputs: Mapping[str, Any]) -> np.ndarray:
        return tf.cast(self.model(**inputs)[0], tf.float32).numpy()


class CrossEncoder(CrossEncoderBase):
    encoder_class = PassageEncoder


load_encoder = PassageEncoder.from_pretrained
load_cross_encoder = CrossEncoder.from_pretrained
