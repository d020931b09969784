"""What torch.nn.Module offers those who use a model and TensorFlow lacks.

Types, places, modes, weights by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from rag_core.checkpoint import needs_float32, with_ties
from rag_tf import weights as tensors
from rag_tf.graph import Graph

Holder = TypeVar("Holder", bound="WeightHolder")

_OLD_NAMES = {"half": "float16", "float": "float32", "double": "float64"}


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` passed over, named as by PyTorch.

    Attributes:
        missing_keys: weights without a value, in the model's order.
        unexpected_keys: values without a weight.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class WeightHolder:
    """A mixin without weights of its own, for networks (`Module`) and for the public classes, which
    are Keras models.

    It asks for `named_parameters()`, `get_submodule(path)` and `trainable_variables`, and of
    networks for `modules()`.
    """

    config: Any
    named_parameters: Any
    get_submodule: Any
    modules: Any
    trainable_variables: Any
    _graphs: dict[str, Graph]
    _train_mode = False
    _version = 0

    def __getstate__(self) -> dict[str, Any]:
        # Graphs hold the variables they were traced with, and cannot be copied.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_graphs", "_graphs_version")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        tensors.name_new_variables(self)

    def train(self: Holder, mode: bool = True) -> Holder:
        """Dropout acts in calls that leave `training` out.

        Returns:
            This model.
        """
        object.__setattr__(self, "_train_mode", bool(mode))
        return self

    def eval(self: Holder) -> Holder:
        """Dropout acts only in calls with `training=True`, as in a fresh model.

        Returns:
            This model.
        """
        return self.train(False)

    def in_training(self, training: bool | None) -> bool:
        """The switch of one call: None means what `train()` and `eval()` set."""
        if training is None:
            return self._train_mode
        return bool(training)

    def graph(self, name: str, function: Callable[..., Any], keep_last: bool = False) -> Graph:
        """This model's graph of that name, made from `function` when it is first asked for.

        Graphs read the variables they were traced with: all are made anew after variables were
        replaced.
        """
        version = self.weights_version()
        if self.__dict__.get("_graphs_version") != version:
            object.__setattr__(self, "_graphs", {})
            object.__setattr__(self, "_graphs_version", version)
        if name not in self._graphs:
            self._graphs[name] = Graph(function, keep_last)
        return self._graphs[name]

    def weights_version(self) -> Any:
        """Another value whenever variables here or below have been replaced, instead of given
        other values.
        """
        return id(self), self._version

    def reset_graphs(self) -> None:
        """Forget all graphs; for whoever has put other variables in place."""
        object.__setattr__(self, "_version", self._version + 1)

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Within it TensorFlow computes where this model's weights are.

        Inside a graph it changes nothing.
        """
        # A graph that names a device runs on no machine without it.
        if not tf.executing_eagerly():
            yield
            return
        with tf.device(self.device):
            yield

    @property
    def device(self) -> str:
        """Where the weights are, e.g. "/GPU:0"."""
        device = tf.DeviceSpec.from_string(self._first().device)
        return f"/{device.device_type or 'CPU'}:{device.device_index or 0}"

    @property
    def dtype(self) -> tf.DType:
        """The type of the weights."""
        return tf.as_dtype(self._first().dtype)

    def _first(self) -> Any:
        return next(variable for _, variable in self.named_parameters())

    def parameters(self) -> Iterator[Any]:
        """All weights, tied ones once."""
        return (variable for _, variable in tensors.named_tensors(self))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights by name as read-only arrays, tied ones under each of their names."""
        arrays = tensors.to_arrays(self)
        ties = tensors.tied_names(self)
        return {name: arrays[ties.get(name, name)] for name, _ in self.named_parameters()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Write values into the weights; their type and place stay.

        Args:
            state_dict: name -> array or tensor.
            strict: whether every name must be there, tied ones under one of theirs, and no other.

        Returns:
            (missing_keys, unexpected_keys), which without `strict` are passed over.

        Raises:
            ValueError: names or shapes do not fit; all of them are listed, and nothing is written.
        """
        from rag_core.checkpoint import check_weights

        state_dict = with_ties(state_dict, tensors.tied_names(self))
        variables = dict(self.named_parameters())
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        new_shapes = {name: tuple(np.shape(value)) for name, value in state_dict.items()}
        missing = [name for name in shapes if name not in new_shapes]
        unexpected = [name for name in new_shapes if name not in shapes]
        if not strict:
            common = shapes.keys() & new_shapes.keys()
            shapes = {name: shape for name, shape in shapes.items() if name in common}
            new_shapes = {name: shape for name, shape in new_shapes.items() if name in common}
        check_weights(shapes, new_shapes, source="state_dict")
        for name in shapes:
            value = tf.convert_to_tensor(state_dict[name])
            variables[name].assign(tf.cast(value, variables[name].dtype))
        return IncompatibleKeys(missing, unexpected)

    def to(self: Holder, *args: Any, dtype: Any = None, device: Any = None) -> Holder:
        """Give the weights another type, another place, or both; new variables take the place of
        the old ones.

        In a T5 in float16 the second feed-forward maps are float32, as their sums pass float16's
        range.

        Args:
            *args: a dtype, a device, or one of each, in any order, as in PyTorch.
            dtype: a floating-point type or its name.
            device: "cpu", "cuda", "cuda:0", "gpu" or "/GPU:0".

        Returns:
            This model.

        Raises:
            ValueError: neither a floating-point type nor a device.
        """
        for value in args:
            if tensors.is_device(value):
                device = value
            elif value is not None:
                dtype = value
        new_dtype = None
        if dtype is not None:
            new_dtype = resolve_dtype(dtype, self.config)
        place: str | None = self.device
        if device is not None:
            place = tensors.resolve_device(device)

        def change(name: str, variable: Any) -> Any:
            if new_dtype is None or not variable.dtype.is_floating:
                return variable.read_value()
            if new_dtype == tf.float16 and needs_float32(name):
                return tf.cast(variable, tf.float32)
            return tf.cast(variable, new_dtype)

        tensors.replace_all(self, change, place)
        return self


def resolve_dtype(dtype: Any, config: Any) -> tf.DType | None:
    """None is float32; "auto" the config's, or None (as stored) without one; a name or a dtype is
    itself.

    Args:
        dtype: TensorFlow's, NumPy's or PyTorch's dtype, or a name: "float64", "bfloat16",
            "tf.float32", "torch.half".
        config: whose `torch_dtype` "auto" means.

    Raises:
        ValueError: not a floating-point type.
    """
    if dtype is None:
        return tf.float32
    if isinstance(dtype, str) and dtype == "auto":
        if config.torch_dtype is None:
            return None
        dtype = config.torch_dtype
    value = dtype
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        name = str(dtype).rpartition(".")[2]
        value = _OLD_NAMES.get(name, name)
    try:
        resolved = tf.as_dtype(value)
    except TypeError:
        resolved = None
    if resolved is None or not resolved.is_floating:
        raise ValueError(
            f"dtype must be a floating-point TensorFlow dtype, its name or 'auto', got {dtype!r}"
        )
    return resolved
