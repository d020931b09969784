"""TensorFlow's share of joint fine-tuning; the run itself is `rag_core.training.TrainingRun`.

Random numbers have no state here that a checkpoint would keep: those of a forward pass are a
function of the settings and the step's number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.training import Batch, ForwardPass, TrainingConfig, TrainingRun, parameter_groups
from rag_tf.adamw import AdamW, LossScale
from rag_tf.contexts import Contexts, table_size
from rag_tf.modules import computing_in, seeded_by
from rag_tf.weights import named_tensors

_HALF = {None: None, "bf16": tf.bfloat16, "fp16": tf.float16}


class _Run(TrainingRun):
    backend = "tf"
    return_tensors = "tf"
    contexts_class = Contexts
    table_size = staticmethod(table_size)
    optimizer: AdamW
    scaler: LossScale
    _tape: tf.GradientTape | None = None  # while it records a forward pass

    @staticmethod
    def default_device() -> None:
        return None

    @property
    def on_gpu(self) -> bool:
        return "GPU" in self.model.device

    def named_parameters(self) -> Iterator[tuple[str, tf.Variable]]:
        for name, parameter in named_tensors(self.model):
            if parameter.trainable:
                yield name, parameter

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        # A gradient tape is told which parameters learn, so the others need no flag.
        self.optimizer = make_optimizer(self.parameters, self.config)
        self.scaler = LossScale(self.config.mixed_precision == "fp16")
        yield

    def answering(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mode(self, learns: bool) -> dict[str, Any]:
        return {"training": learns}

    def apart(self) -> contextlib.AbstractContextManager[None]:
        if self._tape is None:
            return contextlib.nullcontext()
        return self._tape.stop_recording()

    def start_step(self) -> None:
        self.gradients: dict[str, tf.Tensor] = {}

    def learn(self, batch: Batch, tokens: int, seed: tuple[int, ...]) -> ForwardPass:
        variables = list(self.parameters.values())
        half = computing_in(_HALF[self.config.mixed_precision])
        noise = seeded_by(np.random.default_rng(seed))
        with tf.GradientTape(watch_accessed_variables=False) as tape, noise, half:
            self._tape = tape
            tape.watch(variables)
            forward = self.forward(batch)
            loss = forward.loss * (self.scaler.value / tokens)
        self._tape = None
        gradients = tape.gradient(loss, variables)
        for name, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:  # the parameter had no part in it
                continue
            # A table's gradient may come as the rows that were looked up.
            dense = tf.convert_to_tensor(gradient)
            if name in self.gradients:
                dense = self.gradients[name] + dense
            self.gradients[name] = dense
        return forward

    def end_step(self) -> bool:
        factor = self.optimizer.clip_factor(
            self.gradients, self.config.max_grad_norm, self.scaler.value
        )
        if factor is not None:
            self.optimizer.step(self.gradients, factor)
        self.scaler.update(factor is not None)
        return factor is not None

    def parameter_state(self, name: str) -> dict[str, Any]:
        return {
            "model": self.parameters[name],
            "exp_avg": self.optimizer.exp_avg[name],
            "exp_avg_sq": self.optimizer.exp_avg_sq[name],
            "step": self.optimizer.steps[name],
        }

    def set_parameter_state(self, name: str, state: dict[str, np.ndarray]) -> None:
        self.parameters[name].assign(state["model"])
        self.optimizer.exp_avg[name].assign(state["exp_avg"])
        self.optimizer.exp_avg_sq[name].assign(state["exp_avg_sq"])
        self.optimizer.steps[name] = int(state["step"])

    def random_states(self) -> dict[str, Any]:
        return {}

    def set_random_states(self, arrays: dict[str, np.ndarray]) -> None:
        pass


train = _Run.train
train_files = _Run.train_files
measure_files = _Run.measure_files


def make_optimizer(parameters: dict[str, tf.Variable], config: TrainingConfig) -> AdamW:
    """AdamW over the groups of `rag_core.training.parameter_groups`."""
    groups = parameter_groups(parameters, config)
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))
