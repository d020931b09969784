"""The steps of a training run: when it logs, validates, saves and stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rag_core.training.config import TrainingConfig, learning_rate_factor
from rag_core.training.data import DataOrder, Example
from rag_core.training.faults import MOST_SKIPPED_IN_A_ROW, NotFinite, advice, describe_fault
from rag_core.training.report import TrainingReport
from rag_core.training.state import CHECKPOINT
from rag_core.training.window import CollapseWatch, MetricsWindow

# The first steps take longer: caches are cold, and graphs are compiled.
_WARM, _TIMED = 2, 5


class RetrievalCollapse(ValueError):
    """The question encoder has come to ask for the same few documents whatever the question."""


class Run(Protocol):
    """What `run_steps` asks of a run.

    Attributes:
        measured: the questions that exact match is measured on.
        total: optimizer steps of the whole run.
        window: sums since the last log line.
        optimizer: each of its `param_groups` has a `peak`, and takes its `lr` from the loop.
    """

    config: TrainingConfig
    report: TrainingReport
    examples: list[Example]
    measured: list[Example]
    window: MetricsWindow
    optimizer: Any
    total: int
    out: Path | None

    def step(self, examples: list[Example], logs: bool) -> None:
        """One optimizer step.

        Args:
            examples: as many as a step sees.
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

    def validate(self) -> float:
        """Exact match on the questions in `measured`."""

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
    config, report = run.config, run.report
    order = DataOrder(len(run.examples), config.seed)
    questions = config.batch_size * config.accumulation
    watch = CollapseWatch(report)
    begun = report.steps
    warm_at = seconds()
    while report.steps < run.total:
        factor = learning_rate_factor(report.steps, config.warmup(run.total), run.total)
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        done = report.steps + 1
        last = done == run.total
        logs = last or done % config.log_every == 0
        rows = order.rows(report.steps * questions, questions)
        passes_before = len(run.window.ids)
        try:
            run.step([run.examples[row] for row in rows], logs)
            report.skipped_in_a_row = 0
        except NotFinite as fault:
            _pass_over(run, fault, rows, seconds)
        if done == 1 and not report.skipped:
            report.first_loss = run.window.line()["loss"]
        report.steps = done
        run.refresh()
        bar.update()
        if done == begun + _WARM:
            warm_at = seconds()
        if done == begun + _WARM + _TIMED and run.total > 2 * done:
            run.tell_time((seconds() - warm_at) / _TIMED * (run.total - done))
        if watch.see(run.window.ids[passes_before:]) and report.collapsed_at is None:
            report.collapsed_at = done
            report.distinct_at_collapse = watch.ratio
            report.prior_entropy_at_collapse = run.window.line()["prior_entropy"]
            if config.on_collapse == "stop":
                raise RetrievalCollapse(report.collapse())
        validates = bool(run.measured) and (last or _is_due(done, config.evaluate_every))
        if validates:
            report.exact_match = run.validate()
        if logs or validates:
            _log(run, bar, config.learning_rate * factor, validates)
        if run.out is not None and not last and _is_due(done, config.save_every):
            report.seconds = seconds()
            run.save()
            # a run that goes on from here has seen no more than this one from here on
            watch = CollapseWatch(report)


def _pass_over(run: Run, fault: NotFinite, rows: list[int], seconds: Callable[[], float]) -> None:
    """Count a step whose loss or gradient is no number, or end the run and keep its state."""
    report = run.report
    what = describe_fault(fault, report.steps + 1, rows, run.examples)
    in_a_row = report.skipped_in_a_row + 1
    if run.config.on_nan == "skip" and in_a_row < MOST_SKIPPED_IN_A_ROW:
        report.skipped_in_a_row = in_a_row
        report.skipped += 1
        run.tell(f"{what}: passed over.")
        return
    checkpoint = None
    if run.out is not None and report.steps and run.is_sound():
        report.seconds = seconds()
        run.save()
        checkpoint = run.out / CHECKPOINT
    raise FloatingPointError(f"{what}. {advice(run.config, report.steps, checkpoint)}") from fault


def _log(run: Run, bar: Any, learning_rate: float, validated: bool) -> None:
    """Write a log line of the window, and open the next one."""
    if not run.window.tokens:  # all its steps were passed over
        return
    means = {**run.window.line(), **run.index_facts()}
    if validated and run.report.exact_match is not None:
        means["exact_match"] = run.report.exact_match
    run.report.history.append({"step": run.report.steps, "learning_rate": learning_rate, **means})
    postfix = f"loss {means['loss']:.3f}"
    if "exact_match" in means:
        postfix += f", right {means['exact_match']:.0%}"
    bar.set_postfix_str(postfix)
    run.window = MetricsWindow()


def _is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0 = never."""
    return every > 0 and step % every == 0
