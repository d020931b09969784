"""Wrong answers of a finished evaluation, drawn at random and sorted by what is to blame, to be read
by hand.

`python -m experiments.results.errors FOLDER [--count 50] [--variant NAME] > errors.md`

- retrieval: no passage that was read holds an accepted answer ("wrong, not found").
- reading: one does ("wrong, though found").
- both: one does, but not the passage that the answer was read from, the one with the highest
  posterior: retrieval put another one first, and the generator believed it.
"""

from __future__ import annotations

import argparse
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rag_core.evaluation import Evaluation
from rag_core.evaluation.calibration import probability

KINDS = ("retrieval", "reading", "both")
Row = dict[str, Any]


def blame(answer: Row, retrieved: Row) -> str | None:
    """What a wrong answer is due to; None if it is right, or nothing to compare with is known.

    Args:
        answer: a row of answers-*.jsonl.
        retrieved: the same question's of retrieved.jsonl.
    """
    scores = answer["scores"]
    if scores.get("exact_match", 1.0):
        return None
    if scores["wrong_not_found"]:
        return "retrieval"
    holding = {row["id"] for row in retrieved["passages"] if row["holds_answer"]}
    if answer["passages"]:
        believed = max(answer["passages"], key=lambda passage: passage["posterior"])
        if believed["id"] not in holding:
            return "both"
    return "reading"


def profile(
    run: Evaluation, variant: str | None = None, count: int = 50, seed: int = 0
) -> dict[str, Any]:
    """How many answers are wrong for which reason, and some of them.

    Args:
        run: a finished evaluation.
        variant: of its answers; None = the first.
        count: answers to draw.
        seed: of the draw.

    Returns:
        "asked", "counts" by reason, and "drawn", a list of (reason, answer, retrieved).
    """
    rows = run.answers[variant or next(iter(run.answers))]
    wrong = [
        (reason, row, found)
        for row, found in zip(rows, run.retrieved, strict=True)
        if (reason := blame(row, found))
    ]
    drawn = random.Random(seed).sample(wrong, min(count, len(wrong)))
    drawn.sort(key=lambda entry: KINDS.index(entry[0]))
    counts = {kind: sum(reason == kind for reason, _, _ in wrong) for kind in KINDS}
    return {"asked": len(rows), "counts": counts, "drawn": drawn}


def markdown(run: Evaluation, found: dict[str, Any]) -> str:
    """For reading."""
    passages = {row["id"]: row for row in run.passages}
    wrong = sum(found["counts"].values())
    parts = [f"{count} {kind}" for kind, count in found["counts"].items()]
    lines = [f"# {wrong} wrong of {found['asked']}: {', '.join(parts)}", ""]
    for number, (reason, answer, retrieved) in enumerate(found["drawn"], 1):
        lines += [f"## {number}. {reason}: {answer['question']}", ""]
        wanted = " | ".join(answer["answers"][:5])
        lines += [f"said **{answer['text']}** (p {probability(answer):.3f}), wanted {wanted}", ""]
        lines += [*_passages(answer, retrieved, passages), ""]
    return "\n".join(lines)


def _passages(answer: Row, retrieved: Row, passages: dict[int, Row]) -> Iterator[str]:
    holding = {row["id"] for row in retrieved["passages"] if row.get("holds_answer")}
    for passage in answer["passages"]:
        sign = " "
        if passage["id"] in holding:
            sign = "x"
        text = textwrap.shorten(passages[passage["id"]]["text"], 400)
        shares = f"{passage['prior']:.2f} -> {passage['posterior']:.2f}"
        yield f"- [{sign}] {shares} **{passage['title']}**: {text}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.results.errors`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results.errors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a finished `dualrag eval`")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--variant", help="of the answers; by default the first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    run = Evaluation.open(options.run)
    found = profile(run, options.variant, options.count, options.seed)
    sys.stdout.write(markdown(run, found))


if __name__ == "__main__":
    main()
