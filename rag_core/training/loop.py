"""The steps of a training run, for both backends, what it leaves on disk, and the signs that it
goes wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from rag_core.checkpoint import CHECKPOINT_PATTERNS, weight_files
from rag_core.hub import (
    DamagedFileError,
    atomic_folder,
    check_writable,
    clear,
    read_json,
    resolve_file,
)
from rag_core.knowledge import FILE as MANIFEST
from rag_core.knowledge import describe, spots
from rag_core.metrics import distinct_document_ratio
from rag_core.tokenization import TOKENIZER_PATTERNS
from rag_core.training.data import (
    CHECKPOINT,
    REPORT,
    DataOrder,
    Example,
    TrainingConfig,
    TrainingReport,
    check_fingerprint,
    fingerprint,
    learning_rate_factor,
    run_of,
)

_SUMS = ("nll", "tokens", "prior", "posteriors")  # of a window, besides the documents' ids

# Of fewer questions it can't be told whether all of them find the same documents.
_GROUP = 8
_IN_A_ROW = 3
_SHARE_LEFT = 0.5
_FEW = 0.25


class RetrievalCollapse(ValueError):
    """The question encoder has come to ask for the same few documents whatever the question."""


class CollapseWatch:
    """Watches how many different documents the questions of a run find (paper, appendix on
    retrieval collapse).

    Questions are taken in groups of eight or more. Where three groups in a row find at most a
    quarter of different documents, and at most half as many as the first group of the run did,
    retrieval has collapsed: a small knowledge base alone does not look like that.

    Args:
        report: keeps what the first group found, so that a resumed run sees what an uninterrupted
            one does.
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

    def restore(self, window: Any) -> None:
        """Puts the sums of a checkpoint into a fresh window."""

    def save(self, window: Any) -> None:
        """Writes a checkpoint."""


class RunFiles:
    """What a run reads from and writes to its folder: checkpoints while it goes on, in the end the
    model in one go.

    Attributes:
        source: fingerprints of what the run started from, where it started from files.
    """

    model: Any
    tokenizer: Any
    parameters: Any
    optimizer: Any
    scaler: Any
    config: TrainingConfig
    examples: list[Example]
    validation: list[Example]
    report: TrainingReport
    out: Path | None
    source: Mapping[str, Any] = MappingProxyType({})
    _sums: Mapping[str, Any] | None = None

    @staticmethod
    def load_state(*arguments: Any) -> dict[str, Any]:
        """The backend's; see its `training_state`."""
        raise NotImplementedError

    @staticmethod
    def save_state(*arguments: Any) -> None:
        """The backend's; see its `training_state`."""
        raise NotImplementedError

    def resume(self) -> float:
        """Goes on from the checkpoint in `out`, if there is one.

        Returns the seconds spent before.
        """
        if self.out is None:
            return 0.0
        clear(self.out)
        path = self.out / CHECKPOINT
        if not path.exists():
            return 0.0
        state = self.load_state(path, self.parameters, self.optimizer, self.scaler)
        try:
            found, report, sums = (
                state["fingerprint"],
                TrainingReport.from_dict(state["report"]),
                state["sums"],
            )
            if not isinstance(found, dict) or set(sums) != {*_SUMS, "ids"}:
                raise TypeError("no such entries")
            sums["ids"] = [np.asarray(ids, np.int64).tolist() for ids in sums["ids"]]
            if not all(isinstance(sums[name], int | float | list) for name in _SUMS):
                raise TypeError("sums that are no numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedFileError(
                f"{path} is no checkpoint of a training run, or damaged ({error}). Remove it."
            ) from None
        check_fingerprint(found, self._fingerprint(), path)
        self.report, self._sums = report, sums
        return self.report.seconds

    def restore(self, window: Any) -> None:
        """Puts the sums of a checkpoint into a fresh window, so that the next log line is about
        all of its steps.
        """
        sums, self._sums = self._sums, None
        for name, value in (sums or {}).items():
            setattr(window, name, [np.asarray(ids) for ids in value] if name == "ids" else value)

    def save(self, window: Any) -> None:
        """Writes a checkpoint."""
        if self.out is None:
            return
        sums = {name: getattr(window, name) for name in _SUMS} | {
            "ids": [ids.tolist() for ids in window.ids]
        }
        state = {"report": asdict(self.report), "fingerprint": self._fingerprint(), "sums": sums}
        self.save_state(self.out / CHECKPOINT, self.parameters, self.optimizer, self.scaler, state)

    def finish(self) -> None:
        """Puts the tuned model in the checkpoint's place, all of it at once.

        A part would be no end and no middle.
        """
        if self.out is None:
            return
        self.report.run = run_of(self._fingerprint(), self.validation)
        stale = (CHECKPOINT, *CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS)
        with atomic_folder(self.out, stale=stale) as draft:
            self.model.save_pretrained(draft)
            self.tokenizer.save_pretrained(draft)
            self.report.write(draft / REPORT)

    def _fingerprint(self) -> dict[str, Any]:
        return {**fingerprint(self.examples, self.config), **self.source}


