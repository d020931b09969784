"""Masks and attention: what every network here computes with.

All of it runs in graphs whose axes are open: lengths are tensors, only widths and numbers of heads
are read as numbers. Letters: R rows, K beams of a row, T query positions, L key positions, S context
length, H heads, h width of a head, d width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from rag_tf.modules import dropout as drop
from rag_tf.modules import leading_dims, reshape, widen

# an array: turning a tuple into one takes longer, outside of graphs, than swapping the axes
_SWAP = np.array((0, 2, 1, 3), np.int32)


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """Which keys a query may attend to, and an optional learned bias on top.

    Attributes:
        allowed: bool, True = attend, broadcastable to (R, H, T, L); None allows everything.
        position_bias: (1, H, T, L) added to the scores (T5), or None.
        includes_self: whether every query is known to see a key, itself at least.
        has_keys: bool (R, H, T, 1), which queries see a key; None where all of them do.

    A query that may attend to nothing gets a zero vector, never NaN.
    """

    allowed: Tensor | None = None
    position_bias: Tensor | None = None
    includes_self: bool = False
    has_keys: Tensor | None = field(init=False, repr=False)
    _penalty: dict[tf.DType, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        has_keys = None
        if self.allowed is not None and not self.includes_self:
            has_keys = tf.reduce_any(self.allowed, -1, keepdims=True)
        object.__setattr__(self, "has_keys", has_keys)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
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
            dropout: probability of dropping an attention weight.
            scale: factor on the scores; None means h ** -0.5.
            need_weights: whether the attention weights are wanted too.

        Returns:
            (R, H, T, h), and the weights before dropout (R, H, T, L) or None.
        """
        if scale is None:
            scale = query.shape[-1] ** -0.5
        # The factor goes on the query, which is smaller than the scores.
        if scale != 1:
            query = query * scale
        scores = tf.matmul(query, key, transpose_b=True)  # (R, H, T, L)
        penalty = self.penalty(query.dtype)
        if penalty is not None:
            scores = scores - penalty
        weights = tf.cast(tf.nn.softmax(widen(scores)), value.dtype)
        # before they are used: those returned then have the gradient
        if self.has_keys is not None and need_weights:
            weights *= tf.cast(self.has_keys, value.dtype)
        out = tf.matmul(drop(weights, dropout, True), value)
        if self.has_keys is not None:
            out *= tf.cast(self.has_keys, value.dtype)
        # values and masks that come into a graph have open axes, which a single head's would take on
        out.set_shape((None, *query.shape[1:]))
        return out, weights if need_weights else None

    def penalty(self, dtype: tf.DType) -> Tensor | None:
        """What is subtracted from the scores, in finite numbers; made once per dtype, None where
        that is nothing.

        Not a bias to add: TensorFlow makes one operation of a product and a sum, and where the sum
        spreads over rows and heads that operation takes many times as long on a CPU as the two by
        themselves.
        """
        if dtype in self._penalty:
            return self._penalty[dtype]
        if self.allowed is None and self.position_bias is None:
            return None
        penalty = tf.zeros((), dtype)
        if self.position_bias is not None:
            penalty = -tf.cast(self.position_bias, dtype)
        if self.allowed is not None:
            # Half of the highest number: subtracting it from a score cannot overflow to -inf.
            penalty = tf.where(self.allowed, penalty, tf.constant(dtype.max / 2, dtype))
        self._penalty[dtype] = penalty
        return penalty

    def unused(self) -> AttentionMask:
        """The same mask without the numbers that an earlier use has left.

        A layer computed twice makes them twice.
        """
        return replace(self)

    def rows(self, rows: Tensor) -> AttentionMask:
        """The mask of these rows only (no position bias: cross-attention)."""
        if self.allowed is None:
            return AttentionMask(None)
        return AttentionMask(tf.gather(self.allowed, rows))


def key_mask(attention_mask: Tensor | None, position_bias: Tensor | None = None) -> AttentionMask:
    """(R, S) of 0/1 or bool, 1 = a real token -> a mask over keys, (R, 1, 1, S)."""
    if attention_mask is None:
        return AttentionMask(None, position_bias)
    return AttentionMask(tf.cast(attention_mask, tf.bool)[:, None, None, :], position_bias)


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
    rows, positions = leading_dims(x)
    width = x.shape[-1] // heads
    if x.shape[1] == 1:  # nothing to swap
        return reshape(x, (rows, heads, 1, width))
    return tf.transpose(reshape(x, (rows, positions, heads, width)), _SWAP)


def merge_heads(x: Tensor) -> Tensor:
    """(R, H, T, h) -> (R, T, H*h)."""
    width = x.shape[1] * x.shape[3]
    rows, _, positions = leading_dims(x)
    if x.shape[2] != 1:
        x = tf.transpose(x, _SWAP)
    return reshape(x, (rows, positions, width))


def cross_attention(
    attention: Any, x: Tensor, folded: tuple[Any, Any] | None, *rest: Any
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention of x (R*K, T, d).

    Beams are folded into the query axis, so that no context's keys are repeated.

    Args:
        attention: called with the queries and the rest.
        x: (R*K, T, d).
        folded: (R, K*T), or None where x is that already.
        rest: what else `attention` takes.
    """
    if folded is None:
        return attention(x, *rest)
    queries = reshape(x, (*folded, x.shape[-1]))  # (R, K*T, d)
    update, weights = attention(queries, *rest)
    return reshape(update, (*leading_dims(x), x.shape[-1])), weights
