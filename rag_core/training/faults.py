"""Steps whose loss or gradient is no number: which questions it was, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example

# More would say that something other than a few questions is at fault.
MOST_SKIPPED_IN_A_ROW = 3
_NAMED, _SHOWN, _LETTERS = 8, 2, 80


class NotFinite(FloatingPointError):
    """A loss or a gradient became infinite or NaN.

    Args:
        what: "the loss became nan".

    Attributes:
        part: which of the step's examples it happened with.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.part = slice(None)


def describe_fault(
    fault: NotFinite, step: int, rows: Sequence[int], examples: Sequence[Example]
) -> str:
    """What happened, at which step and with which questions.

    Args:
        fault: what happened.
        step: at which it did, from 1.
        rows: the step's examples.
        examples: all.
    """
    rows = rows[fault.part]
    numbers = ", ".join(str(row + 1) for row in rows[:_NAMED])
    if len(rows) > _NAMED:
        numbers += f" and {len(rows) - _NAMED} more"
    texts = [examples[row].question for row in rows[:_SHOWN]]
    shown = ", ".join(f"{text:.{_LETTERS}}" for text in map(repr, texts))
    if len(rows) > _SHOWN:
        shown += ", ..."
    return f"{fault.what} at step {step}, with questions {numbers} of {len(examples)} ({shown})"


def advice(config: TrainingConfig, step: int, checkpoint: Path | None) -> str:
    """Where the last good state is, and what to do.

    Args:
        config: the run's settings.
        step: the last good one.
        checkpoint: of that step; None where there is none.
    """
    kept = f"The model is as step {step} left it"
    if checkpoint is not None:
        kept += f", and so it is kept in {checkpoint}"
    ways = f"look at these questions and answers, lower learning_rate ({config.learning_rate:g})"
    if config.mixed_precision is not None:
        ways += f", or leave mixed_precision ({config.mixed_precision!r}) out"
    if config.on_nan == "skip":
        return (
            f"No step can be passed over after {MOST_SKIPPED_IN_A_ROW - 1} in a row. {kept}. Begin "
            f"anew in another folder: {ways}."
        )
    return (
        f"{kept}. To begin anew in another folder, {ways}; to go on from there and pass over such "
        "steps, give on_nan 'skip'."
    )
