"""How PyTorch looks at what a caller hands a model: tensors, ids, masks, contexts and scores.

The checks over it stand in `rag_core.modeling.InputChecks`; here they go by their names.
Letters: R rows, S context length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rag_core import arguments
from rag_core.arguments import TensorFacts
from rag_core.modeling import ContextsBase, InputChecks
from rag_torch.marginalize import widen


def used_length(mask: Tensor) -> int:
    """How many columns of a mask (R, S) are left without those on the right that are padding in
    every row; 1 or more.

    Where a value can't be read (torch.compile, the meta device), all of them.
    """
    if mask.is_meta or torch.compiler.is_compiling():
        return mask.shape[1]
    used = mask.bool().any(dim=0).nonzero()
    if not len(used):
        return 1
    return int(used[-1]) + 1


class Contexts(ContextsBase):
    """See `rag_core.modeling.ContextsBase`."""

    used_length = staticmethod(used_length)


class TensorChecks(InputChecks):
    """See `rag_core.modeling.InputChecks`."""

    contexts = Contexts
    widen = staticmethod(widen)

    def tensor(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(value).__name__}: use "
                "return_tensors='pt'"
            )
        return value

    def to_device(self, value: Any, like: Tensor | None = None) -> Tensor:
        tensor = torch.as_tensor(value)
        if like is None:
            return tensor
        return tensor.to(like.device)

    def facts(self, name: str, value: Any) -> TensorFacts:
        value = self.tensor(name, value)
        kind = "i"
        if value.is_floating_point():
            kind = "f"
        elif value.is_complex():
            kind = "c"
        elif value.dtype == torch.bool:
            kind = "b"
        dtype = str(value.dtype).removeprefix("torch.")
        return TensorFacts(name, tuple(value.shape), kind, dtype)

    def can_look(self) -> bool:
        # torch.compile can't branch on a value.
        return not torch.compiler.is_compiling()

    def looking_is_free(self, value: Tensor) -> bool:
        return value.device.type == "cpu"

    def bounds(self, tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
        if any(tensor.is_meta or not tensor.numel() for tensor in tensors):
            return []
        if all(self.looking_is_free(tensor) for tensor in tensors):
            # Five microseconds a tensor less than by way of one tensor, where nothing is waited for.
            pairs = [tensor.aminmax() for tensor in tensors]
            return [(low.item(), high.item()) for low, high in pairs]
        ends = [end for tensor in tensors for end in tensor.aminmax()]
        if len({end.dtype for end in ends}) > 1:
            ends = [end.double() for end in ends]
        numbers = torch.stack(ends).tolist()
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def has_finite_rows(self, scores: Tensor) -> bool:
        if scores.is_meta:
            return True
        # The largest of a row is NaN where any is.
        largest = scores.amax(1)
        return bool(largest.isfinite().all())

    def masked_fill(self, x: Tensor, mask: Tensor, value: int) -> Tensor:
        return x.masked_fill(mask, value)

    def table_rows(self, table: Any) -> int:
        return table.weight.shape[0]

    def check_places(self, **tensors: Any) -> None:
        places = {}
        for name, value in tensors.items():
            device = getattr(value, "device", None)
            if device is not None:
                places[name] = torch.device(device).type
        arguments.check_places(**places)


CHECKS = TensorChecks()

facts = CHECKS.facts
check_text = CHECKS.check_text
checked_ids = CHECKS.checked_ids
checked_mask = CHECKS.checked_mask
checked_questions = CHECKS.checked_questions
table_size = CHECKS.table_size
