"""The steps of a training run, for both backends, and the signs that it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from rag_core.metrics import distinct_document_ratio
from rag_core.training import DataOrder, Example, TrainingConfig, TrainingReport, learning_rate_factor

# Of fewer questions it can't be told whether all of them find the same documents.
_GROUP = 8
_IN_A_ROW = 3
_SHARE_LEFT = 0.5
_FEW = 0.25


class RetrievalCollapse(ValueError):
    """The question encoder has come to ask for the same few documents whatever the question."""


class CollapseWatch:
    """Watches how many different documents the questions of a run find (paper, appendix on retrieval collapse).

    Questions are taken in groups of eight or more. Where three groups in a row find at most a quarter of different
    documents, and at most half as many as the first group of the run did, retrieval has collapsed: a small knowledge
    base alone does not look like that.

    Args:
        report: keeps what the first group found, so that a resumed run sees what an uninterrupted one does.
    """

    def __init__(self, report: TrainingReport) -> None:
        self.report = report
        self.waiting: list[np.ndarray] = []
        self.low = 0

    def see(self, doc_ids: Sequence[np.ndarray]) -> bool:
        """Takes the documents (B, N) of some forward passes; whether retrieval has collapsed."""
        self.waiting += doc_ids
        if sum(len(ids) for ids in self.waiting) < _GROUP:
            return False
        ratio = distinct_document_ratio(np.concatenate(self.waiting))
        self.waiting = []
        if self.report.distinct_at_start is None:
            self.report.distinct_at_start = ratio
        fewer = ratio <= _SHARE_LEFT * self.report.distinct_at_start
        self.low = self.low + 1 if fewer and ratio <= _FEW else 0
        return self.low >= _IN_A_ROW


class Run(Protocol):
    """What a backend's run offers to `run_steps`."""

    config: TrainingConfig
    report: TrainingReport
    examples: list[Example]
    validation: list[Example]
    optimizer: Any
    total: int
    out: Any

    def window(self) -> Any:
        """Sums between two log lines."""

    def step(self, examples: list[Example], window: Any, logs: bool) -> None:
        """One optimizer step."""

    def validate(self) -> float:
        """Exact match on the validation questions."""

    def save(self, out: Any) -> None:
        """Writes a checkpoint."""


def run_steps(run: Run, bar: Any, seconds: Callable[[], float]) -> None:
    """Runs the steps that are left, logs, validates and saves.

    Args:
        run: of a backend.
        bar: tqdm's.
        seconds: wall time of the run so far.

    Raises:
        RetrievalCollapse: see `TrainingConfig.on_collapse`.
    """
    config, report = run.config, run.report
    order = DataOrder(len(run.examples), config.seed)
    warmup_steps = config.warmup(run.total)
    watch = CollapseWatch(report)
    window = run.window()
    while report.steps < run.total:
        step = report.steps
        factor = learning_rate_factor(step, warmup_steps, run.total)
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        logs = (step + 1) % config.log_every == 0 or step + 1 == run.total
        questions = config.batch_size * config.accumulation
        passes = len(window.ids)
        run.step([run.examples[row] for row in order.rows(step * questions, questions)], window, logs)
        if step == 0:
            report.first_loss = window.line()["loss"]
        report.steps = step + 1
        bar.update()
        if watch.see(window.ids[passes:]) and report.collapsed_at is None:
            report.collapsed_at = step + 1
            if config.on_collapse == "stop":
                raise RetrievalCollapse(report.collapse())
        at_interval = config.evaluate_every and (step + 1) % config.evaluate_every == 0
        validates = bool(run.validation) and (step + 1 == run.total or bool(at_interval))
        if validates:
            report.exact_match = run.validate()
        if logs or validates:
            line: dict[str, float] = {"step": step + 1, "learning_rate": config.learning_rate * factor}
            line |= window.line()
            if validates and report.exact_match is not None:
                line["exact_match"] = report.exact_match
            report.history.append(line)
            bar.set_postfix({name: f"{line[name]:.3f}" for name in line if name not in ("step", "learning_rate")})
            window = run.window()
        saves = config.save_every and (step + 1) % config.save_every == 0 and step + 1 < run.total
        if run.out is not None and saves:
            report.seconds = seconds()
            run.save(run.out)
            watch = CollapseWatch(report)  # a run that goes on from here has seen no more than this one from here on
