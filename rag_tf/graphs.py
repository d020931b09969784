"""Compiled functions that are traced once for each kind of argument, whatever the lengths: no question retraces.

tf.function alone traces again whenever a shape changes. Here every axis is left open at the first call, so that one
graph serves all batch sizes and lengths. Code that runs in such a graph takes an activation's sizes from the weights or
from `modules.size`: a number only where it cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import tensorflow as tf

from rag_tf.modules import Stream, compute_dtype, fresh_seed, streaming

_NO_SEED = np.zeros(2, np.int32)
_ONCE: ContextVar[bool] = ContextVar("once", default=False)


@contextmanager
def once() -> Iterator[None]:
    """Within it no new graphs are made: for a single answer, tracing them takes several times longer than it saves."""
    before = _ONCE.set(True)
    try:
        yield
    finally:
        _ONCE.reset(before)


def tracing() -> bool:
    """Whether new graphs are made."""
    return not _ONCE.get()


class Graph:
    """A function as one TensorFlow graph for each structure, dtype and rank of its arguments.

    Args:
        function: takes positional arguments only: tensors, nested tuples, lists and dicts of them, None, and hashable
            Python values (switches), which are part of what is compiled.
        keep_last: leave the size of the last axis of floating-point arguments in the graph.

    Random numbers (dropout) are other ones at each call: a graph that draws any is given a seed from outside, so that
    the same graph can be run with the same numbers again (see `modules.seeded_by`).

    The graph reads the variables that the function closes over; make a new `Graph` where those are replaced.

    Attributes:
        most: how many kinds of arguments are remembered, those that were used last; None = all.
    """

    most: int | None = None

    def __init__(self, function: Callable[..., Any], keep_last: bool = False) -> None:
        self.function, self.keep_last = function, keep_last
        self.traces: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the graph that fits; inside another graph, the function itself."""
        if not tf.executing_eagerly():
            return self.function(*args)
        leaves: list[Any] = []
        key: list[Any] = [compute_dtype()]
        _take_apart(args, leaves, key)
        tensors = []
        for leaf in leaves:
            if tf.is_tensor(leaf):
                tensors.append(leaf)
                key.append(self._spec(leaf))
            else:
                key.append(leaf)
        signature = tuple(key)
        if signature not in self.traces:
            if _ONCE.get():  # on copies, as a graph has them: what the caller handed in is not changed
                return self.function(*tf.nest.pack_sequence_as(args, leaves))
            self.traces[signature] = self._trace(args, leaves)
        if self.most is not None:
            self.traces[signature] = self.traces.pop(signature)
            for old in list(self.traces)[: -self.most]:
                del self.traces[old]
        graph, draws = self.traces[signature]
        return graph(fresh_seed() if draws else tf.constant(_NO_SEED), *tensors)

    def _trace(self, args: Any, leaves: list[Any]) -> tuple[Any, int]:
        """The graph, and how many draws of random numbers it makes."""
        places = [place for place, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
        specs = [tf.TensorSpec(*self._spec(leaves[place])) for place in places]
        fixed = [None if tf.is_tensor(leaf) else leaf for leaf in leaves]
        draws = 0

        def flat(seed: tf.Tensor, *tensors: tf.Tensor) -> Any:
            nonlocal draws
            values = list(fixed)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            stream = Stream(seed)
            with streaming(stream):
                result = self.function(*tf.nest.pack_sequence_as(args, values))
            draws = stream.draws
            return result

        specs.insert(0, tf.TensorSpec((2,), tf.int32))
        # Traced now, so that the draws are counted; and called as it is, without the search for a trace that fits.
        return tf.function(flat, input_signature=specs, autograph=False).get_concrete_function(), draws

    def _spec(self, tensor: tf.Tensor) -> tuple[tuple[int | None, ...], Any]:
        open_axes: list[int | None] = [None] * tensor.shape.rank
        if self.keep_last and open_axes and tensor.dtype.is_floating:
            open_axes[-1] = tensor.shape[-1]
        return tuple(open_axes), tensor.dtype


def _take_apart(value: Any, leaves: list[Any], nesting: list[Any]) -> None:
    """Appends the leaves in the order of tf.nest.flatten, and what tells their nesting from another.

    One pass by hand: tf.nest would take objects apart and put them together several times, in every call.
    """
    parts: Any
    kind: Any
    if isinstance(value, list | tuple):
        parts, kind = value, len(value)
    elif isinstance(value, Mapping):
        names = sorted(value)
        parts, kind = [value[name] for name in names], tuple(names)
    elif hasattr(value, "__tf_flatten__"):
        metadata, parts = value.__tf_flatten__()
        kind = len(parts), str(metadata)
    else:
        leaves.append(value)
        nesting.append(None)
        return
    nesting.append((type(value), kind))
    for part in parts:
        _take_apart(part, leaves, nesting)
