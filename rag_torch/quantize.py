"""int8 linear maps for answers on a CPU: weights rounded once, what goes in at each call, both row
by row.

Rounded are the networks' linear maps, the vocabulary's included; tables, norms and attention stay
as they are. A row's result does not depend on the rows beside it. Letters: R rows, I inputs, O
outputs.
"""

from __future__ import annotations

import copy
import functools
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

# Of uint8, which stands for 0: oneDNN is fast for unsigned inputs only.
_MIDDLE = 128
# A row of zeros has a scale, too.
_TINY = torch.finfo(torch.float32).tiny
_NO_INT8 = (
    "this processor and build of PyTorch have no exact int8 products (oneDNN's, with AVX-512 VNNI "
    "or AMX): leave the model in float32"
)


class Int8Linear(nn.Module):
    """A linear map in int8, for a CPU and without gradients.

    Args:
        linear: the map to round; it is left as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (O, I)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        largest = weight.abs().amax(dim=1)  # (O,)
        scale = (largest / 127).clamp_min(_TINY)
        whole = (weight / scale[:, None]).round_().to(torch.int8)  # (O, I)
        self.product = Product(whole, scale)
        self.bias = None
        if linear.bias is not None:
            self.bias = linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) of the same type.

        Raises:
            RuntimeError: `x` is not on the CPU, or wants a gradient.
        """
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            raise RuntimeError(
                "int8 layers compute on the CPU and cannot be trained: take the model that "
                "quantized() was given, or call this one under torch.no_grad()"
            )
        rows = x.reshape(-1, self.in_features).float()  # (R, I)
        if not len(rows):
            return x.new_zeros(*x.shape[:-1], self.out_features)
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)  # (R, 1)
        scale = (largest / 127).clamp_min_(_TINY)
        # The conversion cuts off, so that half more makes it round.
        whole = (rows / scale).add_(_MIDDLE + 0.5).to(torch.uint8)
        output = self.product(whole)  # (R, O)
        if self.bias is None:
            output.mul_(scale)
        else:
            output = torch.addcmul(self.bias, output, scale)
        output = output.reshape(*x.shape[:-1], self.out_features)  # (..., O)
        return output.to(x.dtype)


class Product:
    """oneDNN's product of rows in uint8, 128 for 0, and a matrix in int8.

    Args:
        matrix: (O, I).
        scale: (O,), of its rows.
    """

    def __init__(self, matrix: Tensor, scale: Tensor) -> None:
        packed = torch.ops.onednn.qlinear_prepack(matrix, None)
        zero = torch.zeros(len(matrix), dtype=torch.int64)
        middle = torch.full((1,), _MIDDLE, dtype=torch.int32)
        # Each with its scales and what stands for 0.
        self.matrix = (packed, scale, zero)
        self.rows = (torch.ones(()), middle)

    def __call__(self, rows: Tensor) -> Tensor:
        """(R, I) -> (R, O) in float32."""
        return torch.ops.onednn.qlinear_pointwise.tensor(
            rows, *self.rows, *self.matrix, None, 1.0, 0, torch.float32, "none", [], ""
        )


@functools.cache
def has_int8() -> bool:
    """Whether int8 products exist here and are exact.

    Without VNNI they go through 16 bits, and large sums are cut.
    """
    try:
        rows = torch.full((1, 64), 255, dtype=torch.uint8)
        matrix = torch.full((16, 64), 127, dtype=torch.int8)
        product = Product(matrix, torch.ones(16))
        sums = product(rows)  # (1, 16)
    except (RuntimeError, AttributeError):
        return False
    return bool((sums == 127 * 127 * 64).all())


def quantized(model: Model) -> Model:
    """A copy of a model with its linear maps in int8; it can answer, and not be trained or saved.

    All else (tables, norms, the retriever) is the given model's own, which stays as it is: let go
    of it, and its float32 maps leave the memory.

    Args:
        model: any model on the CPU; of a RAG model question encoder and generator are rounded.

    Raises:
        ValueError: the model is on another device.
        RuntimeError: no int8 products here.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError(
            "int8 layers compute on the CPU, and the model is elsewhere: load it with device='cpu'"
        )
    if not has_int8():
        raise RuntimeError(_NO_INT8)
    # What a copy is to hold in the place of each of these objects.
    instead: dict[int, Any] = {
        id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())
    }
    for module in model.modules():
        # Not a subclass: it computes something else.
        if type(module) is nn.Linear:
            instead[id(module)] = Int8Linear(module)
        retriever = getattr(module, "retriever", None)
        if retriever is not None:
            instead[id(retriever)] = retriever
    return copy.deepcopy(model, instead).eval()
