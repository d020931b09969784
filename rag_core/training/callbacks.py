"""What others do while a run goes: functions of their own, called after steps, validations and
saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

_EVENTS = ("step", "evaluate", "save")
_ASKED = "a callback asked for it"


@dataclass(frozen=True)
class TrainingProgress:
    """What a callback sees of a run; nothing of it can be changed but by `stop`.

    Attributes:
        event: "step", "evaluate" or "save".
        step: optimizer steps done.
        total: optimizer steps of the whole run.
        metrics: at "step" the step's `loss` (nats a token) and `learning_rate`, and where a log
            line was written all that is in it; at "evaluate" `exact_match`, `f1` and, of validation
            questions, `loss`.
        model: the model as it is; weights that are changed are changed for the run, too.
        path: at "save" the checkpoint, or the folder of the finished model.
        logged: whether a log line was written.
    """

    event: str
    step: int
    total: int
    metrics: Mapping[str, float]
    model: Any
    path: Path | None = None
    logged: bool = False
    _asked: list[str] = field(default_factory=list, repr=False)

    def stop(self, reason: str = _ASKED) -> None:
        """Ask the run to end after this step, with what it has learned so far.

        Args:
            reason: for people; it stands in the report.
        """
        self._asked.append(reason)


class Callback(Protocol):
    """What may be among the `callbacks` of `train`: an object with one or more of these methods, or
    a function, which is called each time and finds in `progress.event` what happened.

    An exception ends the run, after a checkpoint was written. They are called in this order,
    `on_step` after each step, `on_evaluate` after each validation but that before the first step,
    `on_save` after each checkpoint and after the finished model was written; a resumed run calls
    them for its own steps alone.
    """

    def on_step(self, progress: TrainingProgress) -> None:
        """Called after an optimizer step."""

    def on_evaluate(self, progress: TrainingProgress) -> None:
        """Called after the validation questions were answered."""

    def on_save(self, progress: TrainingProgress) -> None:
        """Called after a checkpoint or the finished model was written."""


AnyCallback = Callback | Callable[[TrainingProgress], None]


def checked_callbacks(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks.

    Raises:
        TypeError: one of them can't be called.
    """
    methods = [f"on_{event}" for event in _EVENTS]
    for number, callback in enumerate(callbacks):
        if not callable(callback) and not any(hasattr(callback, name) for name in methods):
            raise TypeError(
                f"callbacks[{number}] must be a function or an object with {', '.join(methods)}, "
                f"got {callback!r:.100}"
            )
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks[{number}] must be an object, got the class {callback.__name__}. Write "
                f"{callback.__name__}(...)"
            )
    return list(callbacks)


def call_back(
    callbacks: Sequence[Any],
    event: str,
    step: int,
    total: int,
    model: Any,
    metrics: Mapping[str, float] = MappingProxyType({}),
    path: Path | None = None,
    logged: bool = False,
) -> str | None:
    """Call those that care for an event.

    Args:
        callbacks: all.
        event, step, total, model, metrics, path, logged: see `TrainingProgress`.

    Returns:
        Why the run is to stop; None where nobody asked for that.
    """
    progress = TrainingProgress(
        event, step, total, MappingProxyType(dict(metrics)), model, path, logged
    )
    for callback in callbacks:
        method = getattr(callback, f"on_{event}", None)
        if method is None and callable(callback):
            method = callback
        if method is not None:
            method(progress)
    return next(iter(progress._asked), None)