def source_fingerprint(model: str | Path, kb: str | Path) -> dict[str, str]:
    """What tells a model and a knowledge base from others, without reading all of them.

    Args:
        model: folder or repository.
        kb: folder.

    Raises:
        OSError: a file is missing.
    """
    digest = hashlib.sha256(resolve_file(model, "config.json").read_bytes())
    for path in weight_files(model):
        digest.update(f"{path.stat().st_size} {spots(path)}".encode())
    return {
        "model_sha256": digest.hexdigest(),
        "kb_sha256": describe(Path(kb) / MANIFEST)["sha256"],
    }


def finished_before(
    out: str | Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    validation: Sequence[Example],
    source: Mapping[str, Any],
) -> TrainingReport | None:
    """The report of the same run where `out` holds its model already; None where there is something
    left to do.

    Raises:
        FileExistsError: `out` is a file or holds another model.
        OSError: nothing can be written to it.
    """
    out = Path(out)
    if out.is_file():
        raise FileExistsError(f"{out} is a file: name a folder for the tuned model")
    check_writable(out)  # not after hours of training
    clear(out)
    if not (out / "config.json").exists() or (out / CHECKPOINT).exists():
        return None
    try:
        report = TrainingReport.from_dict(read_json(out / REPORT))
    except (OSError, TypeError, ValueError):
        report = TrainingReport()
    if report.run != run_of(
        {**fingerprint(examples, config), **source}, validation[: config.validation_size]
    ):
        raise FileExistsError(
            f"{out} holds a model already: choose another folder for the tuned one"
        )
    return report


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
    run.restore(window)
    while report.steps < run.total:
        step = report.steps
        factor = learning_rate_factor(step, warmup_steps, run.total)
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        logs = (step + 1) % config.log_every == 0 or step + 1 == run.total
        questions = config.batch_size * config.accumulation
        passes = len(window.ids)
        run.step(
            [run.examples[row] for row in order.rows(step * questions, questions)], window, logs
        )
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
            line: dict[str, float] = {
                "step": step + 1,
                "learning_rate": config.learning_rate * factor,
            }
            line |= window.line()
            if validates and report.exact_match is not None:
                line["exact_match"] = report.exact_match
            report.history.append(line)
            bar.set_postfix(
                {
                    name: f"{line[name]:.3f}"
                    for name in line
                    if name not in ("step", "learning_rate")
                }
            )
            window = run.window()
        saves = config.save_every and (step + 1) % config.save_every == 0 and step + 1 < run.total
        if run.out is not None and saves:
            report.seconds = seconds()
            run.save(window)
            # a run that goes on from here has seen no more than this one from here on
            watch = CollapseWatch(report)
