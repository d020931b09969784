"""The bricks that torch.nn has and a plain tf.Module lacks: named parameters, linear maps, norms,
tables, dropout.

Attribute names are the weights' names in public checkpoints, and matrices are stored (out, in) as
there. Layers of Keras are not used below the three public classes: their variables have other names
and layouts (`kernel`, `gamma`), and every checkpoint would have to be turned around.
Letters: R rows, T positions, d width.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

_WITH_PLACEHOLDERS: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "with_placeholders", default=False
)


@dataclass(frozen=True)
class Placeholder:
    """Stands where a weight will be loaded: a shape without memory."""

    shape: tuple[int, ...]
    trainable: bool = True


@contextlib.contextmanager
def placeholders() -> Iterator[None]:
    """Within it modules are built without memory and without drawing fresh weights, to be filled
    by a checkpoint.
    """
    token = _WITH_PLACEHOLDERS.set(True)
    try:
        yield
    finally:
        _WITH_PLACEHOLDERS.reset(token)


def parameter(shape: Sequence[int], trainable: bool = True) -> Any:
    """A float32 variable of zeros, or a `Placeholder` where a checkpoint will be loaded."""
    if _WITH_PLACEHOLDERS.get():
        return Placeholder(tuple(shape), trainable)
    return tf.Variable(tf.zeros(shape), trainable=trainable)


class Module(tf.Module):
    """A part of a network; its weights are found by the names of its attributes."""

    _frozen = False

    @property
    def trainable(self) -> bool:
        """Whether the weights here learn; setting it sets it for everything below, as in Keras."""
        return not self._frozen

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for module in self.modules():
            object.__setattr__(module, "_frozen", not value)
            for other in _others(module):
                if hasattr(other, "trainable"):
                    other.trainable = bool(value)

    @property
    def trainable_variables(self) -> list[Any]:
        """The weights that learn, tied ones once."""
        learning: set[int] = set()
        for module in self.modules():
            if module._frozen:
                continue
            for value in vars(module).values():
                if isinstance(value, tf.Variable) and value.trainable:
                    learning.add(id(value))
            for other in _others(module):
                learning.update(map(variable_id, other.trainable_variables))
        named = {id(variable): variable for _, variable in self.named_parameters()}
        return [variable for key, variable in named.items() if key in learning]

    @property
    def trainable_weights(self) -> list[Any]:
        """The weights that learn, as Keras' loops ask for them."""
        return self.trainable_variables

    @property
    def weights(self) -> list[Any]:
        """All weights, tied ones once."""
        return [variable for _, variable in self.named_parameters()]

    @property
    def losses(self) -> list[Any]:
        """Empty: weights have no regularizers here."""
        return []

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(name, variable or `Placeholder`) of everything below, tied ones under each of their names."""
        for name, value in vars(self).items():
            if not name.startswith("_"):
                yield from _named(value, f"{prefix}{name}")

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        seen: set[int] = set()
        pending: list[Any] = [self]
        while pending:
            module = pending.pop(0)
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                pending += [child for value in vars(module).values() for child in _children(value)]

    def get_submodule(self, path: str) -> Any:
        """The module at a dotted path, e.g. "encoder.layers.0"."""
        module: Any = self
        for step in filter(None, path.split(".")):
            if isinstance(module, list | tuple):
                module = module[int(step)]
            else:
                module = getattr(module, step)
        return module


def _others(module: Module) -> list[Any]:
    """Modules of another library that a module of ours holds, as adapters do."""
    return [
        value
        for value in vars(module).values()
        if not isinstance(value, Module) and hasattr(value, "trainable_variables")
    ]


def variable_id(variable: Any) -> int:
    """What tells variables apart.

    Of Keras' own kind that of TensorFlow's inside, which is what is named here.
    """
    if isinstance(variable, tf.Variable):
        return id(variable)
    return id(variable.value)


def _named(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tf.Variable | Placeholder):
        yield name, value
    elif isinstance(value, Module):
        yield from value.named_parameters(f"{name}.")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _named(item, f"{name}.{place}")


def _children(value: Any) -> list[Module]:
    if not isinstance(value, list | tuple):
        value = [value]
    return [module for module in value if isinstance(module, Module)]


def dim(x: tf.Tensor, axis: int) -> Any:
    """How long an axis is: a number where that is known, always outside of graphs, else a scalar of
    the graph.

    Taking one number out of a shape by operations costs more than many a layer's arithmetic, called
    one by one.
    """
    number = x.shape[axis]
    if number is None:
        return tf.shape(x)[axis]
    return number


def leading_dims(x: tf.Tensor) -> tuple[Any, ...]:
    """The sizes of all axes but the last, as tf.reshape takes them.

    -1 for the first that is not known.
    """
    dims = list(x.shape[:-1])
    if None in dims:
        first = dims.index(None)
        dims[first] = -1
        for axis in range(first + 1, len(dims)):
            dims[axis] = dim(x, axis)
    return tuple(dims)


def reshape(x: tf.Tensor, sizes: Sequence[Any]) -> tf.Tensor:
    """tf.reshape; outside of graphs in half the time, as TensorFlow is handed an array."""
    if all(isinstance(size, int) for size in sizes):
        return tf.reshape(x, np.array(sizes, np.int32))
    return tf.reshape(x, sizes)


def by_rows(part: Callable[[tf.Tensor], tf.Tensor], first: Linear, x: tf.Tensor) -> tf.Tensor:
    """part(x) of (R, T, d) -> (R, T, .), on rows (R*T, d) where the weights of its `first` map are
    small.

    There TensorFlow joins product, bias and activation, if nothing comes between them.
    """
    if x.shape.rank == 2 or not first.small:
        return part(x)
    rows = reshape(x, (-1, x.shape[-1]))
    y = part(rows)
    return reshape(y, (*leading_dims(x), y.shape[-1]))


# Numbers of a weight up to which a product of rank 2 is the faster one, for few rows as for many.
_SMALL = 2**18


class Linear(Module):
    """y = x W^T + b with W (out, in), as torch stores it."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = parameter((out_features, in_features))
        self.bias = None
        if bias:
            self.bias = parameter((out_features,))

    @property
    def small(self) -> bool:
        """Whether its product of rank 2 is the faster one, for few rows as for many."""
        return self.in_features * self.out_features <= _SMALL

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """(..., in) -> (..., out)."""
        if x.shape.rank == 2:
            # Packed tokens are many, and then TensorFlow joins product, bias and activation into
            # one operation.
            return self._product(x)
        sizes: tuple[int, ...] = (-1, self.in_features)
        if not self.small:
            # Few rows of large weights are faster as one long batch of rank 3; an ellipsis
            # einsum's gradient fills memory.
            sizes = (1, -1, self.in_features)
        rows = reshape(x, sizes)
        y = self._product(rows)
        return reshape(y, (*leading_dims(x), self.out_features))

    def _product(self, x: tf.Tensor) -> tf.Tensor:
        y = tf.matmul(x, tf.cast(self.weight, x.dtype), transpose_b=True)
        if self.bias is None:
            return y
        return tf.nn.bias_add(y, tf.cast(self.bias, x.dtype))


