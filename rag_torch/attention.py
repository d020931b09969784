"""Masks and attention.

Letters: R rows, T query positions, L key positions, S context length, H heads, h width of a head,
P real tokens of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Of one layer, (R, H, L, h) each.
KeysValues = tuple[Tensor, Tensor]

# Measured: attention called once more costs a CPU what it takes to read some ten thousand numbers.
_CALL = 2**15


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
    _bias: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        has_keys = None
        if self.allowed is not None and not self.includes_self:
            has_keys = self.allowed.any(-1, keepdim=True)
            # Most often every query sees some key: known here at no cost, on a GPU only by waiting
            # for it.
            if _on_cpu(has_keys) and bool(has_keys.all()):
                has_keys = None
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
        bias = self.bias(query.dtype)
        weights = None
        if need_weights:
            weights = self._weights(query, key, bias, scale)  # (R, H, T, L)
            weights = weights.to(value.dtype)
            out = F.dropout(weights, dropout) @ value
        else:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
            )
        if self.has_keys is not None:
            out = out * self.has_keys
        return out, weights

    def _weights(
        self, query: Tensor, key: Tensor, bias: Tensor | None, scale: float | None
    ) -> Tensor:
        if scale is None:
            scale = query.shape[-1] ** -0.5
        scores = query @ key.transpose(-1, -2) * scale
        if bias is not None:
            scores = scores + bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide)
        if self.has_keys is None:
            return weights
        # Before they are used: those returned then have the gradient.
        return weights * self.has_keys

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as finite numbers to add to the scores.

        Made once per dtype, None when nothing is to be added.
        """
        if dtype in self._bias:
            return self._bias[dtype]
        if self.position_bias is not None:
            bias = self.position_bias.to(dtype)
        elif self.allowed is not None:
            bias = torch.zeros_like(self.allowed, dtype=dtype)
        else:
            return None
        if self.allowed is not None:
            # Half of the lowest number: adding a score to it cannot overflow to -inf.
            low = torch.finfo(dtype).min / 2
            bias = bias.masked_fill(~self.allowed, low)
        self._bias[dtype] = bias
        return bias

    def unused(self) -> AttentionMask:
        """The same mask without the numbers that an earlier use has left.

        A layer computed twice makes them twice.
        """
        return replace(self)

    def rows(self, rows: Tensor) -> AttentionMask:
        """The mask of these rows only (no position bias: cross-attention)."""
        if self.allowed is None:
            return AttentionMask(None)
        return AttentionMask(self.allowed[rows])

    def by_row(self, numbers: int) -> AttentionMask:
        """The mask of keys (R, 1, 1, S) as one that reads no padding, where a CPU gains by it.

        Args:
            numbers: how many there are in a key and its value, over all heads.
        """
        if self.allowed is None or not _on_cpu(self.allowed):
            return self
        seen = self.allowed[:, 0, 0]  # (R, S)
        lengths = lengths_if_padded_right(seen)
        if lengths is None:
            return self
        padding = seen.numel() - int(lengths.sum())
        if padding * numbers <= _CALL * len(seen):
            return self
        return RowLengthsMask(self.allowed, lengths=tuple(lengths.tolist()))


@dataclass(frozen=True, eq=False)
class RowLengthsMask(AttentionMask):
    """Each row's keys are read alone, and no padding.

    Attributes:
        lengths: of R rows, the number of keys that all their queries see.
    """

    lengths: tuple[int, ...] = ()

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
        # Weights are wanted of whole rows, and dropout draws for whole rows.
        if need_weights or dropout:
            return super().attend(
                query, key, value, dropout=dropout, scale=scale, need_weights=need_weights
            )
        queries = query.split(1)
        keys = key.split(1)
        values = value.split(1)
        rows = []
        for q, k, v, length in zip(queries, keys, values, self.lengths, strict=True):
            k = k[:, :, :length]
            v = v[:, :, :length]
            rows.append(F.scaled_dot_product_attention(q, k, v, scale=scale))
        return torch.cat(rows), None


@dataclass(frozen=True, eq=False)
class PackedMask(AttentionMask):
    """Self-attention of rows that lie side by side, (1, H, P, h) -> (1, H, P, h), each on its own.

    Attributes:
        lengths: of R rows, P together; `position_bias` is (1, H, S, S).
    """

    lengths: tuple[int, ...] = ()

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
        lengths = list(self.lengths)
        queries = query.split(lengths, dim=2)
        keys = key.split(lengths, dim=2)
        values = value.split(lengths, dim=2)
        rows = []
        for q, k, v in zip(queries, keys, values, strict=True):
            length = q.shape[2]
            bias = None
            if self.position_bias is not None:
                bias = self.position_bias[:, :, :length, :length]
                bias = bias.to(q.dtype)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
            )
            rows.append(out.transpose(1, 2))  # (1, n, H, h), as `merge_heads` wants it
        return torch.cat(rows, dim=1).transpose(1, 2), None


def lengths_if_padded_right(mask: Tensor) -> Tensor | None:
    """The lengths (R,) of rows that are real tokens, one at least, and then padding.

    Args:
        mask: bool (R, S), True = a real token.

    Returns:
        None where any row is something else.
    """
    lengths = mask.sum(1)
    padded_right = torch.arange(mask.shape[1]) < lengths[:, None]  # (R, S)
    is_padded_right = bool((mask == padded_right).all())
    if not is_padded_right or int(lengths.min()) == 0:
        return None
    return lengths


def _on_cpu(x: Tensor) -> bool:
    """Whether a look at values costs nothing: not on a GPU, not while torch.compile traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def key_mask(attention_mask: Tensor | None, position_bias: Tensor | None = None) -> AttentionMask:
    """(R, S) of 0/1 or bool, 1 = a real token -> a mask over keys, (R, 1, 1, S)."""
    if attention_mask is None:
        return AttentionMask(None, position_bias)
    real = attention_mask.bool()[:, None, None, :]
    return AttentionMask(real, position_bias)


def causal_allowed(
    length: int, past: int, device: torch.device, attention_mask: Tensor | None = None
) -> Tensor | None:
    """Which keys each of `length` new positions sees after `past` earlier ones.

    Args:
        length: T, the number of new positions.
        past: number of positions already cached.
        device: where the mask is made.
        attention_mask: (R, past + T), 1 = a real token, or None.

    Returns:
        bool (1 or R, 1, T, past + T); None where everything is visible (one new position, no
        padding).
    """
    if length == 1 and attention_mask is None:
        return None
    query = torch.arange(past, past + length, device=device)
    key = torch.arange(past + length, device=device)
    allowed = key <= query[:, None]  # (T, L)
    allowed = allowed[None, None]
    if attention_mask is not None:
        real = attention_mask.bool()[:, None, None, :]  # (R, 1, 1, L)
        allowed = allowed & real  # (R, 1, T, L)
    return allowed


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, T, H*h) -> (R, H, T, h)."""
    rows, length, width = x.shape
    x = x.view(rows, length, heads, width // heads)  # (R, T, H, h)
    return x.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(R, H, T, h) -> (R, T, H*h)."""
    return x.transpose(1, 2).flatten(2)
