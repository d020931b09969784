"""Compiled functions that are traced once for each kind of argument, whatever the lengths: no
question retraces.

tf.function alone traces again whenever a shape changes. Here every axis is left open at the first
call, so that one graph serves all batch sizes and lengths. Code that runs in such a graph takes an
activation's sizes from the weights or from `modules.dim`: a number only where it cannot change.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.checks import plain
from rag_tf import replicas
from rag_tf.modules import Stream, compute_dtype, fresh_seed, streaming

_NO_SEED = np.zeros(2, np.int32)
_ONCE: ContextVar[bool] = ContextVar("once", default=False)


@contextmanager
def once() -> Iterator[None]:
    """Within it no new graphs are made.

    For a single answer, tracing them takes several times longer than it saves.
    """
    token = _ONCE.set(True)
    try:
        yield
    finally:
        _ONCE.reset(token)


def makes_graphs() -> bool:
    """Whether new graphs are made: not within `once()`."""
    return not _ONCE.get()


@dataclass(eq=False)
class _Trace:
    """One compiled function."""

    function: Any
    draws: int  # of random numbers
    size: int  # bytes of memory, estimated
    home: dict[Any, _Trace]  # the traces of the `Graph` that made it
    signature: Any


class _Store:
    """All traces of the process, those used last at the end, and how much memory they may take."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.size = 0
        self.lock = threading.RLock()  # models are asked from several threads
        self.traces: dict[_Trace, None] = {}

    def use(self, home: dict[Any, _Trace], signature: Any) -> _Trace | None:
        """The trace of a signature, which becomes the one used last; None if there is none."""
        with self.lock:
            trace = home.get(signature)
            if trace is not None:
                self.traces[trace] = self.traces.pop(trace)
            return trace

    def add(self, trace: _Trace) -> None:
        """Keep a trace, and let go of those that were not used for longest where all take too
        much.
        """
        with self.lock:
            self.drop(trace.home, trace.signature)  # another thread may have made the same one
            trace.home[trace.signature] = trace
            self.traces[trace] = None
            self.size += trace.size
            self.shrink(keep=trace)

    def shrink(self, keep: _Trace | None = None) -> None:
        """Let go of traces, those not used for longest first, until the others take no more than
        allowed.
        """
        with self.lock:
            for trace in list(self.traces):
                if self.size <= self.limit:
                    break
                if trace is not keep:
                    self.drop(trace.home, trace.signature)

    def drop(self, home: dict[Any, _Trace], signature: Any) -> None:
        with self.lock:
            trace = home.pop(signature, None)
            if trace is not None:
                del self.traces[trace]
                self.size -= trace.size

    def drop_all(self, home: dict[Any, _Trace]) -> None:
        with self.lock:
            for signature in list(home):
                self.drop(home, signature)


_MEGABYTE = 1 << 20
# What TensorFlow keeps of a graph beside its serialized form: measured on generators of 1 and 6
# layers, 92 to 100 times the size of that form.
_MEMORY_OF_SERIALIZED = 95
_STORE = _Store(512 * _MEGABYTE)


def set_graph_memory(megabytes: float) -> None:
    """Set how much memory compiled graphs of all models may take together; 512 MB unless set.

    Graphs that were not used for longest are let go of first, and made again when they are needed.
    The one that is in use stays, whatever its size. Sizes are estimated from those of the graphs.

    Args:
        megabytes: 0 or more; `float("inf")` keeps all.

    Raises:
        ValueError: not such a number.
    """
    megabytes = plain(megabytes)
    if isinstance(megabytes, bool) or not isinstance(megabytes, int | float) or not megabytes >= 0:
        raise ValueError(
            f"megabytes must be a number and at least 0, got {megabytes!r}. Pass float('inf') to "
            "keep all"
        )
    _STORE.limit = megabytes * _MEGABYTE
    _STORE.shrink()


def graph_memory() -> float:
    """Megabytes that the compiled graphs of all models take together, estimated."""
    return _STORE.size / _MEGABYTE


