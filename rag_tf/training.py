"""TensorFlow's share of joint fine-tuning; the run itself is `rag_core.training.TrainingRun`.

Random numbers have no state here that a checkpoint would keep: those of a forward pass are a
function of the settings and the step's number.

Under a strategy of tf.distribute the whole run is made by each replica, in the strategy's `run`: the
replicas are the processes of `rag_core.training.Processes`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf

from rag_core.training import (
    ALONE,
    Batch,
    ForwardPass,
    Processes,
    TrainingConfig,
    TrainingReport,
    TrainingRun,
    parameter_groups,
    started_processes,
)
from rag_tf import replicas
from rag_tf.adamw import AdamW, LossScale
from rag_tf.contexts import Contexts, table_size
from rag_tf.modules import computing_in, seeded_by, variable_id
from rag_tf.weights import named_tensors

_HALF = {None: None, "bf16": tf.bfloat16, "fp16": tf.float16}


P = ParamSpec("P")
T = TypeVar("T")


def _as_documented(
    method: Callable[P, T],
) -> Callable[[Callable[..., Any]], Callable[Concatenate[Any, P], T]]:
    """A decorator: signature and words of a class method."""
    wrapper: Any = functools.wraps(method.__func__)  # type: ignore[attr-defined]
    return wrapper


class _Run(TrainingRun):
    backend = "tf"
    return_tensors = "tf"
    contexts_class = Contexts
    table_size = staticmethod(table_size)
    optimizer: AdamW
    scaler: LossScale
    _tape: tf.GradientTape | None = None  # while it records a forward pass

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.live is not None and self.processes.count > 1:
            raise ValueError(
                "context_encoder must be 'frozen' on several replicas, got "
                f"{self.config.context_encoder!r} with a passage_encoder. Train it on one device, "
                "or in several processes with rag_torch"
            )

    @classmethod
    @_as_documented(TrainingRun.train)
    def train(cls, model: Any, *args: Any, **kwargs: Any) -> TrainingReport:
        strategy = model.distribute_strategy
        replicas.check_strategy(strategy, model.variables)
        make = functools.partial(super().train, model, *args, **kwargs)
        report: TrainingReport = _by_all(strategy, make)
        return report

    @classmethod
    @_as_documented(TrainingRun.train_files)
    def train_files(cls, *args: Any, **kwargs: Any) -> TrainingReport:
        make = functools.partial(super().train_files, *args, **kwargs)
        report: TrainingReport = _by_all(_started_strategy(), make)
        return report

    @classmethod
    @_as_documented(TrainingRun.measure_files)
    def measure_files(cls, *args: Any, **kwargs: Any) -> float:
        make = functools.partial(super().measure_files, *args, **kwargs)
        measured: float = _by_all(_started_strategy(), make)
        return measured

    @classmethod
    @contextlib.contextmanager
    def joined(cls) -> Iterator[Processes]:
        if replicas.count() > 1:
            yield replicas.Replicas()
            return
        _, several = started_processes()
        if several > 1:
            raise ValueError(
                "the model must be made within the scope of a MultiWorkerMirroredStrategy where "
                f"{several} processes were started, got one made outside. TensorFlow's processes "
                "are named by TF_CONFIG, see docs/training.md"
            )
        yield ALONE

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

    def still(self) -> set[str]:
        learning = set(map(variable_id, self.model.trainable_variables))
        named = self.named_parameters()
        return {name for name, value in named if variable_id(value) not in learning}

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
        if batch.ends_step:
            self.gradients = replicas.summed(self.gradients)
        return forward

    def gather(self, vectors: tf.Tensor) -> tf.Tensor:
        return replicas.gathered(vectors)

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
        replicas.assign(self.parameters[name], state["model"])
        replicas.assign(self.optimizer.exp_avg[name], state["exp_avg"])
        replicas.assign(self.optimizer.exp_avg_sq[name], state["exp_avg_sq"])
        self.optimizer.steps[name] = int(state["step"])

    def random_states(self) -> dict[str, Any]:
        return {}

    def set_random_states(self, arrays: dict[str, np.ndarray]) -> None:
        pass


train = _Run.train
train_files = _Run.train_files
measure_files = _Run.measure_files


def _started_strategy() -> Any:
    """The strategy whose scope this is; without one that of the processes named by TF_CONFIG."""
    if not tf.distribute.has_strategy() and started_processes()[1] > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def _by_all(strategy: Any, make: Callable[[], Any]) -> Any:
    """What a run returns that every replica of this process makes."""
    returned = []
    replicas.on_replicas(strategy, lambda: returned.append(make()))
    return returned[0]


def make_optimizer(parameters: dict[str, tf.Variable], config: TrainingConfig) -> AdamW:
    """AdamW over the groups of `rag_core.training.parameter_groups`."""
    groups = parameter_groups(parameters, config)
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))
