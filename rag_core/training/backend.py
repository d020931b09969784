"""What a framework adds to a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from rag_core.backends import to_tensor
from rag_core.training.batch import Batch
from rag_core.training.losses import ForwardPass
from rag_core.training.processes import ALONE, Processes


class TrainingBackend(ABC):
    """The optimizer with its gradients, loss scale and precision, random numbers, and the arrays of
    a checkpoint.

    Attributes:
        model: the head that learns.
        processes: those that make the run together.
        parameters: the trained parameters by name.
        optimizer: has `param_groups`, whose `lr` is set before each step.
        scaler: the loss scale, with `state_dict` and `load_state_dict`.
    """

    # What a backend says of itself: its name, what a tokenizer calls its tensors, its `Contexts`.
    backend: ClassVar[str]
    return_tensors: ClassVar[str]
    contexts_class: ClassVar[Callable[..., Any]]

    model: Any
    processes: Processes
    parameters: dict[str, Any]
    optimizer: Any
    scaler: Any

    @classmethod
    def joined(cls) -> AbstractContextManager[Processes]:
        """Within it the processes that a launcher has started are connected.

        Raises:
            ProcessLost: they can't be.
        """
        return nullcontext(ALONE)

    def tensor(self, array: np.ndarray) -> Any:
        """An array as a tensor where the model is."""
        return to_tensor(array, self.return_tensors)

    @staticmethod
    @abstractmethod
    def default_device() -> str | None:
        """Where a model goes that is loaded for training, if nobody says."""

    @staticmethod
    @abstractmethod
    def table_size(module: Any) -> int | None:
        """How many ids a module's token table holds; None if it doesn't say."""

    @property
    @abstractmethod
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""

    @abstractmethod
    def named_parameters(self) -> Iterable[tuple[str, Any]]:
        """All parameters that may learn, tied ones once."""

    @abstractmethod
    def still(self) -> set[str]:
        """The names of those among them that their owner does not let learn."""

    @abstractmethod
    def prepared(self) -> AbstractContextManager[Any]:
        """Within it only `parameters` learn and random numbers are the run's own; it makes
        `optimizer` and `scaler`.
        """

    @abstractmethod
    def answering(self) -> AbstractContextManager[Any]:
        """Within it the model answers, without dropout or gradients."""

    def apart(self) -> AbstractContextManager[Any]:
        """Within it, in a forward pass, the encoder of passages runs without dropout and leaves
        nothing for gradients.
        """
        return nullcontext()

    @property
    def encoder_device(self) -> str | None:
        """Where another process embeds passages: on the model's GPU, or as the backend likes."""
        if self.on_gpu:
            return str(self.model.device)
        return None

    def mode(self, learns: bool) -> dict[str, Any]:
        """Keywords by which a call of a network knows whether it learns; none where it has a mode
        of its own.
        """
        return {}

    @abstractmethod
    def start_step(self) -> None:
        """Forget the gradients of the step before."""

    @abstractmethod
    def learn(self, batch: Batch, tokens: int, seed: tuple[int, ...]) -> ForwardPass:
        """Run `forward` in the run's precision, and add the gradient of its loss / `tokens` to the
        step's; after the batch that `ends_step` this is the sum of all processes' gradients, not
        their mean.

        Args:
            batch: what is read, this process' part of a forward pass.
            tokens: how many tokens the whole step predicts, in all processes.
            seed: for dropout, where random numbers have no state that a checkpoint keeps.
        """

    def gather(self, vectors: Any) -> Any:
        """The vectors (W*n, D) of all W processes by their rank, with gradients to each.

        Args:
            vectors: (n, D), of this process; n is the same in all.
        """
        return vectors

    @abstractmethod
    def end_step(self) -> bool:
        """Move the parameters by the gradients, clipped to `config.max_grad_norm`.

        Returns:
            Whether the gradients are numbers. Otherwise the parameters stay as they are; a loss
            scale is lowered.
        """

    @abstractmethod
    def parameter_state(self, name: str) -> dict[str, Any]:
        """A parameter's `model` (its value), `exp_avg`, `exp_avg_sq` and `step`, as tensors."""

    @abstractmethod
    def set_parameter_state(self, name: str, state: dict[str, np.ndarray]) -> None:
        """The inverse of `parameter_state`."""

    @abstractmethod
    def random_states(self) -> dict[str, Any]:
        """The states of random number generators by their names in a checkpoint, "rng.KIND"; none
        where a step's numbers depend on its `seed` alone.
        """

    @abstractmethod
    def set_random_states(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `random_states`; other names in `arrays` are passed over."""
