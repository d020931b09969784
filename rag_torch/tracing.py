"""A head run on NumPy arrays, for `rag_core.parity` to record its stages: PyTorch's part."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.backends import to_numpy
from rag_core.parity import TracerBase
from rag_torch import marginalize
from rag_torch.weights import named_tensors, tied_names


class Tracer(TracerBase):
    """See `rag_core.parity.TracerBase`."""

    backend = "torch"
    version = torch.__version__
    math = marginalize

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        ties = tied_names(self.model)
        state = self.model.state_dict()
        with torch.no_grad():
            for name, array in arrays.items():
                if name not in ties:
                    state[name].copy_(torch.from_numpy(np.array(array)))

    def tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(array))
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(self.model.dtype)

    def run(self, inputs: Mapping[str, Any], gradients: bool) -> tuple[Any, dict[str, np.ndarray]]:
        with torch.set_grad_enabled(gradients):
            out = self.model(**inputs)
        if not gradients:
            return out, {}
        named = {name: tensor for name, tensor in named_tensors(self.model) if tensor.requires_grad}
        weights = list(named.values())
        slopes = torch.autograd.grad(out.loss.sum(), weights, allow_unused=True)
        arrays = {}
        for name, weight, slope in zip(named, weights, slopes, strict=True):
            # A weight that the loss does not reach has no gradient.
            if slope is None:
                slope = torch.zeros_like(weight)
            arrays[name] = to_numpy(slope)
        return out, arrays

    def without_gradients(self) -> AbstractContextManager[Any]:
        return torch.no_grad()
