"""A head run on NumPy arrays, for `rag_core.parity` to record its stages: TensorFlow's part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.backends import to_numpy
from rag_core.parity import TracerBase
from rag_tf import marginalize
from rag_tf.weights import named_tensors, tied_names


class Tracer(TracerBase):
    """See `rag_core.parity.TracerBase`."""

    backend = "tf"
    version = tf.__version__
    math = marginalize

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        ties = tied_names(self.model)
        variables = dict(named_tensors(self.model))
        for name, array in arrays.items():
            if name not in ties:
                variable = variables[name]
                variable.assign(tf.cast(tf.constant(array), variable.dtype))

    def tensor(self, array: np.ndarray) -> tf.Tensor:
        tensor = tf.constant(array)
        if tensor.dtype.is_floating:
            return tf.cast(tensor, self.model.dtype)
        return tensor

    def run(self, inputs: Mapping[str, Any], gradients: bool) -> tuple[Any, dict[str, np.ndarray]]:
        if not gradients:
            return self.model(**inputs), {}
        learning = {
            name: variable for name, variable in named_tensors(self.model) if variable.trainable
        }
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(learning.values()))
            out = self.model(**inputs)
            loss = tf.reduce_sum(out.loss)
        zeros = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(loss, learning, unconnected_gradients=zeros)
        arrays = {}
        for name, slope in slopes.items():
            # A table's gradient may come as the rows that were looked up.
            dense = tf.convert_to_tensor(slope)
            arrays[name] = to_numpy(dense)
        return out, arrays
