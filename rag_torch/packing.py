"""Real tokens side by side, without the padding between them: what an encoder computes token by
token needs no padding.

Only attention wants rows: it is called for each of them (`PackedMask`).
Letters: R rows, S positions, P real tokens, H heads, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rag_torch.attention import PackedMask, lengths_if_padded_right

# Measured: attention called once more costs a CPU as much as a layer's products of this many
# numbers.
_CALL = 2**17


class Packing:
    """Where the real tokens of a batch are.

    Args:
        mask: bool (R, S), True = a real token.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        self._shape = mask.shape
        self._real = mask.flatten().nonzero()[:, 0]  # (P,)

    @classmethod
    def of(cls, mask: Tensor | None, width: int) -> Packing | None:
        """How rows with this mask (R, S) are packed for an encoder.

        None where a layer of that width gains nothing.
        """
        if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        mask = mask.bool()
        lengths = lengths_if_padded_right(mask)
        if lengths is None:
            return None
        padding = mask.numel() - int(lengths.sum())
        if padding * width**2 <= _CALL * len(mask):
            return None
        return cls(mask)

    def pack(self, x: Tensor) -> Tensor:
        """(R, S, d) -> (1, P, d)."""
        tokens = x.flatten(0, 1)  # (R*S, d)
        return tokens[self._real][None]

    def padded(self, x: Tensor) -> Tensor:
        """(1, P, d) -> (R, S, d), with zeros for padding."""
        zeros = x.new_zeros(self._shape.numel(), x.shape[2])
        tokens = zeros.index_copy(0, self._real, x[0])  # (R*S, d)
        return tokens.unflatten(0, self._shape)

    def mask(self, position_bias: Tensor | None = None) -> PackedMask:
        """Lets tokens attend to their own row, with a learned bias (1, H, S, S) or without.

        Each row must be real tokens, one at least, and then padding.
        """
        lengths = self._mask.sum(1).tolist()
        return PackedMask(None, position_bias, lengths=tuple(lengths))