def clear_graphs() -> None:
    """Let go of the compiled graphs of all models, and of their memory.

    They are made again when they are needed.
    """
    with _STORE.lock:
        for trace in list(_STORE.traces):
            _STORE.drop(trace.home, trace.signature)
    gc.collect()  # TensorFlow's functions refer to each other in circles
    # only glibc keeps what was freed, and can be told to give it back
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Graph:
    """A function as one TensorFlow graph for each structure, dtype and rank of its arguments.

    Args:
        function: takes positional arguments only: tensors, nested tuples, lists and dicts of them,
            None, and hashable Python values (switches), which are part of what is compiled.
        keep_last: leave the size of the last axis of floating-point arguments in the graph.

    Random numbers (dropout) are other ones at each call: a graph that draws any is given a seed
    from outside, so that the same graph can be run with the same numbers again (see
    `modules.seeded_by`).

    The graph reads the variables that the function closes over; make a new `Graph` where those are
    replaced. All graphs together take no more memory than `set_graph_memory` allows.
    """

    def __init__(self, function: Callable[..., Any], keep_last: bool = False) -> None:
        self.function = function
        self.keep_last = keep_last
        self.traces: dict[Any, _Trace] = {}
        weakref.finalize(self, _STORE.drop_all, self.traces)

    def capacity(self) -> float:
        """About how many of its kinds of arguments the memory allowed is enough for."""
        sizes = [trace.size for trace in list(self.traces.values())]
        if not sizes:
            return float("inf")
        mean_size = sum(sizes) / len(sizes)
        return _STORE.limit / mean_size

    def __call__(self, *args: Any) -> Any:
        """Run the graph that fits; inside another graph, the function itself."""
        if not tf.executing_eagerly():
            return self.function(*args)
        leaves: list[Any] = []
        # Each replica has weights of its own.
        key: list[Any] = [compute_dtype(), replicas.number()]
        _flatten(args, leaves, key)
        tensors = []
        for leaf in leaves:
            if tf.is_tensor(leaf):
                tensors.append(leaf)
                key.append(self._spec(leaf))
            else:
                key.append(leaf)
        signature = tuple(key)
        trace = _STORE.use(self.traces, signature)
        if trace is None:
            # on copies, as a graph has them: what the caller handed in is not changed
            if _ONCE.get():
                return self.function(*tf.nest.pack_sequence_as(args, leaves))
            trace = self._trace(args, leaves, signature)
            _STORE.add(trace)
        if not trace.draws:
            return trace.function(tf.constant(_NO_SEED), *tensors)
        return trace.function(fresh_seed(), *tensors)

    def _trace(self, args: Any, leaves: list[Any], signature: Any) -> _Trace:
        places = [place for place, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
        switches = list(leaves)
        for place in places:
            switches[place] = None
        draws = 0

        def flat(seed: tf.Tensor, *tensors: tf.Tensor) -> Any:
            nonlocal draws
            values = list(switches)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            stream = Stream(seed)
            with streaming(stream):
                result = self.function(*tf.nest.pack_sequence_as(args, values))
            draws = stream.draws
            return result

        specs = [tf.TensorSpec(*self._spec(leaves[place])) for place in places]
        specs.insert(0, tf.TensorSpec((2,), tf.int32))
        # Traced now, so that the draws are counted; and called as it is, without the search for a
        # trace that fits.
        traced = tf.function(flat, input_signature=specs, autograph=False).get_concrete_function()
        size = _MEMORY_OF_SERIALIZED * traced.graph.as_graph_def().ByteSize()
        return _Trace(traced, draws, size, self.traces, signature)

    def _spec(self, tensor: tf.Tensor) -> tuple[tuple[int | None, ...], Any]:
        open_axes: list[int | None] = [None] * tensor.shape.rank
        if self.keep_last and open_axes and tensor.dtype.is_floating:
            open_axes[-1] = tensor.shape[-1]
        return tuple(open_axes), tensor.dtype


def _flatten(value: Any, leaves: list[Any], nesting: list[Any]) -> None:
    """Append the leaves in the order of tf.nest.flatten, and what tells their nesting from another.

    One pass by hand: tf.nest would take objects apart and put them together several times, in every
    call.
    """
    parts: Any
    kind: Any
    if isinstance(value, list | tuple):
        parts = value
        kind = len(value)
    elif isinstance(value, Mapping):
        names = sorted(value)
        parts = [value[name] for name in names]
        kind = tuple(names)
    elif hasattr(value, "__tf_flatten__"):
        metadata, parts = value.__tf_flatten__()
        kind = len(parts), str(metadata)
    else:
        leaves.append(value)
        nesting.append(None)
        return
    nesting.append((type(value), kind))
    for part in parts:
        _flatten(part, leaves, nesting)
