"""The best model of a run by what was measured on validation questions, and when to stop waiting
for a better one.

It is kept beside the checkpoint, in a file of the trained weights for each step that may be gone
back to: the one that the checkpoint knows as the best, and the best since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rag_core.hub import DamagedFileError, reading
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.report import TrainingReport
from rag_core.training.state import CHECKPOINT, save_arrays

_PREFIX = f"{CHECKPOINT}.best-"
BEST_PATTERN = f"{_PREFIX}*"
# Names in the report of what is measured.
MEASURED = {"exact_match": "exact_match", "f1": "f1", "loss": "validation_loss"}


class BestWeights:
    """The trained weights of the best step so far.

    Args:
        folder: where the checkpoint is; None keeps them in memory.

    Attributes:
        saved_step: the best step that the checkpoint on disk knows of.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.saved_step: int | None = None
        self._weights: dict[str, np.ndarray] = {}

    def keep(self, step: int, weights: Mapping[str, np.ndarray]) -> None:
        """Keep these, of that step.

        Raises:
            OSError: they can't be written.
        """
        if self.folder is None:
            self._weights = {name: array.copy() for name, array in weights.items()}
            return
        save_arrays(_file(self.folder, step), weights)
        self.forget_others(step, self.saved_step)

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Those of that step.

        Raises:
            DamagedFileError: they are not there as they were written.
        """
        if self.folder is None:
            return self._weights
        from safetensors.numpy import load_file

        path = _file(self.folder, step)
        advice = f"Remove it and {self.folder / CHECKPOINT}, and start again."
        with reading(path, "does not hold the weights of the best step", advice):
            return load_file(path)

    def resume(self, step: int | None) -> None:
        """Go on from a checkpoint that knows this step as the best.

        Raises:
            DamagedFileError: its weights are missing.
        """
        if self.folder is None:
            return
        if step is not None and not _file(self.folder, step).is_file():
            raise DamagedFileError(
                f"{_file(self.folder, step)} is missing, which {self.folder / CHECKPOINT} needs: it holds "
                "the weights of the best step. Remove the checkpoint, and start again."
            )
        self.saved_step = step
        self.forget_others(step)

    def forget_others(self, *steps: int | None) -> None:
        """Remove the files of all other steps."""
        if self.folder is None or not self.folder.is_dir():
            return
        kept = {_file(self.folder, step) for step in steps if step is not None}
        for path in self.folder.glob(BEST_PATTERN):
            if path not in kept:
                path.unlink(missing_ok=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step}"


def judge(report: TrainingReport, metric: str, patience: int) -> bool:
    """Whether what was measured last is better than all before; keeps in the report how long
    nothing was, and when that is reason to stop.

    Args:
        report: of the run, with what was measured.
        metric: `best_metric`.
        patience: `early_stopping`.
    """
    value = getattr(report, MEASURED[metric])
    best = report.best
    if metric == "loss":
        better = best is None or value < best
    else:
        better = best is None or value > best
    if better:
        report.best, report.best_step, report.waited = value, report.steps, 0
        return True
    report.waited += 1
    if 0 < patience <= report.waited:
        report.stopped_at = report.steps
        report.stop_reason = (
            f"{metric} was not above {best:.4g}, that of step {report.best_step}, in "
            f"{report.waited} validations"
        )
        if metric == "loss":
            report.stop_reason = report.stop_reason.replace("above", "below")
    return False


def check_measured(config: TrainingConfig, measured: list[Example], validation: bool) -> None:
    """Refuse to look for the best of what is not measured.

    Args:
        config: settings.
        measured: the questions that are answered.
        validation: whether they are not trained on.

    Raises:
        ValueError: there are none, or no validation before the last step.
    """
    if config.best_metric is None:
        return
    if not measured:
        raise ValueError(
            f"validation must hold questions with best_metric={config.best_metric!r}, got none. "
            "Name some, or leave best_metric out"
        )
    if config.best_metric == "loss" and config.retriever_loss == "contrastive":
        raise ValueError(
            "best_metric must be 'exact_match' or 'f1' with retriever_loss='contrastive', got "
            "'loss'. That loss is of the batches of training alone"
        )
    if config.best_metric == "loss" and not validation:
        raise ValueError(
            "validation must hold questions with best_metric='loss', got none. The loss of "
            "questions that are trained on says nothing about others"
        )
    if config.early_stopping and not config.evaluate_every:
        raise ValueError(
            "evaluate_every must be above 0 with early_stopping, got 0. It counts validations"
        )
