"""Training, measuring and predicting through Keras: compile, fit, evaluate, predict.

A step is Python around graphs (question encoder, then the search, then generator, loss and
optimizer), for a search cannot be compiled. The losses are those of `rag_tf.training`, with the same
names and weights. Under a strategy of tf.distribute every replica makes such a step with its share of
the batch, and together they minimise what one device would.

Letters: B questions, N documents a question, P passages a question, Q question length, L passage
length, C passages of a batch (of all replicas), T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from rag_core.backends import to_numpy
from rag_core.checks import warn
from rag_core.training import (
    ForwardPass,
    PassageRows,
    TrainingConfig,
    passage_rows,
    retriever_losses,
)
from rag_tf import replicas
from rag_tf.call_arguments import spread
from rag_tf.contexts import to_device
from rag_tf.marginalize import shift_left

_PASSAGES = ("passage_input_ids", "passage_attention_mask")


@dataclass
class StepLosses:
    """The losses of a batch, or a replica's share of them, of which they are the sum; scalars.

    Attributes:
        loss: what is minimised.
        count: what the answers' loss is a mean over, scored tokens of the whole batch; where there
            is none, questions.
        questions: what the others are means over, those of the whole batch, weighted as the caller
            says.
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
    with a weight for each question, (B,) or (B, 1); batches may differ in length and size. With
    `retriever_loss="contrastive"` they hold `passage_input_ids` and `passage_attention_mask`
    (B, P, L), too, tokens of the context encoder's tokenizer: of each question first the passage
    that answers it, then such as do not (see `rag_core.training.passage_rows`).
    """

    optimizer: Any
    distribute_strategy: Any
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
        with replicas.scope(self.distribute_strategy):
            means = tuple(keras.metrics.Mean(name=name) for name in names)
            object.__setattr__(self, "_retriever_metrics", means)
            super().compile(optimizer=optimizer, **kwargs)  # type: ignore[misc]
        self._check_optimizer()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> Any:
        """Train, as `keras.Model.fit`, whose arguments these are.

        Args:
            x: a dictionary of what `call` takes, or whatever gives batches of data.
            y: labels, where they are not in the dictionary.
            batch_size, epochs, verbose, callbacks, validation_split, shuffle, initial_epoch,
                steps_per_epoch, validation_steps, validation_batch_size, validation_freq: as Keras
                has them.
            validation_data: data of the same kinds.
            class_weight: must be None.
            sample_weight: of each question.

        Returns:
            Keras' History.

        Raises:
            ValueError: `class_weight`, or weights that belong to no labels.
        """
        _refuse_class_weight(class_weight)
        x, y = _weighable(x, y, sample_weight)
        if isinstance(validation_data, tuple | list) and len(validation_data) == 3:
            inputs, labels, weights = validation_data
            validation_data = (*_weighable(inputs, labels, weights), weights)
        return super().fit(  # type: ignore[misc]
            x=x,
            y=y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Measure the losses, as `keras.Model.evaluate`, whose arguments these are.

        Args:
            x, y, sample_weight: as of `fit`.
            batch_size, verbose, steps, callbacks: as Keras has them.
            return_dict: by name, not in the order of `metrics_names`.
            **kwargs: Keras' own.

        Returns:
            The losses.

        Raises:
            ValueError: weights that belong to no labels.
        """
        x, y = _weighable(x, y, sample_weight)
        return super().evaluate(  # type: ignore[misc]
            x=x,
            y=y,
            batch_size=batch_size,
            verbose=verbose,
            sample_weight=sample_weight,
            steps=steps,
            callbacks=callbacks,
            return_dict=return_dict,
            **kwargs,
        )

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """One step of the optimizer, as `keras.Model.train_on_batch`.

        Args:
            x, y, sample_weight: a batch, as of `fit`.
            class_weight: must be None.
            return_dict: by name, not in the order of `metrics_names`.

        Returns:
            The losses.

        Raises:
            ValueError: `class_weight`.
        """
        _refuse_class_weight(class_weight)
        return super().train_on_batch(  # type: ignore[misc]
            x, y, sample_weight=sample_weight, return_dict=return_dict
        )

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
        if not variables:
            warn("The model has no trainable weights: set model.trainable = True")
        strategy = self.distribute_strategy
        logs, gradients = replicas.on_replicas(strategy, self._gradients, data, variables)
        if gradients:
            self._learn(variables, gradients)
        return replicas.of_first(strategy, logs)

    def _gradients(
        self, data: Any, variables: list[Any]
    ) -> tuple[dict[str, Any], dict[int, tf.Tensor]]:
        """A replica's share of a step: the means so far, and gradients by the place of variables."""
        # Told which weights learn, a tape keeps nothing of networks without any.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self._step_losses(data, training=True)
            scaled = self.optimizer.scale_loss(losses.loss)
        gradients = {}
        for place, gradient in enumerate(tape.gradient(scaled, variables)):
            if gradient is None:  # the variable had no part in the loss
                continue
            # A sparse gradient's number of rows would be another graph each time.
            gradients[place] = tf.convert_to_tensor(gradient)
        return self._measured(losses), gradients

    def test_step(self, data: Any) -> dict[str, Any]:
        """The losses of a batch, without dropout.

        Returns:
            As of `train_step`, the means so far.
        """
        strategy = self.distribute_strategy
        logs = replicas.on_replicas(strategy, self._tested, data)
        return replicas.of_first(strategy, logs)

    def _tested(self, data: Any) -> dict[str, Any]:
        return self._measured(self._step_losses(data, training=False))

    def _measured(self, losses: StepLosses) -> dict[str, Any]:
        """The means so far, with those of a batch."""
        names = ["loss", *(metric.name for metric in self._retriever_metrics)]
        values = replicas.summed({name: getattr(losses, name) for name in names})
        # Keras adds up what the replicas measure: each has its part of the weight.
        several = replicas.count()
        self._loss_tracker.update_state(values["loss"], sample_weight=losses.count / several)
        for metric in self._retriever_metrics:
            weight = losses.questions / several
            metric.update_state(values[metric.name], sample_weight=weight)
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
        ids, mask = (inputs.pop(name, None) for name in _PASSAGES)
        if not hasattr(self, "get_nll"):
            raise TypeError(
                f"{type(self).__name__} has no loss: train RagTokenForGeneration or "
                "RagSequenceForGeneration"
            )
        passages = None
        if settings.retriever_loss == "contrastive":
            passages = self._passages(inputs, ids, mask)
        if replicas.count() > 1 and not len(next(iter(inputs.values()))):
            inputs, labels, weights = _one_that_counts_nothing(inputs, labels)
        forward = ForwardPass(self)
        nll = None
        if settings.reads_documents:
            nll = self._answered(forward, inputs, labels, training)  # (B,)
        if passages is not None:
            self._compared(forward, inputs, passages, training)
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

    def _passages(self, inputs: dict[str, Any], ids: Any, mask: Any) -> PassageRows:
        """The passages of the batch, those of all replicas, and what each question of this one is
        to find among them.
        """
        if ids is None or "input_ids" not in inputs:
            raise ValueError(
                "input_ids and passage_input_ids must be given with retriever_loss='contrastive': "
                "of each question first the passage that answers it, then others, (questions, "
                "passages, tokens)"
            )
        if self.rag.ctx_encoder is None:  # type: ignore[attr-defined]
            raise ValueError(
                "retriever_loss='contrastive' needs a context encoder, which encodes the passages: "
                "model.set_context_encoder_for_training(encoder). With encoder.trainable = False "
                "it does not learn"
            )
        if mask is None:
            mask = tf.ones_like(ids)
        questions = to_numpy(inputs["input_ids"])
        every, start = replicas.gathered_tokens(questions)
        tokens = [replicas.gathered_tokens(to_numpy(part))[0] for part in (ids, mask)]
        rows = passage_rows(every, *tokens)
        own = slice(start, start + len(questions))
        if not len(questions):
            own = slice(0, 1)  # see `_one_that_counts_nothing`
        return replace(rows, positive=rows.positive[own], masked=rows.masked[own])

    def _compared(
        self, forward: ForwardPass, inputs: dict[str, Any], rows: PassageRows, training: bool
    ) -> None:
        """Encode the passages of a batch, each once, and its questions where that is not done."""
        rag = self.rag  # type: ignore[attr-defined]

        def encoded(part: slice) -> tf.Tensor:
            tokens = {
                "tokenized_doc_ids": rows.ids[part],
                "tokenized_doc_attention_mask": rows.mask[part],
            }
            return rag.document_vectors(tokens, training=training)

        with self.precision():  # type: ignore[attr-defined]
            forward.passage_vectors = replicas.gathered_shares(len(rows.ids), encoded)  # (C, D)
            if forward.question_vectors is None:
                questions = to_device(inputs["input_ids"])
                question_mask = inputs.get("attention_mask")
                if question_mask is not None:
                    question_mask = to_device(question_mask)
                forward.question_vectors = rag._encode(
                    {"training": training}, rag.question_encoder, questions, question_mask
                )[0]  # (B, D)
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
            # Of a shape alone: what is made of `like` is on the tape, and so its sums over
            # replicas would be.
            weights = tf.ones(tf.shape(like))
        weights = tf.cast(_of_questions(to_device(weights), like.shape[0]), like.dtype)
        questions = replicas.summed(tf.reduce_sum(weights))
        total, count = tf.zeros((), like.dtype), questions
        if nll is not None and settings.answer_loss_weight:
            pad = self._pad_token_id  # type: ignore[attr-defined]
            is_scored = shift_left(forward.target, pad) != pad
            tokens = tf.reduce_sum(tf.cast(is_scored, nll.dtype), 1)  # (B,)
            count = replicas.summed(tf.reduce_sum(tokens * weights))
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

    def _learn(self, variables: list[Any], gradients: dict[int, Any]) -> None:
        self._apply(variables)(tuple(gradients), list(gradients.values()))

    def _apply(self, variables: list[Any]) -> Callable[..., Any]:
        """The optimizer's step as a graph, made anew for another optimizer or other variables."""
        key = (id(self.optimizer), tuple(map(id, variables)))
        if self.__dict__.get("_apply_key") != key:
            optimizer, strategy = self.optimizer, self.distribute_strategy
            if not optimizer.built:
                with replicas.scope(strategy):
                    optimizer.build(variables)

            def apply(places: tuple[int, ...], gradients: list[tf.Tensor]) -> None:
                if tf.distribute.has_strategy():
                    # An argument of a graph has no device, where TensorFlow would add them up.
                    gradients = [tf.identity(gradient) for gradient in gradients]
                if replicas.count() > 1 and _clips(optimizer):
                    # Keras clips the gradients of each replica, and adds them up then.
                    whole = optimizer._clip_gradients(replicas.summed(gradients))
                    gradients = [gradient / replicas.count() for gradient in whole]
                optimizer.apply(gradients, [variables[place] for place in places])

            def apply_on_all(places: tuple[int, ...], gradients: list[Any]) -> None:
                replicas.on_replicas(strategy, partial(apply, places), gradients)

            # Past Keras' trackers, which would make a layer's attribute of it.
            object.__setattr__(self, "_apply_graph", tf.function(apply_on_all, autograph=False))
            object.__setattr__(self, "_apply_key", key)
        return self.__dict__["_apply_graph"]

    def _check_optimizer(self) -> None:
        """Refuse an optimizer that does not know of the replicas.

        Raises:
            ValueError: it was made outside of the strategy's scope, accumulates gradients or scales
                the loss.
        """
        strategy, optimizer = self.distribute_strategy, self.optimizer
        if optimizer is None:
            return
        replicas.check_strategy(strategy, [optimizer.variables[0].value])
        if strategy.num_replicas_in_sync == 1:
            return
        if getattr(optimizer, "gradient_accumulation_steps", None):
            raise ValueError(
                "optimizer must not accumulate gradients on several replicas, got "
                f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}. Make "
                "batches larger, or use rag_tf.train"
            )
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "optimizer must not scale the loss on several replicas, got LossScaleOptimizer. "
                "The policy 'mixed_bfloat16' needs no loss scale"
            )

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to be built: Keras would look at a batch of all replicas for it, and
        cannot where there are several processes.
        """

    def make_train_function(self, force: bool = False) -> Any:
        """A step as Keras' loop calls it: in Python, as a search is part of it."""
        variables = self.variables  # type: ignore[attr-defined]
        replicas.check_strategy(self.distribute_strategy, variables)
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


