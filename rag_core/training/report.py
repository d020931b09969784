"""What a training run did: its log, and what a person should know of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from rag_core.hub import atomic_write

REPORT = "training.json"
# A loss that fell by less than this share says that next to nothing was learned.
_LEARNED = 0.05


@dataclass
class TrainingReport:
    """What a run did.

    Attributes:
        steps: optimizer steps done.
        history: the log lines, in order: step, loss (nats a token), learning_rate,
            distinct_documents (share of documents retrieved in the batch that differ),
            posterior_entropy and prior_entropy (nats), and where validated exact_match.
        exact_match: of the last validation; None without validation questions.
        seconds: wall time, summed over resumed parts.
        first_loss: of the first step, nats a token.
        distinct_at_start: share of different documents among those that the run's first questions
            found.
        collapsed_at: the step at which retrieval was seen to have collapsed; None if it was not.
        run: of a finished run, the settings and examples that it was, by which the same run is
            known again.
    """

    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    exact_match: float | None = None
    seconds: float = 0.0
    first_loss: float | None = None
    distinct_at_start: float | None = None
    collapsed_at: int | None = None
    run: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps"]
        if self.history and self.first_loss is not None:
            parts.append(f"loss {self.first_loss:.2f} to {self.history[-1]['loss']:.2f}")
        if self.exact_match is not None:
            parts.append(f"exact match {self.exact_match:.3f}")
        if self.collapsed_at is not None:
            parts.append(f"retrieval collapsed at step {self.collapsed_at}")
        return f"TrainingReport({', '.join(parts)}, {self.seconds:.0f} s)"

    def notes(self) -> list[str]:
        """What a person should know before using the model.

        That it hardly learned, that retrieval collapsed.
        """
        notes = []
        if self.collapsed_at is not None:
            notes.append(self.collapse())
        if self.history and self.first_loss is not None:
            last = self.history[-1]["loss"]
            if last > (1 - _LEARNED) * self.first_loss:
                notes.append(
                    f"The loss went from {self.first_loss:.2f} to {last:.2f} nats a token in "
                    f"{self.steps} steps: the model has hardly learned. Train longer (steps, "
                    "epochs) or faster (learning_rate)."
                )
        return notes

    def collapse(self) -> str:
        """What a collapse of retrieval is, and what to do."""
        return (
            f"Retrieval collapsed by step {self.collapsed_at}: whatever the question, the same "
            f"few documents are found ({self.distinct_at_start:.0%} of them differed at the "
            "start). Leave the question encoder as it is (question_encoder 'frozen'), or let it "
            "learn slower (question_encoder_learning_rate, a tenth or less of learning_rate), and "
            "start again in another folder. on_collapse 'warn' goes on all the same."
        )

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
    fields_of_numbers = [value for name, value in values.items() if name not in ("history", "run")]
    logged = [value for line in history for value in line.values()]
    counts = [values.get("steps"), values.get("collapsed_at")]
    return all(type(count) is int for count in counts if count is not None) and all(
        type(number) in (int, float)
        for number in (*fields_of_numbers, *logged)
        if number is not None
    )
