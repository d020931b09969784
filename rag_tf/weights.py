"""{name: ndarray} <-> variables, strictly: every name accounted for, ties kept, nothing half
loaded.

A `model` here has `named_parameters()` and `get_submodule(path)`, as `modules.Module` and every
public class has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.checkpoint import chosen_weights, needs_float32
from rag_tf.modules import Module, Placeholder

_DEVICE = re.compile(
    r"(?:/job:[^/]*)?(?:/replica:\d+)?(?:/task:\d+)?/?(?:device:)?(cpu|gpu|cuda)(?::(\d+))?"
)


def named_variables(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, variable) of a part of a model.

    Ours, or another library's tf.Module or Keras model, in which several may have one name: from
    the second on they get a number.
    """
    if part is None:
        return
    if hasattr(part, "named_parameters"):
        yield from part.named_parameters(prefix)
        return
    used: set[str] = set()
    for name, variable in _of_another_library(part):
        if name in used:
            name = next(new for i in count(1) if (new := f"{name}_{i}") not in used)
        used.add(name)
        yield f"{prefix}{name}", variable


def _of_another_library(part: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(part, "weights"):  # Keras: its own kind of variable around TensorFlow's
        for weight in part.weights:
            yield getattr(weight, "path", weight.name), getattr(weight, "value", weight)
    elif hasattr(part, "variables"):
        for variable in part.variables:
            name, _, _ = variable.name.partition(":")
            yield name, variable


def named_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Variables (or `Placeholder`s) by name; of tied ones only the first name."""
    seen: set[int] = set()
    for name, variable in model.named_parameters():
        if id(variable) not in seen:
            seen.add(id(variable))
            yield name, variable


def tied_names(model: Any) -> dict[str, str]:
    """Each further name of a tied variable -> its first name."""
    first: dict[int, str] = {}
    ties = {}
    for name, variable in model.named_parameters():
        if id(variable) in first:
            ties[name] = first[id(variable)]
        else:
            first[id(variable)] = name
    return ties


def to_arrays(model: Any, state_dict: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The weights as read-only NumPy arrays, tied ones once; bfloat16 stays bfloat16.

    On the CPU the arrays share the variables' memory until those change, so that saving takes no
    copy.

    Args:
        model: whose weights, or whose names.
        state_dict: values in place of the model's own, tied ones under any of their names.

    Raises:
        ValueError: `state_dict` has other names or shapes.
    """
    weights = dict(named_tensors(model))
    if state_dict is not None:
        weights = chosen_weights(weights, tied_names(model), state_dict)
    return {name: to_array(variable) for name, variable in weights.items()}


def to_array(tensor: Any) -> np.ndarray:
    """A variable's, tensor's or array's values of now, see `to_arrays`."""
    if isinstance(tensor, tf.Variable):
        tensor = tensor.read_value()
    return np.asarray(tensor)


def from_array(array: np.ndarray, dtype: Any = None, device: str | None = None) -> tf.Tensor:
    """A tensor that owns its memory.

    Args:
        array: any shape; ml_dtypes' bfloat16 included.
        dtype: wanted type; None keeps the array's. Integers keep theirs.
        device: wanted place; None leaves it to TensorFlow.
    """
    array = np.asarray(array)
    own = tf.as_dtype(array.dtype)
    if dtype is not None and own.is_floating:
        target = tf.as_dtype(dtype)
        if target != own:
            # Cast by NumPy: a GPU then only ever sees the wanted type.
            array = array.astype(target.as_numpy_dtype)
    with tf.device(device):
        return tf.constant(array)


def assign(model: Any, arrays: Mapping[str, np.ndarray], dtype: Any, device: Any) -> None:
    """Replace the named variables by new ones (the model may hold placeholders).

    Args:
        model: whose names these are.
        arrays: name -> values of the right shape; the caller has checked both.
        dtype: of floating-point weights; None keeps the arrays'. What needs float32 has that in
            place of float16.
        device: where to put them.
    """
    assign_each(model, arrays.items(), dtype, device)


def assign_each(
    model: Any, pairs: Iterable[tuple[str, np.ndarray]], dtype: Any, device: Any
) -> None:
    """As `assign`, from (name, array) pairs that are read one at a time."""
    place = resolve_device(device)
    variables = dict(model.named_parameters())
    for name, array in pairs:
        in_half = dtype == tf.float16 or (dtype is None and array.dtype == np.float16)
        own_dtype = dtype
        if in_half and needs_float32(name):
            own_dtype = tf.float32
        # Neither the old value nor the new one has a name here: it would live on while the next
        # array is read.
        replace(model, name, variables.pop(name), from_array(array, own_dtype, place), place)
    _forget_graphs(model)


def replace(model: Any, name: str, old: Any, value: tf.Tensor, device: str | None = None) -> Any:
    """Put a new variable in the place of `old`; within another library's module, the new value into
    `old`.

    Args:
        model: whose name it is.
        name: the variable's.
        old: the variable or `Placeholder` that stands there.
        value: the new one's.
        device: where to put it; None leaves it to TensorFlow.

    Returns:
        The variable that is there now.
    """
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except (AttributeError, LookupError, ValueError):
        module = None
    if not isinstance(module, Module):
        old.assign(tf.cast(value, old.dtype))
        return old
    with tf.device(device):
        new = tf.Variable(value, trainable=old.trainable)
    name_variable(new, getattr(old, "path", name))
    setattr(module, leaf, new)
    return new


def name_variable(variable: Any, name: str) -> None:
    """Give a variable the name of its weight.

    Keras and TensorFlow tell variables apart by `path` and `name`.
    """
    if getattr(variable, "path", None) != name:
        variable.path = name
        # Outside of graphs this is its name and nothing else, and only a constructor sets it.
        variable._handle_name = f"{name}:0"


def name_new_variables(model: Any) -> None:
    """Name what has no name yet, as seen from `model`."""
    for name, variable in named_tensors(model):
        if isinstance(variable, tf.Variable) and not hasattr(variable, "path"):
            name_variable(variable, name)


def replace_all(
    model: Any, change: Callable[[str, Any], tf.Tensor], device: str | None = None
) -> None:
    """Replace every variable by `change(name, variable)`.

    What was one variable under several names stays one.
    """
    done: dict[int, tuple[Any, Any]] = {}
    for name, old in list(model.named_parameters()):
        if id(old) in done:
            _, new = done[id(old)]
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, new)
        else:
            # The old one stays in the table, or a new variable could take over its id.
            new = replace(model, name, old, change(name, old), device)
            done[id(old)] = (old, new)
    _forget_graphs(model)