def _refuse_class_weight(class_weight: Any) -> None:
    """Keras would look for the class of a question among the tokens of its labels.

    Raises:
        ValueError: there is one.
    """
    if class_weight is not None:
        raise ValueError(
            "class_weight must be left out: labels are tokens of answers, not classes. "
            "sample_weight has a weight for each question"
        )


def _weighable(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Inputs and labels, of which Keras loses no weights: it passes them over where y is None.

    Raises:
        ValueError: a dictionary has weights and no labels.
    """
    if sample_weight is None or y is not None or not isinstance(x, Mapping):
        return x, y
    if x.get("labels") is None:
        raise ValueError(
            "sample_weight must come with labels, without which Keras passes it over; got "
            f"{', '.join(x)}. Put labels into the dictionary, or give them as y"
        )
    return {name: value for name, value in x.items() if name != "labels"}, x["labels"]


def _of_questions(weights: tf.Tensor, questions: int) -> tf.Tensor:
    """Weights (B,) out of (B,) or (B, 1).

    Raises:
        ValueError: another shape.
    """
    shape = tuple(weights.shape)
    if shape == (questions, 1):
        return weights[:, 0]
    if shape != (questions,):
        raise ValueError(
            f"sample_weight must hold a weight for each question, ({questions},) or "
            f"({questions}, 1), got shape {shape}. Tokens have no weights of their own: -100 in "
            "labels leaves one out"
        )
    return weights


def _one_that_counts_nothing(
    inputs: dict[str, Any], labels: Any
) -> tuple[dict[str, Any], Any, tf.Tensor]:
    """Inputs, labels and weights of a question for a replica that has got none of a batch: it is
    encoded as others are, as all replicas have to make the same sums.
    """
    row = {name: tf.ones((1, *value.shape[1:]), value.dtype) for name, value in inputs.items()}
    if labels is not None:
        labels = tf.ones((1, *labels.shape[1:]), labels.dtype)
    return row, labels, tf.zeros(1)


def _clips(optimizer: Any) -> bool:
    """Whether an optimizer of Keras clips gradients."""
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)
