"""int8 linear maps for answers on a CPU: weights rounded once, row by row, what goes in at each call, as a whole.

Rounded are the networks' linear maps, the vocabulary's included; tables, norms and attention stay as they are. It is
worth while where the processor multiplies int8 (AVX-512 VNNI, AMX); nothing here asks for more than PyTorch has.
Letters: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MIDDLE = 128  # of uint8, which stands for 0: oneDNN is fast for unsigned inputs only


class Int8Linear(nn.Module):
    """A linear map in int8, for a CPU and without gradients.

    Args:
        linear: the map to round; it is left as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (O, I)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)  # (O,)
        rounded = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zero = torch.zeros(len(weight), dtype=torch.int64)
        self.middle = torch.full((1,), _MIDDLE, dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) of the same type.

        Raises:
            RuntimeError: `x` is not on the CPU, or wants a gradient.
        """
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            raise RuntimeError(
                "int8 layers compute on the CPU and cannot be trained: load the model again without them, or call it "
                "under torch.no_grad()"
            )
        rows = x.reshape(-1, self.in_features).float()  # (R, I)
        if not len(rows):
            return x.new_zeros(*x.shape[:-1], self.out_features)
        scale = (torch.linalg.vector_norm(rows, torch.inf) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        # The conversion cuts off, so that half more makes it round.
        whole = torch.add(_MIDDLE + 0.5, rows / scale).to(torch.uint8)
        packed = self.packed, self.scale, self.zero, self.bias
        output = torch.ops.onednn.qlinear_pointwise.tensor(
            whole, scale, self.middle, *packed, 1.0, 0, torch.float32, "none", [], ""
        )
        return output.reshape(*x.shape[:-1], self.out_features).to(x.dtype)  # (..., O)


def quantized(model: Any) -> Any:
    """The same model with its linear maps in int8, changed in place; it can answer, and not be trained or saved.

    Args:
        model: any model on the CPU; of a RAG model question encoder and generator are rounded.

    Raises:
        ValueError: the model is on another device.
        RuntimeError: this build of PyTorch has no int8 products (they are oneDNN's, for x86).
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("int8 layers compute on the CPU, and the model is elsewhere: load it with device='cpu'")
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        raise RuntimeError("this build of PyTorch has no int8 products (oneDNN's, for x86): leave the model in float32")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model.eval()
