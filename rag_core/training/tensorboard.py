"""A run's log for TensorBoard, by TensorBoard's own record writer, which needs no framework."""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path
from typing import Any

from rag_core.training.callbacks import TrainingProgress

FOLDER = "tensorboard"
# Groups of curves by the names in a log line.
_VALIDATION = {"exact_match": "exact_match", "f1": "f1", "validation_loss": "loss"}


class TensorBoard:
    """A callback that writes the figures of each log line, as `train/...` and `validation/...`.

    Each part of a run that was killed writes a file of its own; of steps that were made twice the
    last is shown.

    Args:
        folder: of the files, made when there is something to write.

    Raises:
        ImportError: tensorboard is missing.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard is needed for its files: pip install 'dualrag[tensorboard]'"
            ) from error
        self.folder = Path(folder)
        self._events, self._summaries = event_pb2, summary_pb2
        self._new_writer = RecordWriter
        self._writer: Any = None

    def on_step(self, progress: TrainingProgress) -> None:
        """Write the log line, if there is one."""
        if not progress.logged:
            return
        if self._writer is None:
            self._begin(progress.step)
        values = [
            self._summaries.Summary.Value(tag=_tag(name), simple_value=value)
            for name, value in progress.metrics.items()
            if name != "step"
        ]
        self._write(progress.step, summary=self._summaries.Summary(value=values))

    def _begin(self, step: int) -> None:
        """Start a file whose first word is that later steps of other files do not count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # read in the order of their names
        name = f"events.out.tfevents.{time.time_ns()}"
        # unbuffered: a killed run leaves whole records
        self._writer = self._new_writer((self.folder / name).open("ab", buffering=0))
        self._write(0, file_version="brain.Event:2")
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())


def _tag(name: str) -> str:
    if name in _VALIDATION:
        return f"validation/{_VALIDATION[name]}"
    return f"train/{name}"
