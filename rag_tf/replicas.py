"""Training on the replicas of a `tf.distribute` strategy: how a step runs on them, what they add up
and what they gather.

A step is Python around graphs here, so the replicas of one process take turns: each runs until all
have to add something up. Without a strategy there is one replica, and nothing to be added.

Letters: R rows, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.training import Processes, ProcessLost

_STRATEGIES = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)
_REFUSED = (
    tf.distribute.ParameterServerStrategy,
    tf.distribute.TPUStrategy,
    tf.distribute.experimental.CentralStorageStrategy,
)


def check_strategy(strategy: Any, variables: Iterable[Any]) -> None:
    """Refuse to train where not every replica has the weights.

    Args:
        strategy: where a model trains.
        variables: what has to be there.

    Raises:
        ValueError: another kind of strategy, or variables that were made outside of its scope.
    """
    if isinstance(strategy, _REFUSED):
        raise ValueError(
            "the strategy must be a MirroredStrategy (devices of one machine) or a "
            f"MultiWorkerMirroredStrategy (several processes), got {type(strategy).__name__}. "
            "Take one of these"
        )
    for variable in variables:
        if not strategy.extended.variable_created_in_scope(variable):
            raise ValueError(
                "model and optimizer must be made within the scope of the strategy that they train "
                f"with, got {variable.name!r}, which was made elsewhere. Call from_pretrained, to, "
                "set_context_encoder_for_training and compile within strategy.scope()"
            )


def scope(strategy: Any) -> AbstractContextManager[Any]:
    """Within it variables are made on all replicas; without a strategy nothing changes."""
    if not isinstance(strategy, _STRATEGIES):
        return nullcontext()
    context: AbstractContextManager[Any] = strategy.scope()
    return context


def on_replicas(strategy: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on each replica of this process.

    Args:
        strategy: of the replicas.
        function: what to call.
        *args: where they are values of a strategy's, each replica gets its own.

    Returns:
        What the function returned, of several replicas as values of the strategy's.
    """
    if not isinstance(strategy, _STRATEGIES):
        return function(*args)
    function = tf.autograph.experimental.do_not_convert(function)
    return strategy.run(function, args=args)


def of_first(strategy: Any, values: Any) -> Any:
    """What the first replica of this process returned, of nested values that `on_replicas` gave."""
    return tf.nest.map_structure(
        lambda value: strategy.experimental_local_results(value)[0], values
    )


def number() -> int | None:
    """Of the replica that is running; None outside of a strategy's replicas."""
    if not tf.distribute.has_strategy():
        return None
    replica = tf.distribute.get_replica_context()
    if replica is None:
        return None
    place: int | None = tf.get_static_value(replica.replica_id_in_sync_group)
    return place


def count() -> int:
    """How many replicas train together."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def summed(values: Any) -> Any:
    """The sums of (nested) tensors over all replicas, with gradients; to be called by each."""
    if count() == 1:
        return values
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


# What replicas gather they add up, each with zeros in the others' places: TensorFlow's own
# `all_gather` makes a graph anew at each call outside of graphs.


def gathered(rows: tf.Tensor) -> tf.Tensor:
    """Rows (R, ...) of all replicas by their number, with gradients into each one's own."""
    if count() == 1:
        return rows
    sizes = _of_all([rows.shape[0]])[:, 0]
    start, end = _own(sizes)
    widths = [(start, int(sizes.sum()) - end)] + [(0, 0)] * (len(rows.shape) - 1)
    return summed(tf.pad(rows, widths))


def gathered_tokens(tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """Integers (R, ...) of all replicas, shorter ones lengthened with zeros.

    Returns:
        All of them, and the row at which this replica's begin.
    """
    if count() == 1:
        return tokens, 0
    sizes = _of_all(list(tokens.shape))  # (replicas, axes)
    start, end = _own(sizes[:, 0])
    every = np.zeros((sizes[:, 0].sum(), *sizes[:, 1:].max(0)), np.int64)
    every[(slice(start, end), *map(slice, tokens.shape[1:]))] = tokens
    return summed(tf.constant(every)).numpy(), start


def gathered_shares(rows: int, make: Callable[[slice], tf.Tensor]) -> tf.Tensor:
    """Vectors (R, D), of which each replica makes a share.

    Args:
        rows: R.
        make: the vectors of some rows; of at least one.
    """
    if count() == 1:
        return make(slice(0, rows))
    ends = np.linspace(0, rows, count() + 1).astype(int)
    place = number() or 0
    start, end = ends[place], ends[place + 1]
    if start < end:
        return gathered(make(slice(start, end)))
    # What another one makes is made for nothing, so that all weights have a part in the loss.
    return gathered(make(slice(0, 1))[:0])


def _of_all(numbers: list[int]) -> np.ndarray:
    """Numbers of each replica (replicas, numbers)."""
    every = np.zeros((count(), len(numbers)), np.int64)
    every[number()] = numbers
    return summed(tf.constant(every)).numpy()


def _own(sizes: np.ndarray) -> tuple[int, int]:
    """Where this replica's rows begin and end among those of all."""
    end = int(sizes[: (number() or 0) + 1].sum())
    return end - int(sizes[number()]), end


def assign(variable: Any, value: Any) -> None:
    """Write a value into a replica's own variable; the strategy does not see to the others."""
    tensor = tf.cast(tf.convert_to_tensor(value), variable.dtype)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tensor)


def writes(strategy: Any) -> bool:
    """Whether this process is the one that writes files for all."""
    return bool(strategy.extended.should_checkpoint)


class Replicas(Processes):
    """The replicas as the processes of a training run; made by each of them."""

    def __init__(self) -> None:
        self.rank = number() or 0
        self.count = count()

    def exchange_bytes(self, data: bytes) -> list[bytes]:
        try:
            sizes = _of_all([len(data)])[:, 0]
            every = np.zeros((self.count, max(sizes)), np.int32)
            every[self.rank, : len(data)] = np.frombuffer(data, np.uint8)
            rows = summed(tf.constant(every)).numpy().astype(np.uint8)
        except tf.errors.OpError as error:
            raise ProcessLost(f"another process of the run can't be reached: {error}") from error
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
