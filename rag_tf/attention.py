"""Activations, masks and attention: what every network here computes with.

All of it runs in graphs whose axes are open: lengths are tensors, only widths and numbers of heads
are read as numbers. Letters: R rows, T query positions, L key positions, S context length, H heads,
h width of a head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from rag_tf.modules import dropout as drop
from rag_tf.modules import outer, reshape, widen

Activation = Callable[[Tensor], Tensor]

# an array: turning a tuple into one takes longer, outside of graphs, than swapping the axes
_SWAP = np.array((0, 2, 1, 3), np.int32)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function (tf.nn.gelu's constants have float32's precision
    even in float64).
    """
    wide = widen(x)
    return tf.cast(0.5 * wide * (1.0 + tf.math.erf(wide * math.sqrt(0.5))), x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """The customary approximation of `gelu` by a tanh."""
    wide = widen(x)
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return tf.cast(0.5 * wide * (1.0 + tf.tanh(inner)), x.dtype)


def silu(x: Tensor) -> Tensor:
    """x times its sigmoid."""
    return x * tf.sigmoid(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "silu": silu,
    "swish": silu,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "linear": lambda x: x,
}


def activation(name: str) -> Activation:
    """The elementwise function a config names, e.g. `"gelu"`.

    Raises:
        ValueError: for a name that is not in `ACTIVATIONS`.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}") from None


class AttentionMask:
    """Which keys a query may attend to, and an optional learned bias on top.

    Args:
        allowed: bool, True = attend, broadcastable to (R, H, T, L); None allows everything.
        position_bias: (1, H, T, L) added to the scores (T5), or None.

    A query that may attend to nothing gets a zero vector, never NaN.
    """

    def __init__(self, allowed: Tensor | None, position_bias: Tensor | None = None) -> None:
        self.allowed = allowed
        self.position_bias = position_bias
        self.alive = None if allowed is None else tf.reduce_any(allowed, -1, keepdims=True)
        self._penalty: dict[tf.DType, Tensor] = {}

    def penalty(self, dtype: tf.DType) -> Tensor | None:
        """What is subtracted from the scores, in finite numbers; made once per dtype, None where
        that is nothing.

        Not a bias to add: TensorFlow makes one operation of a product and a sum, and where the sum
        spreads over rows and heads that operation takes many times as long on a CPU as the two by
        themselves.
        """
        if dtype in self._penalty:
            return self._penalty[dtype]
        penalty = None if self.position_bias is None else -tf.cast(self.position_bias, dtype)
        if self.allowed is not None:
            # Half of the highest number: subtracting it from a score cannot overflow to -inf.
            high = tf.constant(dtype.max / 2, dtype)
            penalty = tf.where(
                self.allowed, tf.zeros((), dtype) if penalty is None else penalty, high
            )
        if penalty is not None:
            self._penalty[dtype] = penalty
        return penalty

    def unused(self) -> AttentionMask:
        """The same mask without the numbers that an earlier use has left.

        A layer computed twice makes them twice.
        """
        mask = copy.copy(self)
        mask._penalty = {}
        return mask

    def rows(self, rows: Tensor) -> AttentionMask:
        """The mask of these rows only (no position bias: cross-attention)."""
        return AttentionMask(None if self.allowed is None else tf.gather(self.allowed, rows))


def key_mask(attention_mask: Tensor | None) -> AttentionMask:
    """(R, S) of 0/1 or bool, 1 = a real token -> a mask over keys, (R, 1, 1, S)."""
    return AttentionMask(
        None if attention_mask is None else tf.cast(attention_mask, tf.bool)[:, None, None, :]
    )


def causal_allowed(length: Any, past: Any, attention_mask: Tensor | None = None) -> Tensor | None:
    """Which keys each of `length` new positions sees after `past` earlier ones.

    Args:
        length: T, the number of new positions.
        past: number of positions already cached.
        attention_mask: (R, past + T), 1 = a real token, or None.

    Returns:
        bool (1 or R, 1, T, past + T); None = all, for a single position.
    """
    if isinstance(length, int) and length == 1 and attention_mask is None:
        return None
    query = tf.range(past, past + length)
    allowed = (tf.range(past + length) <= query[:, None])[None, None]  # (1, 1, T, L)
    if attention_mask is not None:
        allowed = allowed & tf.cast(attention_mask, tf.bool)[:, None, None, :]  # (R, 1, T, L)
    return allowed


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, T, H*h) -> (R, H, T, h)."""
    rows, positions = outer(x)
    width = x.shape[-1] // heads
    if x.shape[1] == 1:  # nothing to swap
        return reshape(x, (rows, heads, 1, width))
    return tf.transpose(reshape(x, (rows, positions, heads, width)), _SWAP)


def merge_heads(x: Tensor) -> Tensor:
    """(R, H, T, h) -> (R, T, H*h)."""
    width = x.shape[1] * x.shape[3]
    rows, _, positions = outer(x)
    if x.shape[2] != 1:
        x = tf.transpose(x, _SWAP)
    return reshape(x, (rows, positions, width))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention; the same numbers with and without the weights returned.

    Args:
        query: (R, H, T, h).
        key: (R, H, L, h).
        value: (R, H, L, h).
        mask: which keys each query sees.
        dropout: probability of dropping an attention weight.
        scale: factor on the scores; None means h ** -0.5.
        need_weights: whether the attention weights are wanted too.

    Returns:
        (R, H, T, h), and the weights before dropout (R, H, T, L) or None.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # The factor goes on the query, which is smaller than the scores.
    # (R, H, T, L)
    scores = tf.matmul(query if scale == 1 else query * scale, key, transpose_b=True)
    penalty = mask.penalty(query.dtype)
    scores = scores if penalty is None else scores - penalty
    weights = tf.cast(tf.nn.softmax(widen(scores)), value.dtype)
    alive = None if mask.alive is None else tf.cast(mask.alive, value.dtype)
    if alive is not None and need_weights:
        weights *= alive  # before they are used: those returned then have the gradient
    out = tf.matmul(drop(weights, dropout, True), value)
    if alive is not None:
        out *= alive
    # values and masks that come into a graph have open axes, which a single head's would take on
    out.set_shape((None, *query.shape[1:]))
    return out, weights if need_weights else None
