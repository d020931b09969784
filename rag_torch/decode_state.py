"""What decoding keeps: each context's cross-attention, and the self-attention of what was written
so far.

Letters: R rows (contexts), K beams of a row, k of them decoded now (folded into a row's positions),
T target positions now, L positions so far and now, S context length, H heads, h width of a head, d
width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag_torch.attention import AttentionMask, KeysValues, causal_allowed
from rag_torch.layers import Trace


def noted(trace: Trace, x: Tensor, shape: torch.Size) -> Tensor:
    """Note a hidden state in that shape.

    Returns:
        What to go on with in place of `x`: a view of what was noted, not the other way round, or
        that would have no gradient.
    """
    if not trace.want_hidden:
        return x
    if x.shape == shape:
        trace.hidden(x)
        return x
    reshaped = x.reshape(shape)
    trace.hidden(reshaped)
    return reshaped.reshape(x.shape)


class GrowingCache:
    """Keys and values of a decoder's self-attention as Hugging Face's `past_key_values` keeps them.

    Args:
        past: for each layer (self_k, self_v, cross_k, cross_v) of an earlier call, or None.
        kept: whether `past_with` will be asked for.
    """

    def __init__(self, past: Sequence[Sequence[Tensor]] | None = None, kept: bool = True) -> None:
        self.kept = kept
        self.past: list[tuple[Tensor, ...]] = []
        self.position = 0
        self.layers: list[KeysValues] = []
        if past:
            self.past = [tuple(layer[:2]) for layer in past]
            self.position = self.past[0][0].shape[2]

    def fold(self, x: Tensor) -> Tensor:
        """(R, T, d) as it is: every row attends to its own past."""
        return x

    def allowed(
        self, length: int, device: torch.device, attention_mask: Tensor | None
    ) -> Tensor | None:
        """Which positions each of `length` new ones sees; see `causal_allowed`."""
        return causal_allowed(length, self.position, device, attention_mask)

    def unfold_weights(self, weights: Tensor | None) -> Tensor | None:
        """Attention weights (R, H, T, L) as they are."""
        return weights

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        """Append the new (R, H, T, h) to the layer's past; all keys and values come back."""
        if self.past:
            past_key, past_value = self.past[layer]
            key = torch.cat([past_key, key], 2)
            value = torch.cat([past_value, value], 2)
        if self.kept:
            self.layers.append((key, value))
        return key, value

    def past_with(self, cross: list[KeysValues]) -> tuple[tuple[Tensor, ...], ...]:
        """For each layer (self_k, self_v, cross_k, cross_v), to pass as `past_key_values` next
        time.
        """
        layers = zip(self.layers, cross, strict=False)
        return tuple((*own, *context) for own, context in layers)


@dataclass
class Tree:
    """Targets of a context that share their beginnings, each prefix once: a position attends to
    those it continues.

    Attributes:
        positions: (T,) long, the place of each in its target.
        allowed: (T, T) bool, True = attend.
    """

    positions: Tensor
    allowed: Tensor


