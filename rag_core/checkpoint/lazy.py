"""Weights by name whose arrays are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

# Bytes of a weight compared at once: the pages of a mapped file that are read count as memory.
_PART = 2**24


class LazyWeights(Mapping[str, np.ndarray]):
    """Names with arrays that are read when asked for.

    Attributes:
        shapes: name -> shape, known without reading the arrays.
        dtypes: name -> dtype, likewise.
        free: gives back the memory of mapped files that was touched by reading; arrays stay valid.
        scoped: the names are TensorFlow's, with scopes in front (see `tf_names`).
        left_out: names of the file that are known to be needed by nothing here.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        *,
        dtypes: Mapping[str, np.dtype],
        free: Callable[[], None] = lambda: None,
        scoped: bool = False,
        left_out: Iterable[str] = (),
    ) -> None:
        self.shapes = dict(shapes)
        self.dtypes = dict(dtypes)
        self.free = free
        self.scoped = scoped
        self.left_out = tuple(left_out)
        self._read = read

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # the inherited one would read the array

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def given_weights(
    state_dict: Mapping[str, Any], to_array: Callable[[Any], np.ndarray]
) -> LazyWeights:
    """Tensors or arrays by name, as a checkpoint's file would give them.

    Args:
        state_dict: weights by name.
        to_array: a tensor's values, which may share its memory.

    Raises:
        TypeError: no mapping.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}.")
    arrays = {name: to_array(value) for name, value in state_dict.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    dtypes = {name: array.dtype for name, array in arrays.items()}
    return LazyWeights(shapes, arrays.__getitem__, dtypes=dtypes)


def same_numbers(
    one: np.ndarray, other: np.ndarray, free: Callable[[], None] | None = None
) -> bool:
    """Whether two arrays of one shape hold the same bits or equal numbers; compared in parts,
    `free` called after each.

    Args:
        one: an array, perhaps of a mapped file.
        other: the same.
        free: gives back the memory of mapped files.
    """
    one, other = np.atleast_1d(one, other)
    rows = max(1, _PART // max(1, one[:1].nbytes))
    for start in range(0, len(one), rows):
        first = one[start : start + rows]
        second = other[start : start + rows]
        # the same NaN is the same, too
        if not np.array_equal(first, second) and first.tobytes() != second.tobytes():
            return False
        if free is not None:
            free()
    return True


def shape_of(weights: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A shape without reading the array, where the mapping knows it."""
    shapes = getattr(weights, "shapes", None)
    if shapes is None:
        return tuple(np.shape(weights[name]))
    return tuple(shapes[name])


def dtype_of(weights: Mapping[str, Any], name: str) -> np.dtype:
    """A dtype without reading the array, where the mapping knows it."""
    dtypes = getattr(weights, "dtypes", None)
    if dtypes is None:
        return np.asarray(weights[name]).dtype
    return dtypes[name]
