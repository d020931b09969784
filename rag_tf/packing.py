"""Real tokens side by side, without the padding between them: what an encoder computes token by
token needs no padding.

Only attention wants rows. So tokens are spread over rows before it and packed again after it.
Letters: R rows, S positions, L the positions up to the last real token, P real tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

# Padding that is worth the way there and back: so many positions,
_PADDING = 256
# and such a share of all.
_SHARE = 0.1


def worth_packing(mask: Any) -> bool:
    """Whether a mask (R, S) leaves out enough to compute without padding.

    Never within a graph, which has no values.
    """
    if mask is None or not tf.executing_eagerly():
        return False
    positions = int(np.prod(mask.shape))
    real = int(np.count_nonzero(mask))
    return real > 0 and positions - real >= max(_PADDING, _SHARE * positions)


class Packing:
    """Where the real tokens of a batch are.

    Args:
        mask: bool (R, S), True = a real token; at least one is.

    Attributes:
        mask: (R, L).
        positions: (P,), the column of each token.
    """

    def __init__(self, mask: Tensor) -> None:
        self._shape = tf.shape(mask)
        self._places = tf.where(mask)  # (P, 2)
        self.positions = self._places[:, 1]
        length = tf.reduce_max(self.positions) + 1
        self.mask = mask[:, :length]
        self._rows = tf.shape(self.mask)
        # (P,), in the rows one after another
        self._flat = self._places[:, 0] * length + self.positions
        numbers = tf.range(1, tf.shape(self._flat)[0] + 1)
        size = tf.cast(self._rows[:1] * self._rows[1:], tf.int64)
        # (R*L,), 0 = padding
        self._source = tf.scatter_nd(self._flat[:, None], numbers, size)

    def pick(self, x: Tensor) -> Tensor:
        """(R, S, ...) -> (P, ...)."""
        return tf.gather_nd(x, self._places)

    def spread(self, x: Tensor) -> Tensor:
        """(P, d) -> (R, L, d); padding gets some token's numbers, for a mask to leave out."""
        source = tf.maximum(self._source - 1, 0)
        spread = _with_gradient(x, lambda x: tf.gather(x, source), self._packed)
        return self._rowwise(spread)

    def pack(self, x: Tensor) -> Tensor:
        """(R, L, d) -> (P, d)."""
        flat = tf.reshape(x, (-1, x.shape[-1]))
        return _with_gradient(flat, self._packed, self._zero_spread)

    def padded(self, x: Tensor) -> Tensor:
        """(P, d) -> (R, S, d), with zeros for padding."""
        rows = self._rowwise(_with_gradient(x, self._zero_spread, self._packed))
        return tf.pad(rows, ((0, 0), (0, self._shape[1] - self._rows[1]), (0, 0)))

    def _packed(self, x: Tensor) -> Tensor:
        return tf.gather(x, self._flat)  # (P, d)

    def _zero_spread(self, x: Tensor) -> Tensor:
        return tf.gather(tf.pad(x, ((1, 0), (0, 0))), self._source)  # (R*L, d)

    def _rowwise(self, x: Tensor) -> Tensor:
        return tf.reshape(x, (self._rows[0], self._rows[1], x.shape[-1]))


def _with_gradient(
    x: Tensor, function: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor]
) -> Tensor:
    # TensorFlow's own gradient of a gather adds rows up one by one; here no two tokens share a
    # place.
    @tf.custom_gradient
    def moved(x: Tensor) -> Any:
        return function(x), gradient

    return moved(x)
