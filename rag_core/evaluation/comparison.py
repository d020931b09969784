"""Two evaluations of the same questions, compared question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag_core.checks import warn
from rag_core.evaluation.intervals import paired
from rag_core.evaluation.report import Evaluation, rank, table, title_of

_SEED = 0


@dataclass(repr=False)
class Comparison:
    """How two systems differ.

    Attributes:
        differences: for each pair of variants its figures: "first", "second", "difference" with
            "low" and "high" (95 %, paired bootstrap), "p" and "n".
        names: of the two.
    """

    names: tuple[str, str]
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = []
        for pair, figures in self.differences.items():
            found = figures.get("exact_match")
            if found:
                parts.append(f"{pair}: exact match {_difference('exact_match', found)}")
        return f"Comparison({', '.join(parts) or ', '.join(self.differences)})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"runs": list(self.names), "differences": self.differences}

    def markdown(self) -> str:
        """Tables for people."""
        lines = [f"# {self.names[0]} against {self.names[1]}", ""]
        head = ["", "first", "second", "difference", "p", "questions"]
        for pair, figures in self.differences.items():
            rows = [
                [
                    title_of(name),
                    f"{_scale(name) * found['first']:.1f}",
                    f"{_scale(name) * found['second']:.1f}",
                    _difference(name, found),
                    f"{found['p']:.3f}",
                    f"{found['n']:,}",
                ]
                for name, found in figures.items()
            ]
            lines += [f"## {pair}", "", *table(head, rows), ""]
        return "\n".join(lines)


def compare(first: str | Path | Evaluation, second: str | Path | Evaluation) -> Comparison:
    """Compare two evaluations: how much higher the first scores, with a paired bootstrap over the
    questions that both were asked.

    Variants of the same name are compared; where there is none, those of which each run has one
    only.

    Args:
        first, second: evaluations, or their folders.

    Raises:
        ValueError: no question or no variant in common.
    """
    names = tuple(_name(run, number) for number, run in enumerate((first, second), 1))
    runs = [run if isinstance(run, Evaluation) else Evaluation.open(run) for run in (first, second)]
    comparison = Comparison((names[0], names[1]))
    pairs = {"retrieval": (runs[0].retrieved, runs[1].retrieved), **_variants(*runs)}
    for pair, (rows, others) in pairs.items():
        comparison.differences[pair] = _differences(rows, others)
    return comparison


def _name(run: str | Path | Evaluation, number: int) -> str:
    if isinstance(run, Evaluation):
        return f"run {number}"
    return str(run)


def _variants(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    common = [name for name in first.answers if name in second.answers]
    if common:
        return {name: (first.answers[name], second.answers[name]) for name in common}
    if len(first.answers) == len(second.answers) == 1:
        (name, rows), (other, others) = *first.answers.items(), *second.answers.items()
        return {f"{name} against {other}": (rows, others)}
    if first.answers and second.answers:
        raise ValueError(
            f"the runs must have a variant in common, got {list(first.answers)} and "
            f"{list(second.answers)}. Run both with the same options, or with one variant each."
        )
    return {}


def _differences(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    by_key = {(row["id"], row["question"]): row["scores"] for row in others}
    pairs = [
        (row["scores"], by_key[row["id"], row["question"]])
        for row in rows
        if (row["id"], row["question"]) in by_key
    ]
    if not pairs:
        raise ValueError(
            "the runs must have questions in common, by id and text, got none. Evaluate both on "
            "the same file, with the same limit and seed."
        )
    if len(pairs) < max(len(rows), len(others)):
        warn(
            f"{len(pairs):,} questions are in both runs, of {len(rows):,} and {len(others):,}: "
            "the others are left out"
        )
    names = dict.fromkeys(name for scores, _ in pairs for name in scores)
    figures = {}
    for name in sorted(names, key=rank):
        both = [
            (left[name], right[name]) for left, right in pairs if name in left and name in right
        ]
        if both:
            values, other_values = zip(*both, strict=True)
            figures[name] = paired(name, values, other_values, _SEED)
    return figures


def _scale(name: str) -> int:
    if name == "log_likelihood":
        return 1
    return 100


def _difference(name: str, found: Mapping[str, Any]) -> str:
    values = (_scale(name) * found[key] for key in ("difference", "low", "high"))
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values)
