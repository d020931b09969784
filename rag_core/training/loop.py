"""The steps of a training run: when it logs, validates, saves and stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rag_core.training.best import MEASURED, judge
from rag_core.training.callbacks import call_back
from rag_core.training.config import TrainingConfig, learning_rate_factor
from rag_core.training.data import DataOrder, Example
from rag_core.training.faults import MOST_SKIPPED_IN_A_ROW, NotFinite, advice, describe_fault
from rag_core.training.processes import Processes, ProcessLost
from rag_core.training.report import TrainingReport
from rag_core.training.state import CHECKPOINT
from rag_core.training.window import CollapseWatch, MetricsWindow
from rag_core.training.words import progress_figures, progress_line

# The first steps take longer: caches are cold, and graphs are compiled.
_WARM, _TIMED = 2, 5


class RetrievalCollapse(ValueError):
    """The question encoder has come to ask for the same few documents whatever the question."""


class Run(Protocol):
    """What `run_steps` asks of a run.

    Attributes:
        measured: the questions that exact match is measured on.
        processes: those that make the run together; each runs this loop.
        total: optimizer steps of the whole run.
        callbacks: called after steps, validations and saves.
        window: sums since the last log line.
        watch: of what the questions find.
        optimizer: each of its `param_groups` has a `peak`, and takes its `lr` from the loop.
    """

    config: TrainingConfig
    report: TrainingReport
    examples: list[Example]
    measured: list[Example]
    callbacks: list[Any]
    processes: Processes
    model: Any
    window: MetricsWindow
    watch: CollapseWatch
    optimizer: Any
    total: int
    out: Path | None

    def step(self, examples: list[Example], logs: bool) -> None:
        """One optimizer step.

        Args:
            examples: as many as a step of all processes sees.
            logs: whether a log line follows, for which more is measured.

        Raises:
            NotFinite: a loss or gradient is no number. All is as it was before the step.
        """

    def is_sound(self) -> bool:
        """Whether all numbers that learn are finite."""

    def refresh(self) -> None:
        """Take a new index into use, where one is due after this step."""

    def index_facts(self) -> dict[str, float]:
        """What a log line says of the index."""

    def validate(self) -> dict[str, float]:
        """What is measured on the questions in `measured`, by name."""

    def keep_best(self) -> None:
        """Keep the weights as they are now as the best so far."""

    def save(self) -> None:
        """Write a checkpoint."""

    def tell(self, text: str) -> None:
        """Say something while the bar is drawn."""

    def tell_time(self, seconds: float) -> None:
        """Say how long the steps that are left will take."""


def run_steps(run: Run, bar: Any, seconds: Callable[[], float]) -> None:
    """Run the steps that are left, log, validate and save.

    Args:
        run: the run.
        bar: tqdm's.
        seconds: wall time of the run so far.

    Raises:
        RetrievalCollapse: see `TrainingConfig.on_collapse`.
        FloatingPointError: see `TrainingConfig.on_nan`.
    """
    _Loop(run, bar, seconds).go()


class _Loop:
    """The steps of a run, one after the other.

    Args:
        run, bar, seconds: see `run_steps`.
    """

    def __init__(self, run: Run, bar: Any, seconds: Callable[[], float]) -> None:
        self.run = run
        self.bar = bar
        self.seconds = seconds
        self.config = run.config
        self.report = run.report
        self.questions = self.config.questions_a_step(run.processes.count)
        self.order = DataOrder(len(run.examples), self.config.seed)
        self.learning_rate = 0.0
        self.begun = self.report.steps
        self.warm_at = seconds()

    def go(self) -> None:
        run, report = self.run, self.report
        if not report.steps:
            run.window.since = self.seconds()
        while report.steps < run.total and report.stopped_at is None:
            done = report.steps + 1
            last = done == run.total
            logs = last or done % self.config.log_every == 0
            self._set_rates()
            metrics = self._step(logs)
            run.refresh()
            self.bar.update()
            self._tell_time()
            self._watch_for_collapse()
            self._close(metrics, logs, last or self._is_due(self.config.evaluate_every))
            if report.stopped_at is not None or (not last and self._is_due(self.config.save_every)):
                self._save()
        if report.stopped_at is not None:
            self._measure_where_it_stopped()

    def _set_rates(self) -> None:
        total = self.run.total
        factor = learning_rate_factor(self.report.steps, self.config.warmup(total), total)
        for group in self.run.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.learning_rate = self.config.learning_rate * factor

    def _step(self, logs: bool) -> dict[str, float]:
        """One step; its loss a token and learning rate."""
        run, report = self.run, self.report
        rows = self.order.rows(report.steps * self.questions, self.questions)
        run.window.ids = []
        nll, tokens = run.window.nll, run.window.tokens
        metrics = {"learning_rate": self.learning_rate}
        try:
            run.step([run.examples[row] for row in rows], logs)
            report.skipped_in_a_row = 0
            metrics["loss"] = (run.window.nll - nll) / max(1, run.window.tokens - tokens)
        except NotFinite as fault:
            self._pass_over(fault, rows)
        if not report.steps and not report.skipped:
            report.first_loss = run.window.line()["loss"]
        report.steps += 1
        return metrics

    def _pass_over(self, fault: NotFinite, rows: list[int]) -> None:
        """Count a step whose loss or gradient is no number, or end the run and keep its state."""
        run, report = self.run, self.report
        what = describe_fault(fault, report.steps + 1, rows, run.examples)
        in_a_row = report.skipped_in_a_row + 1
        if self.config.on_nan == "skip" and in_a_row < MOST_SKIPPED_IN_A_ROW:
            report.skipped_in_a_row = in_a_row
            report.skipped += 1
            run.tell(f"{what}: passed over.")
            return
        checkpoint = None
        if run.out is not None and report.steps and run.is_sound():
            self._write_checkpoint()
            checkpoint = run.out / CHECKPOINT
        raise FloatingPointError(
            f"{what}. {advice(self.config, report.steps, checkpoint)}"
        ) from fault

    def _tell_time(self) -> None:
        """Say how long it will take, once, after some steps that took as long as others will."""
        done = self.report.steps
        if done == self.begun + _WARM:
            self.warm_at = self.seconds()
        if done == self.begun + _WARM + _TIMED and self.run.total > 2 * done:
            left = self._time_left()
            if left is not None:
                self.run.tell_time(left)

    def _time_left(self) -> float | None:
        """Seconds to the end; None before it can be known."""
        timed = self.report.steps - self.begun - _WARM
        if timed < _TIMED:
            return None
        return (self.seconds() - self.warm_at) / timed * (self.run.total - self.report.steps)

    def _watch_for_collapse(self) -> None:
        report, watch = self.report, self.run.watch
        if watch.see(self.run.window.ids) and report.collapsed_at is None:
            report.collapsed_at = report.steps
            report.distinct_at_collapse = watch.ratio
            report.prior_entropy_at_collapse = self.run.window.line()["prior_entropy"]
            if self.config.on_collapse == "stop":
                raise RetrievalCollapse(report.collapse())

    def _close(self, metrics: dict[str, float], logs: bool, validates: bool) -> None:
        """Validate and log after a step where that is due, and tell the callbacks."""
        learned_at = self.seconds()
        measured = self._validate(validates)
        logs = logs or bool(measured)
        if logs:
            metrics |= self._log(measured, learned_at)
        self._call("step", metrics, logged=logs)
        if measured:
            self._call("evaluate", _named_for_people(measured))

    def _measure_where_it_stopped(self) -> None:
        lines = self.report.history[-1:]
        if not any(line["step"] == self.report.steps and "exact_match" in line for line in lines):
            learned_at = self.seconds()
            if measured := self._validate(True):
                self._log(measured, learned_at)

    def _validate(self, is_due: bool) -> dict[str, float]:
        """What is measured after this step; nothing where nothing is."""
        if not is_due or not self.run.measured:
            return {}
        measured = self.run.validate()
        self.report.take(measured)
        metric = self.config.best_metric
        if metric is not None and judge(self.report, metric, self.config.early_stopping):
            self.run.keep_best()
        return measured

    def _log(self, measured: dict[str, float], learned_at: float) -> dict[str, float]:
        """Write a log line of the window, and open the next one.

        Args:
            measured: by a validation, which is not counted in the time that learning took.
            learned_at: when the last step was done.
        """
        run = self.run
        line = {"step": self.report.steps, "learning_rate": self.learning_rate}
        line |= run.window.line() | run.index_facts() | measured
        if run.window.tokens and learned_at > run.window.since:
            line["tokens_per_second"] = run.window.tokens / (learned_at - run.window.since)
        self.report.history.append(line)
        run.window = MetricsWindow(since=self.seconds())
        self.bar.set_postfix_str(progress_figures(line).strip())
        if self.bar.disable:
            run.tell(progress_line(line, run.total, self._time_left()))
        return line

    def _call(
        self, event: str, metrics: dict[str, float], path: Path | None = None, logged: bool = False
    ) -> None:
        """Tell the callbacks of an event; if one of them fails, keep the state of the run."""
        run, report = self.run, self.report
        if not run.callbacks:
            return
        place = report.steps, run.total, run.model
        try:
            reason = run.processes.lead(
                lambda: call_back(run.callbacks, event, *place, metrics, path, logged)
            )
        except ProcessLost:
            raise
        except Exception:
            if run.out is not None and event != "save":
                self._write_checkpoint()
                run.tell(f"A callback failed; {run.out / CHECKPOINT} holds step {report.steps:,}.")
            raise
        if reason is not None and report.stopped_at is None and report.steps < run.total:
            report.stopped_at = report.steps
            report.stop_reason = reason

    def _save(self) -> None:
        if self.run.out is None:
            return
        self._write_checkpoint()
        self._call("save", {}, path=self.run.out / CHECKPOINT)

    def _write_checkpoint(self) -> None:
        self.report.seconds = self.seconds()
        self.run.save()

    def _is_due(self, every: int) -> bool:
        """Whether something that is done every so many steps is done after this one; 0 = never."""
        return every > 0 and self.report.steps % every == 0


def _named_for_people(measured: dict[str, float]) -> dict[str, float]:
    """With the names that `best_metric` has for them."""
    return {name: measured[key] for name, key in MEASURED.items() if key in measured}
