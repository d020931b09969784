"""Training, measuring and predicting through Keras: compile, fit, evaluate, predict.

A step is Python around graphs (question encoder, then the search, then generator, loss and
optimizer), for a search cannot be compiled. The loss is the negative log-likelihood per scored
token of the batch, as in `rag_tf.training`. Letters: B questions, T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from rag_core.checks import warn
from rag_tf.contexts import to_device
from rag_tf.marginalize import shift_left


class KerasFit:
    """What a keras.Model needs to be trained with the RAG loss.

    Data are dictionaries of what `call` takes, with `labels`, or pairs (inputs, labels), or triples
    with a weight for each question; batches may differ in length and size.
    """

    optimizer: Any
    steps_per_execution: int
    _loss_tracker: Any

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Choose an optimizer; the loss is the model's own.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: must be None.
            metrics: must be None.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: a loss or metrics.
        """
        given = {
            "loss": loss,
            "metrics": metrics,
            "weighted_metrics": kwargs.get("weighted_metrics"),
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} must be left out: the loss is the model's own, of the labels among "
                    "the inputs; answers are measured with generate() and rag_core.metrics"
                )
        super().compile(optimizer=optimizer, **kwargs)  # type: ignore[misc]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the optimizer on a batch.

        Returns:
            {"loss": the mean so far in this epoch, per scored token}.
        """
        variables = self.trainable_variables  # type: ignore[attr-defined]
        # Told which weights learn, a tape keeps nothing of networks without any.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, tokens = self._loss(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        if variables:
            self._learn(variables, tape.gradient(scaled, variables))
        else:
            warn("The model has no trainable weights: set model.trainable = True")
        self._loss_tracker.update_state(loss, sample_weight=tokens)
        return self.get_metrics_result()  # type: ignore[attr-defined]

    def test_step(self, data: Any) -> dict[str, Any]:
        """The loss of a batch, without dropout.

        Returns:
            {"loss": the mean so far, per scored token}.
        """
        loss, tokens = self._loss(data, training=False)
        self._loss_tracker.update_state(loss, sample_weight=tokens)
        return self.get_metrics_result()  # type: ignore[attr-defined]

    def predict_step(self, data: Any) -> dict[str, Any]:
        """Of a batch: `logits`, `doc_scores` and, with labels, `loss`.

        All batches must have targets of one length.
        """
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self._forward(inputs, labels, training=False)
        return {name: outputs[name] for name in ("loss", "logits", "doc_scores") if name in outputs}

    def _forward(self, inputs: Any, labels: Any, **options: Any) -> Any:
        args, kwargs = spread((inputs,), {} if labels is None else {"labels": labels})
        if "labels" in kwargs:
            options["reduce_loss"] = False
        return self(*args, **{**kwargs, **options, "return_dict": True, "use_cache": False})  # type: ignore[operator]

    def _loss(self, data: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss per scored token, and the number of these."""
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        args, kwargs = spread((inputs,), {})
        labels = kwargs.pop("labels", None) if labels is None else labels
        if labels is None:
            raise ValueError(
                "labels must be given: data are {..., 'labels': ids}, or pairs (inputs, labels)"
            )
        if not hasattr(self, "get_nll"):
            raise TypeError(
                f"{type(self).__name__} has no loss: train RagTokenForGeneration or "
                "RagSequenceForGeneration"
            )
        labels = to_device(labels)
        nll = self._forward({**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}, labels,
                            training=training).loss  # (B,)  # fmt: skip
        pad = self._pad_token_id  # type: ignore[attr-defined]
        tokens = tf.reduce_sum(tf.cast(shift_left(labels, pad) != pad, nll.dtype), 1)  # (B,)
        if weights is not None:
            weights = tf.cast(to_device(weights), nll.dtype)
            nll, tokens = nll * weights, tokens * weights
        total = tf.reduce_sum(tokens)
        return tf.math.divide_no_nan(tf.reduce_sum(nll), total), total

    def _learn(self, variables: list[Any], found: list[Any]) -> None:
        learning = [place for place, gradient in enumerate(found) if gradient is not None]
        # A sparse gradient's number of rows would be another graph each time.
        gradients = [tf.convert_to_tensor(found[place]) for place in learning]
        self._apply(variables)(tuple(learning), gradients)

    def _apply(self, variables: list[Any]) -> Callable[..., Any]:
        """The optimizer's step as a graph."""
        key = (id(self.optimizer), tuple(map(id, variables)))
        if self.__dict__.get("_apply_key") != key:
            optimizer = self.optimizer
            if not optimizer.built:
                optimizer.build(variables)

            def apply(places: tuple[int, ...], gradients: list[tf.Tensor]) -> None:
                optimizer.apply(gradients, [variables[place] for place in places])

            object.__setattr__(self, "_apply_graph", tf.function(apply, autograph=False))
            object.__setattr__(self, "_apply_key", key)
        return self.__dict__["_apply_graph"]

    def make_train_function(self, force: bool = False) -> Any:
        """A step as Keras' loop calls it: in Python, as a search is part of it."""
        self.train_function = self._looped(self.train_step)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """See `make_train_function`."""
        self.test_function = self._looped(self.test_step)
        return self.test_function

    def _looped(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def function(iterator: Any) -> Any:
            logs = None
            for _, data in zip(range(self.steps_per_execution), iterator, strict=False):
                logs = step(data)
            if logs is None:
                raise StopIteration
            return logs

        return function


def spread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with what stands in `inputs` or in front laid out: a dictionary by name, a
    list by place.

    Raises:
        TypeError: an argument is given twice.
    """
    if "inputs" in kwargs:
        kwargs = {**kwargs}
        inputs = kwargs.pop("inputs")
        if inputs is not None:
            if args or kwargs.get("input_ids") is not None:
                raise TypeError("inputs and input_ids are one argument: give one of them")
            kwargs.pop("input_ids", None)
            args = (inputs,)
    if not args:
        return args, kwargs
    first, rest = args[0], args[1:]
    if isinstance(first, Mapping) or (hasattr(first, "keys") and hasattr(first, "items")):
        found = {name: value for name, value in first.items() if name != "token_type_ids"}
        twice = [name for name in found if kwargs.get(name) is not None]
        if twice or rest:
            given = ", ".join(twice) or f"{len(rest)} arguments"
            raise TypeError(
                f"{given} given beside a dictionary of inputs: put them into it, or use keywords"
            )
        return (), {**kwargs, **found}
    if isinstance(first, list | tuple) and _holds_arguments(first):
        return (*first, *rest), kwargs
    return args, kwargs


def _holds_arguments(values: Any) -> bool:
    """Whether a list is one of tensors, arrays or tables of ids, rather than itself a table of
    ids.
    """
    for value in values:
        if value is None or hasattr(value, "shape"):
            return True
        if isinstance(value, list | tuple) and any(
            isinstance(each, list | tuple) for each in value
        ):
            return True
    return False
