"""Passage encoders as indexing uses them, run by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rag_core.knowledge import CrossEncoderBase, PassageEncoderBase
from rag_torch.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder


class PassageEncoder(PassageEncoderBase):
    return_tensors = "pt"
    dpr_class = DPRContextEncoder
    question_class = DPRQuestionEncoder
    bert_class = BertEncoder

    @torch.inference_mode()
    def vectors(self, inputs: Mapping[str, Any]) -> np.ndarray:
        placed = {name: value.to(self.model.device) for name, value in inputs.items()}
        return self.model(**placed)[0].float().cpu().numpy()


class CrossEncoder(CrossEncoderBase):
    encoder_class = PassageEncoder


load_encoder = PassageEncoder.from_pretrained
load_cross_encoder = CrossEncoder.from_pretrained