@dataclass
class DecodeState:
    """What decoding keeps between steps: each context's cross-attention, and the beams'
    self-attention.

    What the beams of a row write lies side by side and stays there; a mask says what of it is a
    beam's own past. So a beam that continues another one changes its mask, and no key or value is
    moved.

    Attributes:
        cross: for each layer the keys and values of the contexts, (R, H, S, h) each; shared by all
            beams of a row.
        cross_mask: which context positions are real.
        beams: K.
        cache: (layers, 2, R, H, max_length, K, h) or None: without it, every call decodes a whole
            prefix.
        ancestry: (R, K, max_length, K) bool with a cache of several beams: whose tokens each beam
            continues.
        position: number of positions in the cache.
        rows: R.
        position_bias: (1, H, max_length, max_length) where the network adds one to its
            self-attention scores (T5).
        tree: without a cache: how the positions decoded at once hang together, where they are no
            sequence.
        folded: k, beams that are decoded now: K, or 1 that stands for all of them as long as they
            are equal.
    """

    cross: list[KeysValues]
    cross_mask: AttentionMask
    beams: int
    cache: Tensor | None = None
    ancestry: Tensor | None = None
    position: int = 0
    rows: int = 0
    position_bias: Tensor | None = None
    tree: Tree | None = None
    folded: int = 1

    @classmethod
    def allocate(
        cls,
        cross: list[KeysValues],
        mask: AttentionMask,
        beams: int,
        max_length: int | None,
    ) -> DecodeState:
        """A fresh state; the self-attention cache is made iff `max_length` is given."""
        key = cross[0][0]
        rows, heads, _, width = key.shape
        cross_mask = mask.by_row(2 * heads * width)
        state = cls(cross, cross_mask, beams, rows=rows)
        if max_length is None:
            return state
        state.cache = key.new_empty(len(cross), 2, rows, heads, max_length, beams, width)
        if beams > 1:
            own_tokens = torch.eye(beams, dtype=torch.bool, device=key.device)
            own_tokens = own_tokens[None, :, None]  # (1, K, 1, K)
            state.ancestry = own_tokens.repeat(rows, 1, max_length, 1)
        return state

    def fold(self, x: Tensor) -> Tensor:
        """(R*k, T, d) -> (R, k*T, d): with a cache the beams of a row share its keys and values."""
        if self.cache is None:
            return x
        return x.reshape(self.rows, -1, x.shape[-1])

    def allowed(
        self, length: int, device: torch.device, attention_mask: Tensor | None = None
    ) -> Tensor | None:
        """Which positions each of `length` new ones sees.

        (R, 1, k*T, L*K), or as `causal_allowed`.
        """
        if self.tree is not None:
            return self.tree.allowed[None, None]
        if self.ancestry is None:
            return causal_allowed(length, self.position, device, attention_mask)
        end = self.position + length
        seen = self.ancestry[:, : self.folded, None, :end]  # (R, k, 1, L, K)
        if length > 1:
            causal = causal_allowed(length, self.position, device)  # (1, 1, T, L)
            seen = seen & causal[0, 0, :, :, None]  # type: ignore[index]
        seen = seen.flatten(3, 4)  # (R, k, T, L*K)
        return seen.flatten(1, 2)[:, None]  # (R, 1, k*T, L*K)

    def unfold_weights(self, weights: Tensor | None) -> Tensor | None:
        """Attention weights over all that a row's beams wrote, (R, H, k*T, L*K), as each beam's
        own, (R*k, H, T, L).
        """
        if weights is None or self.ancestry is None:
            return weights
        weights = weights.unflatten(-1, (-1, self.beams))  # (R, H, k*T, L, K)
        weights = weights.sum(-1)  # (R, H, k*T, L)
        weights = weights.unflatten(2, (self.folded, -1))  # (R, H, k, T, L)
        return weights.transpose(1, 2).flatten(0, 1)

    def biased(self, bias: Tensor) -> Tensor:
        """A bias of T positions on L, (1, H, T, L), for all beams side by side.

        (1, H, k*T, L*K).
        """
        if self.ancestry is None:
            return bias
        bias = bias.repeat(1, 1, self.folded, 1)  # (1, H, k*T, L)
        return bias.repeat_interleave(self.beams, dim=3)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        """Write the new (R, H, k*T, h) into the layer's cache; everything up to the new end comes
        back, (R, H, L*K, h).

        Without a cache (R*K, H, T, h) come back as they are.
        """
        if self.cache is None:
            return key, value
        end = self.position + key.shape[2] // self.folded
        if end > self.cache.shape[4]:
            raise ValueError(
                f"the cache holds {self.cache.shape[4]} positions, {end} are needed: pass a "
                "larger max_length to start"
            )
        store = self.cache[layer]  # (2, R, H, max_length, K, h)
        for half, new in zip(store, (key, value), strict=True):
            by_beam = new.unflatten(2, (self.folded, -1))  # (R, H, k, T, h)
            half[:, :, self.position : end] = by_beam.transpose(2, 3)
        used = store[:, :, :, :end].flatten(3, 4)  # (2, R, H, L*K, h)
        return used[0], used[1]

    def advance(self, length: int) -> None:
        """Count `length` new positions (only a cached state has a position)."""
        if self.cache is not None:
            self.position += length

    def reorder(self, source: Tensor) -> None:
        """Beam k of row r continues beam `source[r, k]` of the same row; in place, self-attention
        cache only.

        Args:
            source: (R, K) long.
        """
        if self.ancestry is None or self.position == 0:
            return
        past = self.ancestry[:, :, : self.position]  # (R, K, L, K)
        source = source.to(past.device)
        row = torch.arange(self.rows, device=past.device)
        # Indexing copies, so that no beam is read after it was written.
        past[:] = past[row[:, None], source]

    def part(self, rows: slice, width: int) -> DecodeState:
        """A fresh state without a cache for some contexts, cut to `width` columns.

        It copies nothing.
        """
        cross = []
        for key, value in self.cross:
            key = key[rows, :, :width]
            value = value[rows, :, :width]
            cross.append((key, value))
        allowed = self.cross_mask.allowed
        if allowed is not None:
            allowed = allowed[rows, ..., :width]
        return DecodeState.allocate(cross, AttentionMask(allowed), 1, None)

    def select(self, rows: Tensor) -> DecodeState:
        """A state of these contexts only.

        Args:
            rows: (R',) long, rows to keep in their new order.
        """
        cross = [(key[rows], value[rows]) for key, value in self.cross]
        _, heads, _, width = cross[0][0].shape
        mask = self.cross_mask.rows(rows).by_row(2 * heads * width)
        state = DecodeState(cross, mask, self.beams, position=self.position, rows=len(rows))
        state.position_bias = self.position_bias
        if self.cache is not None:
            state.cache = self.cache[:, :, rows]
        if self.ancestry is not None:
            state.ancestry = self.ancestry[rows]
        return state
