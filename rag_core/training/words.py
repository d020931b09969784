"""What a run says to people while it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.parameters import (
    CONTEXT_ENCODER,
    GENERATOR,
    QUESTION_ENCODER,
    part_of,
    peak_rate,
)

_SHOWN = 3
_SO_DO_PASSAGES = ", and so do the passages that it finds"
_COLUMNS = 79
_BETWEEN = "  "
# tqdm's, at a terminal
BAR = "{n_fmt}/{total_fmt} |{bar:8}| {remaining} left{postfix}"
# What people see of a log line.
_FIGURES = {
    "loss": "loss {:.3f}",
    "exact_match": "right {:.0%}",
    "in_batch_accuracy": "in batch {:.0%}",
    "distinct_documents": "distinct {:.0%}",
    "prior_entropy": "entropy {:.2f}",
    "tokens_per_second": "{:.0f} tokens/s",
}
# What is said of a part of which nothing learns.
_FROZEN = {
    GENERATOR: "Generator: stays as it is.",
    QUESTION_ENCODER: f"Question encoder: stays as it is{_SO_DO_PASSAGES}.",
    CONTEXT_ENCODER: "",
}


def beginning(
    config: TrainingConfig,
    total: int,
    questions: int,
    passages: int | None,
    parameters: Mapping[str, Any],
    place: str,
    processes: int = 1,
) -> str:
    """What a run is about to do.

    Args:
        config: its settings.
        total: its steps.
        questions: how many it learns from.
        passages: how many there are to retrieve; None if it is not known.
        parameters: what learns, by name.
        place: backend and device.
        processes: how many learn together.
    """
    seen = config.questions_a_step(processes)
    if processes > 1:
        place = f"{processes} processes with {place}"
    of = ""
    if passages is not None:
        of = f" about {passages:,} passages"
    lines = [
        f"{questions:,} questions{of}: {total:,} steps of {seen} questions, each question "
        f"{total * seen / questions:.3g} times, on {place}."
    ]
    sizes = dict.fromkeys(_FROZEN, 0)
    for name, parameter in parameters.items():
        sizes[part_of(name)] += math.prod(parameter.shape)
    for part, size in sizes.items():
        if size:
            title = part.replace("_", " ").capitalize()
            rate = peak_rate(part, config)
            lines.append(f"{title}: {_count(size)} numbers learn, at a rate of up to {rate:g}.")
        elif _FROZEN[part]:
            lines.append(_FROZEN[part])
    text = "\n".join(lines)
    if config.context_encoder != "frozen":
        text = text.replace(_SO_DO_PASSAGES, "")
    return text


def progress_line(line: Mapping[str, float], total: int, seconds_left: float | None) -> str:
    """A log line for people, as many of its figures as fit into 79 columns.

    Args:
        line: of the log.
        total: steps of the whole run.
        seconds_left: until its end; None if it is not known yet.
    """
    text = f"{line['step']:>{len(str(total))}.0f}/{total}{progress_figures(line)}"
    if seconds_left is None:
        return text
    left = _short_time(seconds_left)
    while len(text) > _COLUMNS - len(left) - len(_BETWEEN):
        text = text.rpartition(_BETWEEN)[0]
    return text + _BETWEEN + left


def progress_figures(line: Mapping[str, float]) -> str:
    """The figures of a log line, those first that matter most."""
    parts = [form.format(line[name]) for name, form in _FIGURES.items() if name in line]
    return "".join(_BETWEEN + part for part in parts)


def _short_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s left"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"


def measured_on(count: int, validation: bool) -> str:
    """Which questions an exact match was measured on."""
    if validation:
        return f"on {count:,} validation questions"
    return f"on {count:,} of the questions trained on (none to validate on were given)"


def time_left(seconds: float) -> str:
    """How long the rest will take, roughly."""
    minutes = seconds / 60
    if minutes < 1:
        return "Less than a minute to go."
    if minutes < 2:
        return "A minute or two to go."
    if minutes < 90:
        return f"About {minutes:.0f} minutes to go."
    return f"About {minutes / 60:.1f} hours to go."


def wrong_answers(examples: Sequence[Example], texts: Sequence[str], hits: Sequence[float]) -> str:
    """A few of the answers that were not right; empty if all were."""
    wrong = [
        (example, text) for example, text, hit in zip(examples, texts, hits, strict=True) if not hit
    ]
    if not wrong:
        return ""
    lines = [f"Not right yet, {min(_SHOWN, len(wrong))} of {len(wrong)}:"]
    for example, text in wrong[:_SHOWN]:
        lines.append(f"  {example.question:.100} -> {text:.60} (wanted: {example.answers[0]:.60})")
    return "\n".join(lines)


def _count(numbers: int) -> str:
    if numbers < 1e5:
        return f"{numbers:,}"
    return f"{numbers / 1e6:.1f} million"
