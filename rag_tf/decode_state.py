"""What decoding keeps: each context's cross-attention, and the self-attention of what was written
so far.

Letters: R rows (contexts), K beams of a row, T target positions now, L positions so far and now, S
context length, H heads, h width of a head, d width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from rag_tf.attention import AttentionMask, causal_allowed
from rag_tf.modules import dim


class GrowingCache:
    """Keys and values of a decoder's self-attention as Hugging Face's `past_key_values` keeps them.

    Args:
        past: for each layer (self_k, self_v, cross_k, cross_v) of an earlier call, or None.
    """

    def __init__(self, past: Sequence[Sequence[Tensor]] | None = None) -> None:
        self.past = [tuple(layer[:2]) for layer in past or ()]
        self.position: Any = 0
        if self.past:
            self.position = dim(self.past[0][0], 2)
        self.tree: Tree | None = None
        self.layers: list[tuple[Tensor, Tensor]] = []

    def allowed(self, length: Any, attention_mask: Tensor | None = None) -> Tensor | None:
        """Which positions each of `length` new ones sees; see `causal_allowed`."""
        return causal_allowed(length, self.position, attention_mask)

    def folded(self, length: Any, rows: Any) -> tuple[Any, Any] | None:
        """How the queries of cross-attention lie: `rows` contexts, and the queries of each.

        None = as they are.
        """
        return rows, -1

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new (R, H, T, h) to the layer's past; all keys and values come back."""
        if self.past:
            key = tf.concat([self.past[layer][0], key], 2)
            value = tf.concat([self.past[layer][1], value], 2)
        self.layers.append((key, value))
        return key, value

    def past_with(self, cross: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, ...], ...]:
        """For each layer (self_k, self_v, cross_k, cross_v), to pass as `past_key_values` next
        time.
        """
        return tuple(
            (*self_attention, *cross_attention)
            for self_attention, cross_attention in zip(self.layers, cross, strict=False)
        )


@dataclass
class Tree:
    """Targets of a context that share their beginnings, each prefix once: a position attends to
    those it continues.

    Attributes:
        positions: (T,) int32, the place of each in its target.
        allowed: (T, T) bool, True = attend.
    """

    positions: Tensor
    allowed: Tensor


