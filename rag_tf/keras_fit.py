"""Training, measuring and predicting through Keras: compile, fit, evaluate, predict.

A step is Python around graphs (question encoder, then the search, then generator, loss and
optimizer), for a search cannot be compiled. The losses are those of `rag_tf.training`, with the same
names and weights. Letters: B questions, N documents a question, P passages a question, Q question
length, L passage length, C passages of a batch, T target length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from rag_core.backends import to_numpy
from rag_core.checks import warn
from rag_core.training import ForwardPass, TrainingConfig, passage_rows, retriever_losses
from rag_tf.call_arguments import spread
from rag_tf.contexts import to_device
from rag_tf.marginalize import shift_left

_PASSAGES = ("passage_input_ids", "passage_attention_mask")


@dataclass
class StepLosses:
    """The losses of a batch; scalars.

    Attributes:
        loss: what is minimised.
        count: what the answers' loss is a mean over, scored tokens; where there is none, questions.
        questions: what the others are means over, weighted as the caller says.
        retriever_loss: without its weight, in nats a question; None without one.
        in_batch_accuracy: share of questions that scored their own passage highest; None without
            passages.
    """

    loss: tf.Tensor
    count: tf.Tensor
    questions: tf.Tensor
    retriever_loss: tf.Tensor | None = None
    in_batch_accuracy: tf.Tensor | None = None


class KerasFit:
    """What a keras.Model needs to be trained with the losses of RAG.

    Data are dictionaries of what `call` takes, with `labels`, or pairs (inputs, labels), or triples
    with a weight for each question; batches may differ in length and size. With
    `retriever_loss="contrastive"` they hold `passage_input_ids` and `passage_attention_mask`
    (B, P, L), too, tokens of the context encoder's tokenizer: of each question first the passage
    that answers it, then such as do not (see `rag_core.training.passage_rows`).
    """

    optimizer: Any
    steps_per_execution: int
    _loss_tracker: Any
    _settings = TrainingConfig()
    _retriever_metrics: tuple[Any, ...] = ()

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        *,
        retriever_loss: str | None = None,
        retriever_loss_weight: float = 1.0,
        answer_loss_weight: float = 1.0,
        distillation_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Choose an optimizer, and what teaches the retriever; the loss is the model's own.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: must be None.
            metrics: must be None.
            retriever_loss: None, "emdr2", "pdist" or "contrastive"; this and the next three as of
                `rag_core.training.TrainingConfig`.
            retriever_loss_weight: its factor, a mean over questions.
            answer_loss_weight: factor of the answers' loss, a mean over tokens.
            distillation_temperature: of "pdist".
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            TypeError, ValueError: a loss or metrics, or settings that cannot be.
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
                    "the inputs (retriever_loss= names one for the retriever besides); answers are "
                    "measured with generate() and rag_core.metrics"
                )
        settings = TrainingConfig(
            retriever_loss=retriever_loss,
            retriever_loss_weight=retriever_loss_weight,
            answer_loss_weight=answer_loss_weight,
            distillation_temperature=distillation_temperature,
        )
        names = []
        if settings.retriever_loss is not None:
            names.append("retriever_loss")
        if settings.retriever_loss == "contrastive":
            names.append("in_batch_accuracy")
        # Past Keras' trackers, which would keep those of an earlier `compile`, too.
        object.__setattr__(self, "_settings", settings)
        means = tuple(keras.metrics.Mean(name=name) for name in names)
        object.__setattr__(self, "_retriever_metrics", means)
        super().compile(optimizer=optimizer, **kwargs)  # type: ignore[misc]

    @property
    def metrics(self) -> list[Any]:
        """The loss, and with a `retriever_loss` what it comes to."""
        return [*super().metrics, *self._retriever_metrics]  # type: ignore[misc]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the optimizer on a batch.

        Returns:
            {"loss": the mean so far in this epoch, per scored token}, and with a `retriever_loss`
            "retriever_loss" and "in_batch_accuracy".
        """
        variables = self.trainable_variables  # type: ignore[attr-defined]
        # Told which weights learn, a tape keeps nothing of networks without any.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self._step_losses(data, training=True)
            scaled = self.optimizer.scale_loss(losses.loss)
        if variables:
            self._learn(variables, tape.gradient(scaled, variables))
        else:
            warn("The model has no trainable weights: set model.trainable = True")
        return self._measured(losses)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The losses of a batch, without dropout.

        Returns:
            As of `train_step`, the means so far.
        """
        return self._measured(self._step_losses(data, training=False))

    def _measured(self, losses: StepLosses) -> dict[str, Any]:
        """The means so far, with those of a batch."""
        self._loss_tracker.update_state(losses.loss, sample_weight=losses.count)
        for metric in self._retriever_metrics:
            value = getattr(losses, metric.name)
            metric.update_state(value, sample_weight=losses.questions)
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

    def _step_losses(self, data: Any, training: bool) -> StepLosses:
        """The losses of a batch."""
        settings = self._settings
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        args, kwargs = spread((inputs,), {})
        inputs = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        if labels is None:
            labels = inputs.pop("labels", None)
        passages, passage_mask = (inputs.pop(name, None) for name in _PASSAGES)
        if not hasattr(self, "get_nll"):
            raise TypeError(
                f"{type(self).__name__} has no loss: train RagTokenForGeneration or "
                "RagSequenceForGeneration"
            )
        forward = ForwardPass(self)
        nll = None
        if settings.reads_documents:
            nll = self._answered(forward, inputs, labels, training)  # (B,)
        if settings.retriever_loss == "contrastive":
            self._compared(forward, inputs, passages, passage_mask, training)
        rows = None
        if settings.retriever_loss is not None:
            rows = retriever_losses(forward, settings)  # (B,)
        return self._weighed(forward, nll, rows, weights)

    def _answered(
        self, forward: ForwardPass, inputs: dict[str, Any], labels: Any, training: bool
    ) -> tf.Tensor:
        """Predict the answers; their negative log-likelihoods (B,)."""
        if labels is None:
            raise ValueError(
                "labels must be given: data are {..., 'labels': ids}, or pairs (inputs, labels)"
            )
        labels = to_device(labels)
        outputs = self._forward(inputs, labels, training)
        scores = outputs.doc_scores
        forward.contexts = SimpleNamespace(doc_scores=scores, n_docs=scores.shape[1])
        forward.logits, forward.target = outputs.logits, labels
        forward.question_vectors = outputs.question_encoder_last_hidden_state
        return outputs.loss

    def _compared(
        self, forward: ForwardPass, inputs: dict[str, Any], ids: Any, mask: Any, training: bool
    ) -> None:
        """Encode the passages of a batch, each once, and its questions where that is not done."""
        rag = self.rag  # type: ignore[attr-defined]
        if ids is None or "input_ids" not in inputs:
            raise ValueError(
                "input_ids and passage_input_ids must be given with retriever_loss='contrastive': "
                "of each question first the passage that answers it, then others, (questions, "
                "passages, tokens)"
            )
        if rag.ctx_encoder is None:
            raise ValueError(
                "retriever_loss='contrastive' needs a context encoder, which encodes the passages: "
                "model.set_context_encoder_for_training(encoder). With encoder.trainable = False "
                "it does not learn"
            )
        if mask is not None:
            mask = to_numpy(mask)
        rows = passage_rows(to_numpy(inputs["input_ids"]), to_numpy(ids), mask)
        tokens = {"tokenized_doc_ids": rows.ids, "tokenized_doc_attention_mask": rows.mask}
        with self.precision():  # type: ignore[attr-defined]
            forward.passage_vectors = rag.document_vectors(tokens, training=training)  # (C, D)
            if forward.question_vectors is None:
                questions = to_device(inputs["input_ids"])
                question_mask = inputs.get("attention_mask")
                if question_mask is not None:
                    question_mask = to_device(question_mask)
                encoded = rag._encode(
                    {"training": training}, rag.question_encoder, questions, question_mask
                )
                forward.question_vectors = encoded[0]  # (B, D)
        forward.positive, forward.masked = tf.constant(rows.positive), tf.constant(rows.masked)

    def _weighed(
        self, forward: ForwardPass, nll: Any, retriever_rows: Any, weights: Any
    ) -> StepLosses:
        """The losses of a batch from those of its questions, (B,) each."""
        settings = self._settings
        like = nll
        if nll is None:
            like = retriever_rows
        if weights is None:
            weights = tf.ones_like(like)
        weights = tf.cast(to_device(weights), like.dtype)
        questions = tf.reduce_sum(weights)
        total, count = tf.zeros((), like.dtype), questions
        if nll is not None and settings.answer_loss_weight:
            pad = self._pad_token_id  # type: ignore[attr-defined]
            is_scored = shift_left(forward.target, pad) != pad
            tokens = tf.reduce_sum(tf.cast(is_scored, nll.dtype), 1)  # (B,)
            count = tf.reduce_sum(tokens * weights)
            mean = tf.math.divide_no_nan(tf.reduce_sum(nll * weights), count)
            total += settings.answer_loss_weight * mean
        losses = StepLosses(total, count, questions)
        if retriever_rows is not None:
            retriever_rows = tf.cast(retriever_rows, like.dtype)
            mean = tf.math.divide_no_nan(tf.reduce_sum(retriever_rows * weights), questions)
            losses.loss += settings.retriever_loss_weight * mean
            losses.retriever_loss = mean
        if forward.passage_scores is not None:
            scores = tf.where(forward.masked, -float("inf"), forward.passage_scores)
            best = tf.argmax(scores, 1)
            found = tf.cast(best == tf.cast(forward.positive, best.dtype), like.dtype)
            losses.in_batch_accuracy = tf.math.divide_no_nan(
                tf.reduce_sum(found * weights), questions
            )
        return losses

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