class Embedding(Module):
    """A table of vectors (rows, d)."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.weight = parameter((num_embeddings, embedding_dim))

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """(...) ids -> (..., d); the padding row gets no gradient."""
        # Its value, not the variable: once rows of a variable are gathered, TensorFlow copies it
        # whole at each reading, and a tied table is read at every step for the logits.
        x = tf.gather(tf.convert_to_tensor(self.weight), ids)
        if self.padding_idx is not None:
            pad = tf.cast(self.padding_idx, ids.dtype)
            is_pad = tf.equal(ids, pad)
            x = tf.where(is_pad[..., None], tf.stop_gradient(x), x)
        return tf.cast(x, compute_dtype() or x.dtype)


class LayerNorm(Module):
    """Mean 0, variance 1 over the last axis, then gain and bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width = width
        self.eps = float(eps)
        self.weight = parameter((width,))
        self.bias = parameter((width,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """(..., d) -> (..., d), in float32 or wider."""
        wide = widen(x)
        mean = tf.reduce_mean(wide, -1, keepdims=True)
        centred = wide - mean  # once: a difference that spreads is a slow one
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        # A Python float takes the tensor's own precision; a float32 constant would be wrong in
        # float64.
        normed = centred * tf.math.rsqrt(variance + self.eps)
        y = normed * tf.cast(self.weight, wide.dtype)
        y = tf.nn.bias_add(y, tf.cast(self.bias, wide.dtype))
        return tf.cast(y, x.dtype)


def widen(x: tf.Tensor) -> tf.Tensor:
    """The tensor in float32, or as it is if wider."""
    if x.dtype == tf.float64:
        return x
    return tf.cast(x, tf.float32)


_COMPUTE: contextvars.ContextVar[Any] = contextvars.ContextVar("compute_dtype", default=None)


def compute_dtype() -> Any:
    """The dtype that activations have under mixed precision; None = that of the weights."""
    return _COMPUTE.get()


@contextlib.contextmanager
def computing_in(dtype: Any) -> Iterator[None]:
    """Mixed precision: activations in `dtype` (None = the weights' own), weights as they are
    stored.
    """
    if dtype is not None:
        dtype = tf.as_dtype(dtype)
    token = _COMPUTE.set(dtype)
    try:
        yield
    finally:
        _COMPUTE.reset(token)


@dataclass
class Stream:
    """The random numbers of one graph.

    The seed (2,) of a run, and how many draws the graph holds so far.
    """

    seed: tf.Tensor
    draws: int = 0


# seeds are below it
_SEED_END = 2**31 - 1
_STREAM: contextvars.ContextVar[Stream | None] = contextvars.ContextVar("stream", default=None)
_SEEDS: contextvars.ContextVar[np.random.Generator | None] = contextvars.ContextVar(
    "seeds", default=None
)


@contextlib.contextmanager
def streaming(stream: Stream) -> Iterator[None]:
    """While a graph is traced.

    Every draw becomes a function of the stream's seed and of its place in the graph.
    """
    token = _STREAM.set(stream)
    try:
        yield
    finally:
        _STREAM.reset(token)


@contextlib.contextmanager
def seeded_by(generator: np.random.Generator) -> Iterator[None]:
    """Within it dropout follows `generator`, so that a run can be repeated.

    Elsewhere `tf.random.set_seed`.
    """
    token = _SEEDS.set(generator)
    try:
        yield
    finally:
        _SEEDS.reset(token)


def fresh_seed() -> tf.Tensor:
    """A seed (2,) int32 for one run of a graph."""
    generator = _SEEDS.get()
    if generator is None:
        return tf.random.uniform((2,), maxval=_SEED_END, dtype=tf.int32)
    return tf.constant(generator.integers(_SEED_END, size=2, dtype=np.int32))


def uniform(shape: Any) -> tf.Tensor:
    """float32 numbers from 0 up to 1, others at each run of a graph."""
    stream = _STREAM.get()
    if stream is None and (_SEEDS.get() is None or not tf.executing_eagerly()):
        return tf.random.uniform(shape)
    if stream is None:
        stream = Stream(fresh_seed())
    stream.draws += 1
    seed = tf.add(stream.seed, [0, stream.draws])
    # The algorithm by name: left to TensorFlow, each kind of device would take its own.
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class Replay:
    """A context that may be entered several times, and within which the random numbers are the
    same each time.
    """

    def __init__(self) -> None:
        stream = _STREAM.get()
        if stream is None and tf.executing_eagerly():
            stream = Stream(fresh_seed())
        elif stream is None:
            # In a graph that is not ours the seed has to be a node, or all its runs were alike.
            seed = tf.random.uniform((2,), maxval=_SEED_END, dtype=tf.int32)
            stream = Stream(seed)
        self._stream = stream
        self._first = stream.draws

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from the beginning; what is drawn after the context goes on behind it."""
        again = Stream(self._stream.seed, self._first)
        with streaming(again):
            yield
        self._stream.draws = max(self._stream.draws, again.draws)


def dropout(x: tf.Tensor, rate: float, training: bool) -> tf.Tensor:
    """Zeroes a share `rate` of x and scales the rest up, while training."""
    if not training or rate <= 0:
        return x
    scale = 0.0  # of a rate of 1 nothing is left to be scaled up
    if rate < 1:
        scale = 1.0 / (1.0 - rate)
    stays = uniform(tf.shape(x)) >= rate
    return tf.where(stays, x * scale, tf.zeros((), x.dtype))