@dataclass
class DecodeState:
    """What decoding keeps between steps: each context's cross-attention, and the beams'
    self-attention.

    It may be an argument of a `Graph` as it is; inside, its numbers are tensors, and what no graph
    reads (`max_length`, `tree`) is not there. A graph cannot change the state outside of it. So one
    that decodes a step returns the `cache`, which `finish` takes over, and one that decodes many
    returns `tensors()`, of which `with_tensors` makes the state outside.

    Attributes:
        cross: for each layer the keys and values of the contexts, (R, H, S, h) each; shared by all
            beams of a row.
        cross_allowed: bool (R, 1, 1, S), which context positions are real; None = all.
        beams: K.
        cache: for each layer keys and values (R*K, H, L, h) of the L positions so far, or None:
            without it, every call decodes a whole prefix.
        position: number of positions in the cache.
        source: (R*K,) the row of the cache that each beam continues, where `reorder` left that to
            the next step, which copies the cache anyway.
        max_length: number of positions that the cache may grow to.
        tree: without a cache: how the positions decoded at once hang together, where they are no
            sequence.
    """

    cross: Sequence[tuple[Tensor, Tensor]]
    cross_allowed: Tensor | None = None
    beams: Any = field(default=1, repr=False)
    cache: Sequence[tuple[Tensor, Tensor]] | None = None
    position: Any = 0
    source: Tensor | None = None
    max_length: Any = field(default=None, repr=False)
    tree: Tree | None = None

    @classmethod
    def allocate(
        cls,
        cross: Sequence[tuple[Tensor, Tensor]],
        mask: AttentionMask,
        beams: Any,
        max_length: Any,
    ) -> DecodeState:
        """A fresh state; the self-attention cache is made iff `max_length` is given."""
        state = cls(cross, mask.allowed, beams, max_length=max_length)
        if max_length is None:
            return state
        key = cross[0][0]
        sizes = tf.shape(key)
        # In a graph this is no number: the axis grows, also in a loop.
        length = 0 * sizes[2]
        empty = tf.zeros((sizes[0] * beams, key.shape[1], length, key.shape[3]), key.dtype)
        state.cache = [(empty, empty) for _ in cross]
        return state

    @property
    def cross_mask(self) -> AttentionMask:
        """Which context positions are real."""
        return AttentionMask(self.cross_allowed)

    def folded(self, length: Any, rows: Any) -> tuple[Any, Any] | None:
        """See `GrowingCache.folded`: (R, K * T) for `length` new positions."""
        if not (isinstance(self.beams, int) and isinstance(length, int)):
            return rows, -1
        if self.beams == 1:
            return None
        return -1, self.beams * length

    def reserve(self, length: int) -> None:
        """Check that there is room for `length` more positions: before a graph that decodes is run.

        Raises:
            ValueError: there would be more than `max_length`.
        """
        end = int(self.position) + length
        if self.cache is not None and self.max_length is not None and end > int(self.max_length):
            raise ValueError(
                f"the cache holds {int(self.max_length)} positions, {end} are needed: pass a "
                "larger max_length to start"
            )

    def allowed(self, length: Any, attention_mask: Tensor | None = None) -> Tensor | None:
        """Which positions each of `length` new ones sees; see `causal_allowed`."""
        if self.tree is not None:
            return self.tree.allowed[None, None]
        return causal_allowed(length, self.position, attention_mask)

    def part(self, rows: slice, width: Any) -> DecodeState:
        """A fresh state without a cache for some contexts, cut to `width` columns."""
        state = DecodeState(
            [(key[rows, :, :width], value[rows, :, :width]) for key, value in self.cross]
        )
        if self.cross_allowed is not None:
            state.cross_allowed = self.cross_allowed[rows, ..., :width]
        return state

    def opened(self) -> DecodeState:
        """A copy that a graph may write to."""
        copy = replace(self)
        if self.cache is not None:
            copy.cache = list(self.cache)
        return copy

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new (R*K, H, T, h) to the layer's cache.

        All keys and values so far come back.
        """
        if self.cache is None:
            return key, value
        old_key, old_value = self.cache[layer]
        if self.source is not None:
            old_key = tf.gather(old_key, self.source)
            old_value = tf.gather(old_value, self.source)
        key = tf.concat([old_key, key], 2)
        value = tf.concat([old_value, value], 2)
        self.cache[layer] = key, value  # type: ignore[index]
        return key, value

    def finish(self, cache: Sequence[tuple[Tensor, Tensor]] | None, length: Any) -> None:
        """Take over the cache that a step of `length` positions returned."""
        self.cache = cache
        self.source = None
        self.advance(length)

    def tensors(self) -> dict[str, Any]:
        """What decoding changes, as nested tensors of one structure: what a loop in a graph carries
        from step to step, and what a graph returns.
        """
        tensors: dict[str, Any] = {"position": tf.convert_to_tensor(self.position, tf.int32)}
        if self.cache is not None:
            tensors["cache"] = _pairs(self.cache)
        source = self._some_source()
        is_alone = isinstance(self.beams, int) and self.beams == 1
        if source is not None and not is_alone:
            tensors["source"] = source
        return tensors

    def with_tensors(self, tensors: dict[str, Any]) -> DecodeState:
        """This state with what `tensors` of a later one returned; all else is as it was.

        Outside of graphs the position is a number again.
        """
        state = replace(self, **tensors)
        if tf.executing_eagerly():
            state.position = int(state.position)
        return state

    def advance(self, length: Any) -> None:
        """Count `length` new positions (only a cached state has a position)."""
        if self.cache is not None:
            self.position += length

    def reorder(self, source: Tensor) -> None:
        """Beam k of row r continues beam `source[r, k]` of the same row; self-attention cache only.

        Args:
            source: (R, K) integers.
        """
        # an empty cache has nothing to move
        if self.cache is None or (isinstance(self.position, int) and self.position == 0):
            return
        source = tf.cast(source, tf.int32)
        shape = tf.shape(source)
        beams = tf.reshape(tf.range(shape[0])[:, None] * shape[1] + source, (-1,))  # (R*K,)
        # what two reorderings in a row leave is one
        if self.source is not None:
            beams = tf.gather(self.source, beams)
        self.source = beams

    def select(self, rows: Tensor) -> DecodeState:
        """A state of these contexts only.

        Args:
            rows: (R',) integers, rows to keep in their new order.
        """
        rows = tf.cast(rows, tf.int32)
        cross = [(tf.gather(key, rows), tf.gather(value, rows)) for key, value in self.cross]
        allowed = self.cross_mask.rows(rows).allowed
        state = replace(self, cross=cross, cross_allowed=allowed, source=None)
        if self.cache is None:
            return state
        beams = tf.reshape(rows[:, None] * self.beams + tf.range(self.beams), (-1,))  # (R'*K,)
        if self.source is not None:
            beams = tf.gather(self.source, beams)
        state.cache = [
            (tf.gather(key, beams), tf.gather(value, beams)) for key, value in self.cache
        ]
        return state

    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What is compiled in (nothing), and the tensors."""
        position = tf.convert_to_tensor(self.position, tf.int32)
        beams = tf.convert_to_tensor(self.beams, tf.int32)
        cross, cache = _pairs(self.cross), _pairs(self.cache)
        return (), (cross, self.cross_allowed, cache, position, beams, self._some_source())

    @classmethod
    def __tf_unflatten__(
        cls, metadata: tuple[Any, ...], components: tuple[Any, ...]
    ) -> DecodeState:
        """The state as a graph sees it."""
        cross, allowed, cache, position, beams, source = components
        return cls(cross, allowed, beams, cache, position, source)

    def _some_source(self) -> Tensor | None:
        """With a cache there is always a `source`, so that one graph serves."""
        if self.source is not None or self.cache is None:
            return self.source
        return tf.range(tf.shape(self.cache[0][0])[0])


def _pairs(layers: Any) -> Any:
    # One nesting always, or the same arguments would look new to a graph.
    if layers is None:
        return None
    return tuple((key, value) for key, value in layers)
