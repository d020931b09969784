"""Passage encoders as indexing uses them, run by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rag_core.knowledge import PassageEncoderBase
from rag_torch.bert import BertEncoder, DPRContextEncoder


class PassageEncoder(PassageEncoderBase):
    """See `rag_core.knowledge.PassageEncoderBase`."""

    return_tensors = "pt"

    @torch.inference_mode()
    def vectors(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """The network's vectors (B, D) of a tokenized batch, as float32."""
        placed = {name: value.to(self.model.device) for name, value in inputs.items()}
        return self.model(**placed)[0].float().cpu().numpy()


def load_encoder(
    name_or_path: str | Path, *, dtype: Any = None, device: Any = None, **hub: Any
) -> PassageEncoder:
    """The document encoder of a folder or repository.

    See `rag_core.knowledge.PassageEncoderBase.from_pretrained`.
    """
    return PassageEncoder.from_pretrained(
        name_or_path, DPRContextEncoder, BertEncoder, dtype=dtype, device=device, **hub
    )