def _forget_graphs(model: Any) -> None:
    """Graphs read the variables that were there when they were traced."""
    if hasattr(model, "reset_graphs"):
        model.reset_graphs()


def placeholder_names(model: Any) -> list[str]:
    """Names without values yet, sorted."""
    return sorted(
        name for name, variable in model.named_parameters() if isinstance(variable, Placeholder)
    )


def resized(weight: tf.Variable, rows: int, std: float) -> tf.Tensor:
    """The table with `rows` rows: cut, or lengthened by normal(0, std)."""
    kept = weight[:rows]
    new_rows = max(0, rows - weight.shape[0])
    fresh = tf.random.normal((new_rows, *weight.shape[1:]), stddev=std)
    return tf.concat([kept, tf.cast(fresh, weight.dtype)], 0)


def is_device(value: Any) -> bool:
    """Whether this names a device.

    "cpu", "cuda", "cuda:0", "gpu", "/GPU:0", another framework's device object.
    """
    return _DEVICE.fullmatch(str(value).lower()) is not None


def resolve_device(device: Any) -> str | None:
    """A device as TensorFlow names it, "/GPU:0"; None leaves the place to TensorFlow (a GPU where
    there is one).

    Raises:
        ValueError: not the name of a device, or no such device here.
    """
    if device is None:
        return None
    match = _DEVICE.fullmatch(str(device).lower())
    if match is None:
        raise ValueError(
            f"device must be 'cpu', 'cuda', 'cuda:0', 'gpu', '/GPU:0' or None, got {device!r}"
        )
    kind = "GPU"
    if match[1] == "cpu":
        kind = "CPU"
    number = int(match[2] or 0)
    count = len(tf.config.list_logical_devices(kind))
    if number >= count:
        raise ValueError(
            f"device must be one that TensorFlow sees; got {device!r}, and there are {count} "
            f"{kind}s"
        )
    return f"/{kind}:{number}"
