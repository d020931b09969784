"""What the RAG models add to PyTorch's pretrained models: the parts they are put together from."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

import rag_torch
from rag_core.modeling import RagComponents, networks_of
from rag_torch import marginalize
from rag_torch.contexts import CHECKS
from rag_torch.engine import ENGINE
from rag_torch.foreign import ForeignGenerator
from rag_torch.pretrained import PretrainedModel

NETWORKS = networks_of(rag_torch)


class RagPretrained(RagComponents[Tensor], PretrainedModel):
    """Loading, saving and putting together, the same for RagModel and both heads."""

    _part_classes: ClassVar = NETWORKS
    _adapter_class = ForeignGenerator
    _checks = CHECKS
    _engine = ENGINE
    _math = marginalize

    def _check_places(self, **tensors: Any) -> None:
        self._checks.check_places(model=next(self.parameters()), **tensors)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}

    def _load(self, name_or_path: Any, hub: Any, dtype: Any, device: Any, *weights: Any) -> None:
        super()._load(name_or_path, hub, dtype, device, *weights)
        if device is not None:
            # Moves what modules of other libraries keep outside of their state dict.
            self.to(device)
