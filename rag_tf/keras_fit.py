"""Training, measuring and predicting through Keras: compile, fit, evaluate, predict.

A step is Python around graphs (question encoder, then the search, then generator, loss and
optimizer), for a search cannot be compiled. The loss is the negative log-likelihood per scored
token of the batch, as in `rag_tf.training`. Letters: B questions, T target length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rag_core.checks import warn
from rag_tf.call_arguments import spread
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
        measures = {
            "loss": loss,
            "metrics": metrics,
            "weighted_metrics": kwargs.get("weighted_metrics"),
        }
        for name, measure in measures.items():
            if measure is not None:
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
        names = ("loss", "logits", "doc_scores")
        return {name: outputs[name] for name in names if name in outputs}

    def _forward(self, inputs: Any, labels: Any, training: bool) -> Any:
        keywords = {} if labels is None else {"labels": labels}
        args, kwargs = spread((inputs,), keywords)
        kwargs = {**kwargs, "training": training, "return_dict": True, "use_cache": False}
        if "labels" in kwargs:
            kwargs["reduce_loss"] = False
        return self(*args, **kwargs)  # type: ignore[operator]

    def _loss(self, data: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss per scored token, and the number of these."""
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        args, kwargs = spread((inputs,), {})
        inputs = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        if labels is None:
            labels = inputs.pop("labels", None)
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
        nll = self._forward(inputs, labels, training).loss  # (B,)
        pad = self._pad_token_id  # type: ignore[attr-defined]
        tokens = tf.reduce_sum(tf.cast(shift_left(labels, pad) != pad, nll.dtype), 1)  # (B,)
        if weights is not None:
            weights = tf.cast(to_device(weights), nll.dtype)
            nll = nll * weights
            tokens = tokens * weights
        total = tf.reduce_sum(tokens)
        return tf.math.divide_no_nan(tf.reduce_sum(nll), total), total

    def _learn(self, variables: list[Any], gradients: list[Any]) -> None:
        # A variable that had no part in the loss has no gradient.
        learning = [place for place, gradient in enumerate(gradients) if gradient is not None]
        # A sparse gradient's number of rows would be another graph each time.
        dense = [tf.convert_to_tensor(gradients[place]) for place in learning]
        self._apply(variables)(tuple(learning), dense)

    def _apply(self, variables: list[Any]) -> Callable[..., Any]:
        """The optimizer's step as a graph, made anew for another optimizer or other variables."""
        key = (id(self.optimizer), tuple(map(id, variables)))
        if self.__dict__.get("_apply_key") != key:
            optimizer = self.optimizer
            if not optimizer.built:
                optimizer.build(variables)

            def apply(places: tuple[int, ...], gradients: list[tf.Tensor]) -> None:
                optimizer.apply(gradients, [variables[place] for place in places])

            # Past Keras' trackers, which would make a layer's attribute of it.
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
        """So many steps of an iterator, in Python."""

        def function(iterator: Any) -> Any:
            logs = None
            for _, data in zip(range(self.steps_per_execution), iterator, strict=False):
                logs = step(data)
            if logs is None:
                raise StopIteration
            return logs

        return function
