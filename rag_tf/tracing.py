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
        ties, state = tied_names(self.model), dict(named_tensors(self.model))
        for name, array in arrays.items():
            if name not in ties:
                state[name].assign(tf.cast(tf.constant(array), state[name].dtype))

    def tensor(self, array: np.ndarray) -> tf.Tensor:
        tensor = tf.constant(array)
        return tf.cast(tensor, self.model.dtype) if tensor.dtype.is_floating else tensor

    def run(self, inputs: Mapping[str, Any], gradients: bool) -> tuple[Any, dict[str, np.ndarray]]:
        if not gradients:
            return self.model(**inputs), {}
        learning = {name: each for name, each in named_tensors(self.model) if each.trainable}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(learning.values()))
            out = self.model(**inputs)
            loss = tf.reduce_sum(out.loss)
        zeros = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(loss, learning, unconnected_gradients=zeros)
        return out, {name: to_numpy(tf.convert_to_tensor(slope)) for name, slope in slopes.items()}
