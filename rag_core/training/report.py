"""What a training run did: its log, and what a person should know of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from rag_core.hub import atomic_write

REPORT = "training.json"
# A loss that fell by less than this share says that next to nothing was learned.
_LEARNED = 0.05
_COUNTS = ("steps", "collapsed_at", "best_step", "waited", "stopped_at", "skipped")
_NO_NUMBERS = ("history", "run", "stop_reason")
# Titles, names in a log line and forms of the table's columns; an empty one is left out.
_COLUMNS = (
    ("step", "step", "d"),
    ("loss", "loss", ".3f"),
    ("retriever loss", "retriever_loss", ".3f"),
    ("in-batch accuracy", "in_batch_accuracy", ".3f"),
    ("exact match", "exact_match", ".3f"),
    ("distinct documents", "distinct_documents", ".2f"),
    ("prior entropy", "prior_entropy", ".3f"),
)


@dataclass
class TrainingReport:
    """What a run did.

    Attributes:
        steps: optimizer steps done.
        history: the log lines, in order: step, loss (what is minimised, nats a token),
            retriever_loss (without its weight, nats a question), in_batch_accuracy (share of
            questions whose own passage scored highest), learning_rate, distinct_documents (share of
            documents retrieved in the batch that differ), posterior_entropy and prior_entropy
            (nats), where the context encoder learns index_age (steps since its weights made the
            vectors that are searched), tokens_per_second (of answers), and where validated
            exact_match, f1 and validation_loss.
        exact_match: of the last validation; None without questions to measure it on. With
            `best_metric` it and the next two are those of the best validation.
        f1: of the same answers.
        validation_loss: of the validation questions, without dropout, in nats a token.
        exact_match_before: the same before the first step; None if it was not measured.
        seconds: wall time, summed over resumed parts.
        reindex_seconds: of these, how long it waited for passages to be embedded anew.
        first_loss: of the first step, nats a token.
        distinct_at_start: share of different documents among those that the run's first questions
            found.
        collapsed_at: the step at which retrieval was seen to have collapsed; None if it was not.
        distinct_at_collapse: share of different documents found then.
        prior_entropy_at_collapse: mean entropy of p(z|x) then, in nats.
        best: the best `best_metric` so far.
        best_step: the step after which it was measured.
        waited: validations since.
        stopped_at: the step after which the run was ended early; None if it was not.
        stop_reason: why.
        skipped: steps that were passed over as their loss or gradient was no number.
        skipped_in_a_row: how many of them were the last steps.
        left_out: questions that could not be trained on, as no passage answers them.
        run: of a finished run, the settings and examples that it was, by which the same run is
            known again.
    """

    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    exact_match: float | None = None
    exact_match_before: float | None = None
    seconds: float = 0.0
    reindex_seconds: float = 0.0
    first_loss: float | None = None
    distinct_at_start: float | None = None
    collapsed_at: int | None = None
    distinct_at_collapse: float | None = None
    prior_entropy_at_collapse: float | None = None
    f1: float | None = None
    validation_loss: float | None = None
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    stopped_at: int | None = None
    stop_reason: str = ""
    skipped: int = 0
    skipped_in_a_row: int = 0
    left_out: int = 0
    run: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps"]
        if self.history and self.first_loss is not None:
            parts.append(f"loss {self.first_loss:.2f} to {self.last_loss():.2f}")
        if self.exact_match is not None:
            parts.append(f"exact match {self.exact_match:.3f}")
        if self.collapsed_at is not None:
            parts.append(f"retrieval collapsed at step {self.collapsed_at}")
        return f"TrainingReport({', '.join(parts)}, {self.seconds:.0f} s)"

    def last_loss(self) -> float:
        """Of the last log line that has one; NaN without any."""
        losses = [line["loss"] for line in self.history if "loss" in line]
        return next(reversed(losses), math.nan)

    def take(self, metrics: Mapping[str, float]) -> None:
        """Take what a validation measured, or a log line of one."""
        for name in ("exact_match", "f1", "validation_loss"):
            if name in metrics:
                setattr(self, name, metrics[name])

    def notes(self) -> list[str]:
        """What a person should know before using the model.

        That it hardly learned or answers nothing right, that retrieval collapsed.
        """
        notes = []
        if self.collapsed_at is not None:
            notes.append(self.collapse())
        if self.stopped_at is not None:
            notes.append(f"Stopped early, after step {self.stopped_at:,}: {self.stop_reason}.")
        if self.best_step is not None and self.best_step != self.steps:
            notes.append(f"The model is that of step {self.best_step:,}, where it was best.")
        if self.skipped:
            notes.append(
                f"{self.skipped} of {self.steps} steps were passed over, as their loss or gradient "
                "was no number: look at their questions, or lower learning_rate."
            )
        if self.left_out:
            notes.append(
                f"{self.left_out:,} questions were left out: no passage that answers them is named "
                "(positive) or found (mine_to)."
            )
        if self.history and self.first_loss is not None:
            last = self.last_loss()
            if last > (1 - _LEARNED) * self.first_loss:
                notes.append(
                    f"The loss went from {self.first_loss:.2f} to {last:.2f} nats in "
                    f"{self.steps} steps: the model has hardly learned. Train longer (steps, "
                    "epochs) or faster (learning_rate)."
                )
        if self.exact_match == 0 and not notes:
            notes.append(
                f"Not one question is answered right after {self.steps} steps: train longer "
                "(steps, epochs), or look at the answers before you use the model."
            )
        return notes

    def collapse(self) -> str:
        """What a collapse of retrieval is, by which figures it was seen, and what to do."""
        signs = f"{self.distinct_at_start:.0%} of them differed at the start"
        if self.distinct_at_collapse is not None:
            signs += f", {self.distinct_at_collapse:.0%} do now"
        if self.prior_entropy_at_collapse is not None:
            signs += f"; entropy of p(passage|question) {self.prior_entropy_at_collapse:.4f} nats"
        return (
            f"Retrieval collapsed by step {self.collapsed_at}: whatever the question, the same "
            f"few documents are found ({signs}). Leave the question encoder as it is "
            "(question_encoder 'frozen'), or let it learn slower (question_encoder_learning_rate, "
            "a tenth or less of learning_rate), and start again in another folder. on_collapse "
            "'warn' goes on all the same."
        )

    def table(self, lines: int = 10) -> str:
        """The log as a table of some `lines`: what is known before the first step, evenly chosen
        log lines, and all that have an exact match.

        The loss of a line is the mean since the log line before it; that of step 0 is the first
        step's.
        """
        start = {
            "step": 0,
            "loss": self.first_loss,
            "exact_match": self.exact_match_before,
            "distinct_documents": self.distinct_at_start,
        }
        last = len(self.history) - 1
        chosen = {round(last * number / lines) for number in range(1, lines + 1)}
        logged = [
            line
            for number, line in enumerate(self.history)
            if number in chosen or "exact_match" in line
        ]
        lines_shown: list[Mapping[str, Any]] = [start, *logged]
        columns = [
            column
            for column in _COLUMNS
            if any(line.get(column[1]) is not None for line in lines_shown)
        ]
        rows = [[title for title, _, _ in columns]]
        for line in lines_shown:
            rows.append([_cell(line.get(name), form) for _, name, form in columns])
        widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
        return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingReport:
        """The inverse of `dataclasses.asdict`.

        Raises:
            TypeError: numbers are missing where they belong.
        """
        if not is_report(values):
            raise TypeError("its report holds no numbers")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def write(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_write(Path(path)) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def is_report(values: dict[str, Any]) -> bool:
    """Whether numbers are where `TrainingReport` has numbers."""
    history = values.get("history", [])
    if not isinstance(values.get("run"), dict | None) or not isinstance(history, list):
        return False
    if not all(isinstance(line, dict) for line in history):
        return False
    if not isinstance(values.get("stop_reason", ""), str):
        return False
    fields_of_numbers = [value for name, value in values.items() if name not in _NO_NUMBERS]
    logged = [value for line in history for value in line.values()]
    counts = [values.get(name) for name in _COUNTS]
    return all(type(count) is int for count in counts if count is not None) and all(
        type(number) in (int, float)
        for number in (*fields_of_numbers, *logged)
        if number is not None
    )


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form)
